"""The house's order: twins share a signature and labels with docs/math.md, imports run one way."""

import ast
import importlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from rnnfast import _dense, _engine
from rnnfast.reference import sequence
from rnnfast.reference.arithmetic import PLAIN

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CSRC, REFERENCE = ROOT / "rnnfast", ROOT / "csrc", ROOT / "rnnfast" / "reference"
FUNCTIONS = [(stem, f) for stem, names in _engine.FUNCTIONS.items() for f in names]


# ---- signatures ----------------------------------------------------------------------------------


def check_twins(compiled, twin, default):
    """The same parameters; the twin has `arithmetic` besides, last and by keyword only."""
    ours = list(inspect.signature(compiled).parameters.values())
    *theirs, last = inspect.signature(twin).parameters.values()
    assert last.name == "arithmetic" and last.kind is last.KEYWORD_ONLY
    assert last.default is default
    assert [(p.name, p.kind) for p in ours] == [(p.name, p.kind) for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert type(a.default) is type(b.default), a.name
        assert a.default is b.default or a.default == b.default, a.name


@pytest.mark.parametrize("stem, name", FUNCTIONS)
def test_signatures(stem, name):
    compiled = getattr(importlib.import_module(_engine.COMPILED[stem]), name)
    twin = getattr(importlib.import_module(f"rnnfast.reference.{stem}"), name)
    assert not inspect.isfunction(compiled), "compiled, not Python"
    assert compiled.__name__ == twin.__name__ == name
    check_twins(compiled, twin, PLAIN)


@pytest.mark.parametrize("name", ["layer_norm_forward", "layer_norm_backward"])
def test_layer_norm_signatures(name):
    check_twins(getattr(_dense, name), getattr(sequence, name), inspect.Parameter.empty)


def test_other_signatures_are_noticed():
    def twin(x, y=1, *, z=2, arithmetic=PLAIN):
        pass

    check_twins(lambda x, y=1, *, z=2: 0, twin, PLAIN)
    for other in (
        lambda x, y=1: 0,
        lambda x, y=1, *, w=2: 0,
        lambda x, y=1, *, z=3: 0,
        lambda x, y=True, *, z=2: 0,
        lambda x, y=1, z=2: 0,
        lambda y, x=1, *, z=2: 0,
    ):
        with pytest.raises(AssertionError):
            check_twins(other, twin, PLAIN)


# ---- step labels ---------------------------------------------------------------------------------

LABEL = re.compile(r"\b(NB|[FBNSEQ])(\d)\b(?:\s*(?:\.\.|-|to)\s*\*{0,2}\1(\d)\b)?")


def labels(text):
    """The labels in a text; B1 .. B3 stands for all three."""
    return {
        f"{kind}{k}"
        for kind, first, last in LABEL.findall(text)
        for k in range(int(first), int(last or first) + 1)
    }


def test_label_ranges():
    assert labels("F1, B2 .. B4 (NB1-NB3)") == {"F1", "B2", "B3", "B4", "NB1", "NB2", "NB3"}
    assert labels("F32 HB1 b1") == set()


def python_comments(path):
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return "\n".join(t.string for t in tokens if t.type == tokenize.COMMENT)


def cython_comments(path):
    return "\n".join(re.findall(r"#.*", path.read_text()))


def kernel_comments():
    """Comments of kernels_tmpl.h by the headings of its parts."""
    parts = re.split(r"/\* -{2,} (.*?) -+ \*/", (CSRC / "kernels_tmpl.h").read_text())
    return {
        name: "\n".join(re.findall(r"/\*.*?\*/", body, re.DOTALL))
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def doc_sections():
    """Text of docs/math.md by the reference file whose twin the section says it is."""
    sections = re.split(r"^## ", (ROOT / "docs" / "math.md").read_text(), flags=re.MULTILINE)
    found = {}
    for text in sections:
        twin = re.search(r"^Twin: `rnnfast/reference/(\w+)\.py`", text, re.MULTILINE)
        if twin:
            assert twin[1] not in found, twin[1]
            found[twin[1]] = text
    return found


#: reference file: compiled module, parts of kernels_tmpl.h
LABELLED = {
    "rnn": ("_rnn", ["RNN"]),
    "lstm": ("_lstm", ["LSTM"]),
    "gru": ("_gru", ["GRU"]),
    "output_rnn": ("_output_rnn", []),
    "loss": ("_loss", ["rows"]),
    "sequence": ("_dense", ["rows"]),
}


def test_files_with_labels():
    """A reference file that starts to use labels must be looked at by the tests below."""
    used = {p.stem for p in REFERENCE.glob("*.py") if labels(python_comments(p))}
    # elementary.py has labels of its own, which docs/arithmetic.md explains
    assert used - {"elementary"} <= LABELLED.keys()
    assert set(_engine.FUNCTIONS) | {"sequence"} == doc_sections().keys()


@pytest.mark.parametrize("stem", LABELLED)
def test_labels(stem):
    module, parts = LABELLED[stem]
    reference = labels((REFERENCE / f"{stem}.py").read_text())
    bold = set(re.findall(r"\\textbf\{(\w+)\}", doc_sections()[stem]))
    assert reference and reference <= labels(doc_sections()[stem])
    assert bold <= reference, "defined in docs/math.md, not in the reference"
    kernels = set().union(*(labels(kernel_comments()[part]) for part in parts))
    compiled = labels(cython_comments(PACKAGE / f"{module}.pyx"))
    if stem in ("loss", "sequence"):  # two files in one part of the kernels
        kinds = {re.sub(r"\d", "", label) for label in reference}
        kernels = {label for label in kernels if re.sub(r"\d", "", label) in kinds}
    if stem == "sequence":
        compiled |= labels((PACKAGE / f"{module}.pyx").read_text())
    assert compiled | kernels == reference


# ---- imports -------------------------------------------------------------------------------------


def imports(path):
    """Modules a Python file imports, at the top or inside a function, with full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                suffixes = ("", ".py", ".pyx")
                is_module = any(inner.with_name(inner.name + s).exists() for s in suffixes)
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def test_reference_imports_numpy_and_scipy_alone():
    for path in REFERENCE.glob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert (
                name.startswith("rnnfast.reference")
                or top in ("numpy", "scipy")
                or top in sys.stdlib_module_names
            ), f"{path.name} imports {name}"


LAYERS = {"layers", "losses", "clipping", "optim"}
TOP = {"cli", "__main__", "torch", "onnx", "keras", "sklearn"}


def rank(module):
    """compiled and private 0, layers 1, models and their like 2, bridges and command line 3."""
    if module.startswith("_") and module != "__main__":
        return 0
    return 1 if module in LAYERS else 3 if module in TOP else 2


def python_modules():
    return {p.stem: p for p in PACKAGE.glob("*.py") if p.stem != "__init__"}


def test_imports_run_one_way():
    graph = {}
    for module, path in python_modules().items():
        names = {n.split(".")[1] for n in imports(path) if n.startswith("rnnfast.")}
        graph[module] = names - {"reference"}
        if module.startswith("_") and not names & (LAYERS | TOP):
            continue  # private modules of models may use models' private modules
        for name in graph[module]:
            assert rank(name) <= max(rank(module), 2 if module.startswith("_") else 0), (
                f"{module} imports {name}"
            )
    for start in graph:  # and no circle
        seen, todo = set(), list(graph[start])
        while todo:
            module = todo.pop()
            assert module != start, f"{start} imports itself in a circle"
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())


def test_compiled_modules_import_compiled_modules():
    pattern = re.compile(
        r"^\s*(?:from rnnfast(?:\.(\w+))? c?import (.+)|c?import rnnfast\.(\w+))", re.MULTILINE)
    for path in PACKAGE.glob("_*.pyx"):
        for package, names, plain in pattern.findall(path.read_text()):
            used = [package or plain] if package or plain else re.findall(r"\w+", names)
            for name in used:
                if name not in ("as", "K"):
                    assert name.startswith("_"), f"{path.name} imports {name}"
                    assert name not in python_modules(), f"{path.name} imports {name}"


# ---- the kernels' C ------------------------------------------------------------------------------


def code(path):
    """A C file without comments."""
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def test_kernels_include_no_python_and_no_libm():
    allowed = {"stddef.h", "stdint.h", "string.h", "immintrin.h", "arm_neon.h"}
    files = [p for p in CSRC.rglob("*.*") if p.suffix in (".h", ".c", ".inc")]
    assert files
    for path in files:
        if path.name in ("cpu.c", "pool.c"):  # not kernels: they ask the system
            allowed_here = allowed | {"pthread.h", "sys/auxv.h", "intrin.h", "fenv.h", "errno.h",
                                      "cpuid.h", "sched.h", "signal.h", "stdatomic.h",
                                      "time.h"}  # fmt: skip
        else:
            allowed_here = allowed
        assert set(re.findall(r"#\s*include\s*<(.*?)>", code(path))) <= allowed_here, path.name
        calls = re.findall(r"\b(?:m|c|re)alloc\s*\(|\bfree\s*\(|\balloca\s*\(", code(path))
        assert not calls or path.name == "pool.c", path.name
        math = r"\b(?:exp|expm1|tanh|log|log1p|pow|fma|sqrt|fabs|ldexp|rint|fmax|fmin)f?\s*\("
        assert not re.search(math, code(path)), path.name


@pytest.mark.skipif(not shutil.which("cc") or not shutil.which("nm"), reason="needs cc and nm")
def test_kernels_need_no_library(tmp_path):
    """Each isa_*.c compiles alone, and asks the linker for memset and memcpy at most, and
    csrc/dispatch.c for the thread's scratch memory, csrc/cpu.c for what the CPU is."""
    for path in sorted(CSRC.glob("isa_*.c")):
        target = tmp_path / f"{path.stem}.o"
        subprocess.run(["cc", "-std=c11", "-O0", "-ffp-contract=off", "-c", path, "-o", target,
                        "-I", CSRC], check=True)  # fmt: skip
        symbols = subprocess.run(["nm", "-u", target], check=True, capture_output=True, text=True)
        needed = {line.split()[-1].lstrip("_") for line in symbols.stdout.splitlines()}
        allowed = {"memset", "memcpy", "memmove", "rf_scratch", "rf_looks_ahead"}
        assert needed <= allowed, f"{path.name} needs {needed - allowed}"


# ---- import time ---------------------------------------------------------------------------------

IMPORT = """
import sys, time
import numpy
before, start = set(sys.modules), time.perf_counter()
import rnnfast
print(time.perf_counter() - start, *sorted(set(sys.modules) - before))
"""


def test_import_brings_in_nothing_but_numpy(record_property, tmp_path):
    """Above all not scipy.linalg, which costs 0.14 s: engine blas loads it when first used."""
    cached = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    cached["PYTHONPYCACHEPREFIX"] = str(tmp_path)  # as after pip install: not compiled each time
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True,
                       cwd=ROOT, env=cached).stdout.split()
        for _ in range(5)
    ]  # fmt: skip
    seconds = min(float(run[0]) for run in runs)
    record_property("import_milliseconds_over_numpy", round(1000 * seconds, 1))
    print(f"import rnnfast: {1000 * seconds:.1f} ms over import numpy")
    modules = set(runs[0][1:])
    assert "rnnfast.layers" in modules
    tops = {m.split(".")[0] for m in modules if not m.startswith("_cython_")}
    assert tops <= {"rnnfast", "numpy", "cython_runtime", *sys.stdlib_module_names}
    assert not {m for m in modules if m.startswith("rnnfast.reference")}
    assert "rnnfast._blas" not in modules
