"""How many threads a call may use, and the second thread that runs a reverse direction."""

import os
from types import SimpleNamespace

_state = SimpleNamespace(count=None, pool=None)


def _default():
    """From RNNFAST_NUM_THREADS or OMP_NUM_THREADS, else the CPUs this process may run on."""
    for name in ("RNNFAST_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0].strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads():
    """Threads that one call may use."""
    if _state.count is None:
        _state.count = _default()
    return _state.count


def set_num_threads(n):
    """Let one call use at most n threads.

    Parameters
    ----------
    n : int
        At least 1. Engine ``blas`` runs the two directions of a bidirectional layer on two
        threads; BLAS has its own setting (OPENBLAS_NUM_THREADS or threadpoolctl).

    Raises
    ------
    TypeError, ValueError
        Where n is not an integer or below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"the number of threads must be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _state.count = n


def run_pair(run):
    """[run(0), run(1)], the second on another thread."""
    if _state.pool is None:
        from concurrent.futures import ThreadPoolExecutor  # 5 ms: only where it is used

        _state.pool = ThreadPoolExecutor(1, thread_name_prefix="rnnfast")
    second = _state.pool.submit(run, 1)
    try:
        first = run(0)
    finally:
        second.exception()  # wait: the arrays it writes are the caller's
    return [first, second.result()]


def _forget_pool():
    _state.pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
