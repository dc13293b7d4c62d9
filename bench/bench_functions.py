"""Compiled functions and their twins take turns: compiled, twin, compiled, twin, ... so that a
machine that slows down slows both down. No time makes anything fail."""

import pytest

from .cases import cases, using

TURNS = 3
ROWS = [pytest.param(case, turn, side, id=f"{case} {side} {turn}")
        for case in cases() for turn in range(TURNS) for side in case.sides]  # fmt: skip


@pytest.mark.parametrize(("case", "turn", "side"), ROWS)
def bench_function(benchmark, case, turn, side):
    benchmark.group = str(case)
    benchmark.extra_info = {"function": case.function, "size": case.size, "dtype": case.dtype,
                            "side": side, "flops": case.flops, "readme": case.readme}  # fmt: skip
    with using(side) as functions:
        benchmark(case.make(functions))
