"""Our layers beside other libraries over a grid of shapes: figures as JSON, a table, a plot.

    python bench/grid.py [--threads N] [--seconds S] [--only TEXT] [--out FILE]

Libraries that are not installed are left out with a note. Every row is kept, won or lost.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

SQUARE = [(128, 1, 64, 64), (128, 1, 128, 128), (128, 1, 256, 256), (128, 1, 512, 512),
          (64, 1, 1024, 1024), (64, 8, 128, 128), (64, 32, 64, 64), (64, 32, 128, 128),
          (64, 32, 256, 256), (64, 64, 512, 512), (32, 64, 1024, 1024), (64, 128, 128, 128)]
USERS = [("audio", (2048, 32, 1, 8), {}), ("audio", (2048, 32, 1, 40), {}),
         ("hydrology", (365, 256, 30, 128), {}), ("agents", (128, 8, 64, 256), {"resets": True}),
         ("tagging", (30, 32, 300, 300), {"layers": 2, "bidirectional": True, "ragged": True}),
         ("forecasting", (26, 256, 8, 8), {})]  # fmt: skip


def works(threads):
    """(name of the use or None, Work) over the grid."""
    import numpy as np

    from rnnfast._peers import Work

    for cell in ("lstm", "gru", "rnn"):
        for mode in ("infer", "train", "stream"):
            for T, B, I, H in SQUARE:
                if mode != "stream" or B <= 8:
                    yield None, Work(cell, mode, T, B, I, H, threads=threads)
        for use, (T, B, I, H), more in USERS:
            more = dict(more)
            if more.pop("ragged", False):
                lengths = np.random.default_rng(3).integers(T // 10, T + 1, B)
                more["lengths"] = tuple(int(n) for n in lengths)
            for mode in ("infer", "train"):
                yield use, Work(cell, mode, T, B, I, H, threads=threads, **more)


@functools.cache
def limits():
    """bench/peak.c as a library."""
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        subprocess.run(["cc", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC",
                        source, "-o", library], check=True)  # fmt: skip
        found = ctypes.CDLL(library)
    found.rf_peak.restype = found.rf_read.restype = ctypes.c_double
    result = ctypes.POINTER(ctypes.c_float)
    found.rf_peak.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float, result]
    found.rf_read.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_long, result]
    return found


def peak_call():
    """(call without arguments, floating-point operations in it): well below a millisecond of
    nothing but fused multiply-adds on one core."""
    call = functools.partial(limits().rf_peak, 50000, 0.5, 0.5, ctypes.byref(ctypes.c_float()))
    return call, call()


def fastest(call, calls=1000):
    """What a call returns, a second, in the best of many."""
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        amount = call()
        times.append(time.perf_counter() - begin)
    return amount / min(times)


def peak():
    """GFLOP/s of one core's fused multiply-adds."""
    return fastest(peak_call()[0]) / 1e9


