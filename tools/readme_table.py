"""Paste what `make bench`, `make peers`, `make promises` and `make torch` measured into README.md
and docs/.

    python tools/readme_table.py bench/results

Each page has marks such as <!-- bench:start --> and <!-- bench:end --> around what is pasted. Of
`make bench` docs/performance.md gets everything, README.md a choice of sizes in float32 and every
row where a compiled function loses; docs/peers.md gets the other libraries and the goals.
"""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMPY = "numpy"


def rows_of(result):
    """[{function, size, dtype, flops, readme, sides: {side: bench}, ratios: {engine: ratio}}]."""
    rows = {}
    for bench in result["benchmarks"]:
        key = bench["function"], bench["size"], bench["dtype"]
        row = rows.setdefault(key, {k: bench[k] for k in ("function", "size", "dtype", "flops",
                                                          "readme")} | {"sides": {}})  # fmt: skip
        row["sides"][bench["side"]] = bench
    for row in rows.values():
        twin = row["sides"][NUMPY]["median"]
        row["ratios"] = {side: twin / bench["median"] for side, bench in row["sides"].items()
                         if side != NUMPY}  # fmt: skip
    return list(rows.values())


def engines_of(rows):
    """Engines in the order of their first row."""
    return list(dict.fromkeys(side for row in rows for side in row["ratios"]))


def time(seconds):
    """Three digits and a unit."""
    unit, factor = next((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6))
                        if seconds * f >= 1 or u == "µs")  # fmt: skip
    value = seconds * factor
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def ratio(value):
    """Bold where the compiled function loses."""
    text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"**{text}**" if value < 1 else text


def table(rows, engines, detailed=False):
    """Markdown, one row per case: median times and ratios; detailed: the least times and GFLOP/s
    as well."""

    def columns(bench, flops):
        if bench is None:
            return [""] * (1 + detailed)
        text = time(bench["median"])
        if not detailed:
            return [text]
        speed = f"{flops / bench['median'] / 1e9:.1f}" if flops else ""
        return [f"{text} ({time(bench['min'])})", speed]

    titles = ["NumPy twin", *(f"`{engine}`" for engine in engines)]
    head = ["function", "size", "dtype"]
    for k, title in enumerate(titles):
        head += [title] + ["GFLOP/s"] * detailed + ["times faster"] * (k > 0)
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for row in rows:
        line = [row["function"], row["size"], row["dtype"]]
        for side in (NUMPY, *engines):
            line += columns(row["sides"].get(side), row["flops"])
            if side != NUMPY:
                line.append(ratio(row["ratios"][side]) if side in row["ratios"] else "")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(info):
    """One paragraph on where it was measured."""
    blas = {f"{b['internal_api']} {b['version']} ({b['architecture']})" for b in info["blas"]}
    caches = ", ".join(f"{name} {size}" for name, size in info["caches"].items())
    threads = info["threads"]["OMP_NUM_THREADS"]
    return (f"Measured on {info['cpu']} ({caches}), {threads} thread(s), kernels {info['isa']}, "
            f"Python {info['python']}, NumPy {info['numpy']}, SciPy {info['scipy']}"
            + (f", {' and '.join(sorted(blas))}" if blas else "") + ".")  # fmt: skip


def paste(path, text, mark="bench"):
    """Put the text between the two marks."""
    start, end = f"<!-- {mark}:start -->", f"<!-- {mark}:end -->"
    page = path.read_text(encoding="utf-8")
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"{path} must have one {start} and one {end}")
    before, rest = page.split(start)
    after = rest.split(end)[1]
    path.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def paste_functions(path):
    """The tables of `make bench`."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = rows_of(result)
    engines = engines_of(rows)
    where = machine(result["machine_info"])
    losing = [row for row in rows if min(row["ratios"].values()) < 1]
    shown = [row for row in rows if row["readme"] or row in losing]
    count = (f"{len(losing)} of {len(rows)} rows have an engine that is slower than the twin"
             if losing else f"No row of {len(rows)} is slower than its twin")  # fmt: skip
    paste(ROOT / "README.md", f"{where} Sizes: T x B x I x H, N x V or n.\n\n"
          f"{table(shown, engines)}\n\n{count}.")  # fmt: skip
    detailed = table(rows, engines, detailed=True)
    paste(ROOT / "docs" / "performance.md", f"{where}\n\n{detailed}\n\n{count}.")


def paste_peers(results):
    """What `make peers` and `make promises` have written, for each instruction set."""
    for path in sorted([*results.glob("grid-*.md"), *results.glob("promises-*.md")]):
        paste(ROOT / "docs" / "peers.md", path.read_text(encoding="utf-8"), path.stem)
    parts = []
    for path in sorted(results.glob("grid-1-*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        summary = [line for line in lines if line.startswith("- ")]
        isa = path.stem.split("-")[-1]
        parts.append(f"Kernels {isa}, {lines[0].split(',')[0]}:\n\n" + "\n".join(summary))
        shutil.copy(path.with_suffix(".png"), ROOT / "docs" / f"peers-{isa}.png")
    if parts:
        paste(ROOT / "README.md", "\n\n".join(parts), "peers")


def main(results):
    results = Path(results)
    if (results / "bench.json").exists():
        paste_functions(results / "bench.json")
    paste_peers(results)
    if (results / "torch.md").exists():
        paste(ROOT / "README.md", (results / "torch.md").read_text(encoding="utf-8"), "torch")


if __name__ == "__main__":
    main(sys.argv[1])
