"""``rnnfast bench``: a layer of the user's own shape in rnnfast and in the libraries installed."""

import time

import numpy as np

from rnnfast import _peers

ROUNDS = 5  # at least, of every library, in turns
ROUND = 0.002  # seconds of calls in a round, at least one call
LOOK = 0.01  # seconds of sleep in which threads that spin on after a call, some for 0.1 s, show
REST = 0.5  # seconds at most for them to end
WARM = 0.02  # seconds: a shorter call is made once untimed, after the others had the caches
TURN = 0.05  # seconds of calls on several threads, first untimed, as rested CPUs begin slowly


def rest():
    """Wait until no thread of this process is at work."""
    end = time.perf_counter() + REST
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - before < 0.1 * LOOK:
            break


def turns(calls, seconds, threads=1):
    """Times of each call: libraries take turns, so that a machine that slows down slows all.

    Parameters
    ----------
    calls : dict
        name -> call without arguments.
    seconds : float
        For each of them.
    threads : int
        That a call may use. With several, each turn begins when the others' threads rest.

    Returns
    -------
    dict
        name -> (least, median) seconds per call.
    """
    repeats, warm, times = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        call(), call()  # the first may compile
        begin = time.perf_counter()
        call()
        took = time.perf_counter() - begin
        length = TURN if threads > 1 else ROUND
        repeats[name], warm[name] = max(1, int(length / max(took, 1e-9))), took < WARM
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(min(times.values(), key=len)) < ROUNDS:
        for name, call in calls.items():
            if threads > 1:
                rest()
            end_of_warming = time.perf_counter() + (TURN if threads > 1 else 0)
            if warm[name]:
                call()
            while time.perf_counter() < end_of_warming:
                call()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: (min(t), float(np.median(t))) for name, t in times.items()}


def make_calls(work, names):
    """name -> call for those that can do the work; their results are compared first.

    Raises
    ------
    AssertionError
        Where two libraries do not agree: then a comparison of speed says nothing.
    """
    calls, first = {}, None
    for name in names:
        try:
            calls[name] = _peers.make(name, work)
        except _peers.NotComparable:
            continue
        result = calls[name]()
        if work.mode == "stream" or work.resets or name == "blas":
            continue  # a stream's state has moved on; others have no resets
        result = result if isinstance(result, tuple) else (result,)
        first = first or [np.array(a) for a in result]
        for got, want in zip(result, first, strict=True):
            scale = max(1e-6, float(np.abs(want).max()))
            if not np.allclose(got, want, rtol=1e-3, atol=1e-3 * scale):
                raise AssertionError(f"{work}: {name} differs by {np.abs(got - want).max():.2g}")
    return calls


def compare(work, names, seconds=0.5):
    """`turns` of everybody who can do the work."""
    return turns(make_calls(work, names), seconds, work.threads)


def duration(seconds):
    """Three digits and a unit."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    return None


def report(work, times):
    """Lines of text: time, GFLOP/s and the ratio to the first."""
    ours = next(iter(times))
    base = times[ours][1]
    yield f"{work}, {work.threads} thread{'s' * (work.threads > 1)}, float32"
    yield f"  {'':<12}{'median':>10}{'least':>10}{'GFLOP/s':>9}   time / {ours}'s"
    for name, (least, median) in times.items():
        yield (f"  {name:<12}{duration(median):>10}{duration(least):>10}"
               f"{work.flops / median / 1e9:>9.1f}   {median / base:.2f}")  # fmt: skip
