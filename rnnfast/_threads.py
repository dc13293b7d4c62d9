"""How many threads a call may use, and the second thread that runs a reverse direction.

The numbers are kept in csrc/pool.c, where compiled code and threadpoolctl ask for them;
docs/threads.md says which limit goes before which.
"""

import os
import sys
from types import SimpleNamespace

from rnnfast import _kernels

_state = SimpleNamespace(pool=None)

# where the hierarchies are mounted by systemd and in containers, and the files of a quota
CGROUP_V1 = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct")
CGROUP_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
QUOTA_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
QUOTA_V2 = ("cpu.max",)


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def quota_cpus(text):
    """CPUs, rounded up, that "quota period" of cpu.max or of the two files of version 1 allows;
    None for "max", -1 and whatever is no quota."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return -(-quota // period) if quota > 0 and period > 0 else None


def cgroup_cpus(root=""):
    """The least that this process's cgroup and those above it allow, or None without a quota."""
    found = []
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts, files = (CGROUP_V1, QUOTA_V1) if controllers else (CGROUP_V2, QUOTA_V2)
        group = group.strip("/")
        while True:
            for mount in mounts:
                text = " ".join(_read(f"{root}{mount}/{group}/{file}") for file in files)
                found.append(quota_cpus(text))
            if not group:
                break
            group = group.rpartition("/")[0]
    return min((n for n in found if n), default=None)


def default_threads(environ, quota):
    """(number, whether it is exact or the affinity mask may lower it)."""
    own = environ.get("RNNFAST_NUM_THREADS", "").strip()
    if own:
        if not own.isdecimal() or int(own) < 1:
            raise ValueError(f"RNNFAST_NUM_THREADS must be a whole number from 1 on, got {own!r}")
        return int(own), True
    omp = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    limits = [os.cpu_count(), quota, int(omp) if omp.isdecimal() else None]
    return min((n for n in limits if n), default=1), False


def get_num_threads():
    """Threads that one call may use.

    Without `set_num_threads` and ``RNNFAST_NUM_THREADS`` it is the number of CPUs that the calling
    thread may run on now, and no more than ``OMP_NUM_THREADS`` or the cgroup's CPU quota.
    """
    return _kernels.get_threads()


def set_num_threads(n):
    """Let one call use at most n threads, in the whole process.

    Parameters
    ----------
    n : int or None
        At least 1; None: the default again, see `get_num_threads`. Engine ``blas`` runs the two
        directions of a bidirectional layer on two threads; BLAS has its own setting
        (OPENBLAS_NUM_THREADS or threadpoolctl).

    Raises
    ------
    TypeError, ValueError
        Where n is not an integer or below 1.
    """
    if n is None:
        _kernels.set_threads(0)
        return
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"the number of threads must be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _kernels.set_threads(min(n, 2**31 - 1))


# ---- two directions ------------------------------------------------------------------------------

def _run_with(share, run, k):
    before = _kernels.set_share(share)
    try:
        return run(k)
    finally:
        _kernels.set_share(before)


def run_pair(run):
    """[run(0), run(1)], the second on another thread; they share the threads a call may use."""
    threads = get_num_threads()
    if threads < 2:
        return [run(0), run(1)]
    if _state.pool is None:
        from concurrent.futures import ThreadPoolExecutor  # 5 ms: only where it is used

        _state.pool = ThreadPoolExecutor(1, thread_name_prefix="rnnfast")
    try:
        second = _state.pool.submit(_run_with, threads // 2, run, 1)
    except RuntimeError:  # the interpreter shuts down: no new threads
        return [run(0), run(1)]
    try:
        first = _run_with(threads - threads // 2, run, 0)
    finally:
        second.exception()  # wait: the arrays it writes are the caller's
    return [first, second.result()]


def _forget_pool():
    _state.pool = None


# ---- threadpoolctl -------------------------------------------------------------------------------

def register_controller(threadpoolctl):
    """Let threadpoolctl see and limit the threads here."""
    if not hasattr(threadpoolctl, "register"):  # before 3.2
        return

    class Controller(threadpoolctl.LibController):
        user_api = internal_api = "rnnfast"
        filename_prefixes = ("_kernels",)
        check_symbols = ("rnnfast_get_num_threads",)

        def get_num_threads(self):
            return self.dynlib.rnnfast_get_num_threads()

        def set_num_threads(self, num_threads):
            self.dynlib.rnnfast_set_num_threads(num_threads)

        def get_version(self):
            return sys.modules["rnnfast"].__version__

    threadpoolctl.register(Controller)


class _Loader:
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        register_controller(module)


class _Finder:
    """Registers with threadpoolctl once that is imported. Importing it from here would cost 5 ms,
    and it sets an environment variable."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "threadpoolctl":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


_kernels.set_default_threads(*default_threads(os.environ, cgroup_cpus()))
if "threadpoolctl" in sys.modules:
    register_controller(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, _Finder)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
