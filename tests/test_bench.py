"""The benchmarks measure equal work: every function of an engine has a case, and at the smallest
size the compiled function and its twin give close results."""

import sys
from pathlib import Path

import numpy as np
import pytest

from rnnfast import _engine

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "bench" / "cases.py").exists(), reason="bench/ does not lie beside tests/")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import cases

        yield cases
    finally:
        sys.path.remove(str(ROOT / "bench"))
        del sys.modules["cases"]


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