def bandwidth(size):
    """GB/s at which a core reads `size` bytes again and again."""
    import numpy as np

    x = np.ones(size // 4 + 16, np.float32)
    skip = -x.ctypes.data // 4 % 16  # to a line: loads across two take twice as long
    rounds = max(1, 100_000_000 // size)  # a call through ctypes costs microseconds
    return fastest(functools.partial(limits().rf_read, rounds, x[skip:].ctypes.data, size // 4,
                                     ctypes.byref(ctypes.c_float())), 30) / 1e9  # fmt: skip


def versions(names):
    """Of the libraries compared."""
    return {name: metadata.version(name) for name in names if name not in ("fused", "blas")}


def cpu():
    """Its name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def geometric(values):
    """Geometric mean, or None."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def row_of(use, work, times):
    """What is kept of a cell of the grid."""
    peers = {k: v for k, v in times.items() if k not in ("fused", "blas", "numpy")}
    best = min(peers, key=lambda k: peers[k][1]) if peers else None
    return {"work": str(work), "use": use, "cell": work.cell, "mode": work.mode,
            "shape": [work.T, work.B, work.I, work.H], "flops": work.flops,
            "least": {k: v[0] for k, v in times.items()},
            "median": {k: v[1] for k, v in times.items()}, "best_peer": best,
            "ratio": peers[best][1] / times["fused"][1] if best else None}  # fmt: skip


def table(result):
    """Markdown: GFLOP/s by median time, microseconds where streamed; lost cells in bold."""
    names = list(dict.fromkeys(n for row in result["rows"] for n in row["median"]))
    lines = ["| work | " + " | ".join(names) + " | best peer / fused |",
             "|---|" + "---:|" * (len(names) + 1)]  # fmt: skip
    for row in result["rows"]:
        cells = []
        for name in names:
            t = row["median"].get(name)
            cells.append("" if t is None else f"{t * 1e6:.1f} µs" if row["mode"] == "stream"
                         else f"{row['flops'] / t / 1e9:.1f}")  # fmt: skip
        ratio = row["ratio"]
        text = "" if ratio is None else f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"
        lines.append(f"| {row['work']} | " + " | ".join(cells) + f" | {text} |")
    return "\n".join(lines)


def bound(result, rows):
    """The geometric mean, were layers of 128 units and 8 sequences or more at 90 % of the peak of
    all cores that do not reach it, and the others as they are."""
    most = 0.9e9 * result["peak"] * result["threads"]

    def ratio(row):
        ours, (_, B, _, H) = row["median"]["fused"], row["shape"]
        if B >= 8 and H >= 128:
            ours = min(ours, row["flops"] / most)
        return row["median"][row["best_peer"]] / ours

    return geometric([ratio(row) for row in rows])


def summary(result):
    """Lines: geometric means, how many cells are lost, and `bound`."""
    rows = [r for r in result["rows"] if r["ratio"]]
    for mode in ("infer", "train", "stream"):
        for label, chosen in (("square shapes", [r for r in rows if not r["use"]]),
                              ("users' shapes", [r for r in rows if r["use"]])):
            cells = [r for r in chosen if r["mode"] == mode]
            ratios = [r["ratio"] for r in cells]
            if ratios:
                lost = sum(x < 1 for x in ratios)
                most = ("" if mode == "stream" else f"; {bound(result, cells):.2f}, were 128 units "
                        "and more with 8 sequences and more at 90 % of the peak")
                yield (f"- {mode}, {label}: {geometric(ratios):.2f} times the fastest peer "
                       f"(geometric mean of {len(ratios)}), {lost} lost, least "
                       f"{min(ratios):.2f}{most}")  # fmt: skip


def text(result):
    """All of it as Markdown."""
    found = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    again = ", ".join(dict.fromkeys("x".join(map(str, row["shape"])) for row in result["rows"]
                                    if row.get("again")))
    return (f"{result['cpu']}, kernels {result['isa']}, {threads}, float32; a core reached "
            f"{result['peak']:.0f} GFLOP/s of fma, and read {result['L2']:.0f} GB/s from its "
            f"second cache, {result['L3']:.0f} from the third. {found}. GFLOP/s by median time, "
            "steps of a stream in microseconds; lost cells in bold."
            + (f" Measured again, later than the others: {again}." if again else "") + "\n\n"
            + "\n".join(summary(result)) + "\n\n" + table(result) + "\n")


def plot(result, path):
    """GFLOP/s against the work per byte of weights, below the core's peak and bandwidths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    colours = {"fused": "#d1580f", "torch": "#7f7f7f", "onnxruntime": "#4c78a8",
               "openvino": "#54a24b", "jax": "#b279a2"}  # fmt: skip
    rows = [r for r in result["rows"]
            if (r["mode"], r["cell"], r["use"]) == ("infer", "lstm", None)]  # fmt: skip
    for name, colour in colours.items():
        points = [(r["shape"][1] / 2, r["flops"] / r["median"][name] / 1e9, r) for r in rows
                  if name in r["median"]]
        ax.plot([p[0] for p in points], [p[1] for p in points], "o", ms=5, color=colour,
                label=name, alpha=0.85)
    ends = min(r["shape"][1] for r in rows) / 2.4, max(r["shape"][1] for r in rows) / 2
    for name, speed, side in (("L2", result["L2"], 0.95), ("L3", result["L3"], 0.75)):
        knee = result["peak"] / speed
        ax.plot([ends[0], knee], [ends[0] * speed, result["peak"]], color="#888888", lw=1, ls="--")
        ax.text(knee, result["peak"] * side, f"  {name}: {speed:.0f} GB/s", fontsize=8, va="top")
    ax.axhline(result["peak"], color="#222222", lw=1)
    ax.text(ends[1], result["peak"] * 1.05, f"fma peak of a core: {result['peak']:.0f} GFLOP/s",
            fontsize=8, ha="right")
    ax.set(xscale="log", yscale="log", xlabel="operations per byte of weights read at a step (B/2)",
           ylim=(3, result["peak"] * 1.4), ylabel="GFLOP/s",
           title=f"LSTM inference, I = H, float32, {result['threads']} thread(s)")
    ax.legend(frameon=False, fontsize=8)
    ax.grid(alpha=0.25, which="both")
    figure.savefig(path)


def pin(threads):
    """Keep this process and what it starts on so many CPUs: JAX has no other limit."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def main():
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--only", default="", help="works whose name contains this")
    parser.add_argument("--again", default="", help="works whose name contains this, in place of "
                        "their rows in the last result; the tables name them")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    pin(args.threads)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")  # else its threads spin for 30 ms
    from rnnfast import _bench, _peers, get_isa

    names = ["fused", "blas", *_peers.installed()]
    for name in sorted(set(_peers.PEERS) - set(names)):
        print(f"left out: {name} is not installed")
    name = f"grid-{args.threads}-{get_isa()}.json"
    out = Path(args.out or Path(__file__).parent / "results" / name)
    if args.again:
        result = json.loads(out.read_text())
    else:
        result = {"cpu": cpu(), "isa": get_isa(), "threads": args.threads,
                  "versions": versions(names), "peak": peak(), "L2": bandwidth(1 << 18),
                  "L3": bandwidth(1 << 23), "rows": []}
    place = {row["work"]: k for k, row in enumerate(result["rows"])}
    for use, work in works(args.threads):
        if (args.again or args.only) not in str(work):
            continue
        times = _bench.compare(work, names, args.seconds)
        row = row_of(use, work, times)
        if str(work) in place:
            result["rows"][place[str(work)]] = row | {"again": True}
        else:
            result["rows"].append(row)
        ratio = f"{row['ratio']:.2f} times {row['best_peer']}" if row["ratio"] else ""
        print(f"{work!s:<50} {work.flops / times['fused'][1] / 1e9:7.1f} GFLOP/s  {ratio}",
              flush=True)
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
    print(*summary(result), sep="\n")
    out.with_suffix(".md").write_text(text(result))
    if not args.only:
        plot(result, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
