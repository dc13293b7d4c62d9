"""The benchmarks measure equal work: every function of an engine has a case, and at the smallest
size the compiled function and its twin give close results."""

import importlib
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import _engine

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "bench" / "cases.py").exists(), reason="bench/ does not lie beside tests/")


@contextmanager
def script(name):
    """A module of bench/, which is no package that is installed."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "bench"))
        for added in {name, "grid"} & (set(sys.modules) - before):
            del sys.modules[added]


@pytest.fixture(scope="module")
def bench():
    with script("cases") as module:
        yield module


def test_every_function_has_a_case(bench):
    measured = {case.function.split()[0] for case in bench.cases()}
    wanted = {name for names in _engine.FUNCTIONS.values() for name in names}
    assert wanted <= measured, wanted - measured


def test_cases_have_names_of_their_own(bench):
    names = [str(case) for case in bench.cases()]
    assert len(set(names)) == len(names)


def arrays(result):
    """All arrays and numbers in the result of a call, tapes left out."""
    if isinstance(result, tuple):
        return [a for part in result for a in arrays(part)]
    return [] if result is None or isinstance(result, dict) else [np.asarray(result)]


def test_sides_agree(bench):
    """One case per function: the first, which is the smallest."""
    first = {}
    for case in bench.cases():
        if not case.function.startswith("training"):
            first.setdefault(case.function, case)
    for case in first.values():
        results = {}
        for side in case.sides:
            with bench.using(side) as functions:
                results[side] = arrays(case.make(functions)())
        want = results.pop(bench.NUMPY)
        for side, got in results.items():
            assert len(got) == len(want), (case, side)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5, err_msg=f"{case} {side}")


def test_the_engine_in_use_comes_back(bench):
    before = _engine.get_engine()
    with bench.using(bench.NUMPY) as functions:
        assert functions is bench.TWINS
    assert _engine.get_engine() == before and _engine.functions() is not bench.TWINS


# ---- bench/promises.py ---------------------------------------------------------------------------


@pytest.fixture
def promises():
    engine = _engine.get_engine()
    with script("promises") as module:
        yield module
    _engine.set_engine(engine)
    rnnfast.set_num_threads(None)


TINY = {"ragged": {"shape": (5, 3, 4, 6)}, "denormals": {"shapes": [(5, 3, 4, 6)]},
        "streaming": {"H": 4}, "sequence": {"shape": (9, 1, 1, 4)},
        "characters": {"shapes": [(4, 3, 7, 5)]}, "threads": {"shapes": [(5, 3, 4, 6)]},
        "peak": {"shapes": [(5, 3, 4, 6)]}, "memory": {"shapes": [(200, 20, 30, 40)]}}  # fmt: skip
ROWS = {"ragged": 3, "denormals": 10, "streaming": 3, "sequence": 3, "characters": 3, "threads": 2,
        "peak": 3, "memory": 1}  # fmt: skip


@pytest.mark.parametrize("section", TINY)
def test_promises(promises, section):
    """Every section gives its rows at sizes that take no time; what they say is not judged."""
    if section in ("characters", "memory"):
        pytest.importorskip("torch")
    if section == "peak" and not shutil.which("cc"):
        pytest.skip("no cc")
    rows = list(promises.SECTIONS[section](0, **TINY[section]))
    if section == "threads" and not rows:
        pytest.skip("one CPU")
    assert len(rows) == ROWS[section] and all(row.value > 0 for row in rows)
    lines = promises.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(("**no**" in line) != row.met for row, line in zip(rows, lines[2:], strict=True))


def test_promises_cover_every_section(promises):
    assert promises.SECTIONS.keys() == TINY.keys() | {"blas"}


def test_promises_of_engine_blas(promises, tmp_path):
    """The worst square shape of a cell and mode; users' shapes do not count."""
    def row(H, fused, blas, use=None):
        work = promises.Work("gru", "train", 8, 1, H, H)
        return promises.grid.row_of(use, work, {"fused": (fused, fused), "blas": (blas, blas)})

    grid = tmp_path / "grid.json"
    grid.write_text(promises.json.dumps(
        {"rows": [row(16, 1, 2), row(32, 4, 3), row(64, 8, 8), row(99, 4, 1, "audio")]}))
    (found,) = promises.blas(0, path=grid)
    assert "gru train 8x1x32x32" in found.what and found.value == 0.75 and not found.met
    assert found.beside == {"slower": "1"}
    assert list(promises.blas(0, path=tmp_path / "none.json")) == []


@pytest.mark.parametrize(("cell", "kind"), [
    ("lstm", "signal"), ("gru", "signal"), ("rnn", "signal"), ("lstm", "gate"), ("gru", "gate"),
])  # fmt: skip
def test_numbers_do_underflow(promises, use_denormals, cell, kind):
    """Where denormals are kept there are some on the way forward and on the way back."""
    use_denormals("keep")
    work = promises.Underflow(cell, "train", 6, 4, 5, 8, kind=kind)
    layer, (x, dy) = work.layer(), work.arrays()
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, dy)

    def share(a):
        return ((a != 0) & (abs(a) < np.finfo(np.float32).tiny)).mean()

    if kind == "signal":
        assert share(y) > 0.9 and share(dx) > 0.9
    else:
        assert share(y) > 0.5 or cell == "gru"
        assert share(layer.grads["weight_ih_l0"]) > 0.1
