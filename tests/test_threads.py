"""The thread pool, the limits on threads, and what happens around them: forks, other processes,
many callers, the interpreter's end."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import _kernels, _seq, _threads

ROOT = Path(__file__).parents[1]
COUNTS = [1, 2, 3, 7]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
pools = pytest.mark.skipif(sys.platform == "win32", reason="no pool on Windows")


@pytest.fixture(autouse=True)
def default_again():
    yield
    rnnfast.set_num_threads(None)


def run_script(code, tmp_path, **env):
    """What the program prints, as words; it has a minute."""
    script = tmp_path / "script.py"
    script.write_text(code)
    known = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60,
                          env=known | env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.split()


# ---- the pool ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tasks", [0, 1, 2, 64])
@pytest.mark.parametrize("threads", COUNTS)
def test_each_task_once(threads, tasks):
    done, worker = _kernels.try_pool(tasks, threads, 1000)
    assert np.array_equal(done, _kernels.try_pool(tasks, 1, 1000)[0])
    assert np.all((worker >= 0) & (worker < threads))


@pools
@pytest.mark.parametrize("threads", COUNTS)
def test_gang(threads):
    h, got = _kernels.try_gang(24, 100, threads)
    assert got == threads
    assert np.array_equal(h, _kernels.try_gang(24, 100, 1)[0])


@pytest.mark.parametrize(("threads", "T", "B", "directions", "H", "expected"), [
    (2, 128, 1, 1, 64, (1, 1)),       # a step is too short
    (2, 1, 1, 1, 256, (1, 1)),        # and so is the call
    (2, 128, 1, 1, 256, (2, 0)),      # hidden units
    (2, 1, 1, 1, 1024, (2, 0)),
    (2, 128, 1, 2, 256, (2, 1)),      # a thread for each direction
    (4, 128, 1, 2, 256, (4, 0)),
    (2, 64, 32, 1, 256, (2, 2)),      # rows
    (7, 64, 32, 1, 128, (7, 7)),
    (2, 64, 8, 1, 256, (2, 0)),       # where a tile of eight shares weights that four would read
    (16, 64, 8, 1, 1024, (16, 0)),    # fewer rows than threads
    (3, 128, 1, 1, 32, (1, 1)),
    (2, 64, 0, 1, 256, (1, 1)),       # no sequence at all
])  # fmt: skip
def test_plan(threads, T, B, directions, H, expected):
    """What is divided, for an LSTM: (threads, parts of the rows or 0 for hidden units)."""
    rnnfast.set_num_threads(threads)
    assert _seq.try_plan(T, B, directions, 4.0 * H * H, H) == expected


def test_more_threads_than_tasks_or_workers():
    done, worker = _kernels.try_pool(4, 2**31 - 1, 10)
    assert np.array_equal(done, _kernels.try_pool(4, 1, 10)[0])
    assert worker.max() < 4


@pools
@linux
def test_many_callers_share_the_workers(tmp_path):
    """Eight callers of runs for up to 7 threads get the right results, and 6 workers at most."""
    assert run_script(CALLERS, tmp_path) == ["6"]


CALLERS = """
import glob, threading
import numpy as np
from rnnfast import _kernels

want = _kernels.try_pool(40, 1, 500)[0], _kernels.try_gang(12, 50, 1)[0]
_kernels.try_gang(12, 50, 7)
failed = []

def call(k):
    for r in range(60):
        n = (1, 2, 3, 7)[(k + r) % 4]
        if not (np.array_equal(_kernels.try_pool(40, n, 500)[0], want[0])
                and np.array_equal(_kernels.try_gang(12, 50, n)[0], want[1])):
            failed.append((k, r, n))

threads = [threading.Thread(target=call, args=(k,)) for k in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failed, failed

def name(path):
    try:
        return open(path).read().strip()
    except OSError:  # of a caller that has ended
        return ""

print([name(path) for path in glob.glob("/proc/self/task/*/comm")].count("rnnfast"))
"""


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_many_threads_call_layers(cell):
    """Inference shares a layer, training has one for each thread; all share the pool's workers."""
    rng = np.random.default_rng(4)
    inputs = [rng.standard_normal((30, 24, 40)).astype("float32") for _ in range(4)]

    def everything(shared, x):
        own = getattr(rnnfast, cell)(40, 48, seed=1)
        y, _, tape = own.forward(x)
        dx, _ = own.backward(tape, y)
        return [shared(x)[0], y, dx, *own.grads.values()]

    shared = getattr(rnnfast, cell)(40, 48, bidirectional=True, seed=2)
    rnnfast.set_num_threads(1)
    want = [everything(shared, x) for x in inputs]
    rnnfast.set_num_threads(3)
    found = [[] for _ in inputs]

    def work(k):
        for _ in range(3):
            found[k].append(everything(shared, inputs[k]))

    callers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    for results, expected in zip(found, want, strict=True):
        assert len(results) == 3
        for result in results:
            assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


@pools
@linux
def test_workers_leave_signals_to_the_program(tmp_path):
    assert run_script(SIGNALS, tmp_path) == ["blocked", "open"]


SIGNALS = """
import glob, signal
from rnnfast import _kernels

_kernels.try_gang(12, 50, 2)
for task in glob.glob("/proc/self/task/*"):
    if open(task + "/comm").read().strip() == "rnnfast":
        lines = dict(line.split(":", 1) for line in open(task + "/status"))
        blocked = int(lines["SigBlk"], 16)
        for number in (signal.SIGINT, signal.SIGSEGV):
            print("blocked" if blocked >> (number - 1) & 1 else "open")
"""


@pools
def test_no_spinning_while_idle(tmp_path):
    (used,) = run_script(IDLE, tmp_path)
    assert float(used) < 0.02


IDLE = """
import os, time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads spin for 30 ms when they are new
from rnnfast import _kernels

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, range(os.cpu_count()))
_kernels.try_gang(12, 50, 2)  # no more than there are CPUs: only then does a worker spin at all
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


# ---- other processes -----------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_fork_while_others_run(tmp_path):
    """Children forked at any moment of other threads' runs have a pool that works."""
    assert run_script(FORKS, tmp_path) == ["0"] * 30


FORKS = """
import os, signal, threading, warnings
import numpy as np
from rnnfast import _kernels

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: that is the test
want = _kernels.try_pool(40, 1, 500)[0]
stop = threading.Event()

def busy(n):
    while not stop.is_set():
        _kernels.try_pool(40, n, 500)
        _kernels.try_gang(12, 20, n)

threads = [threading.Thread(target=busy, args=(n,)) for n in (2, 3, 7)]
[t.start() for t in threads]
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that hangs is killed
        good = all(np.array_equal(_kernels.try_pool(40, n, 500)[0], want) for n in (1, 2, 3, 7))
        os._exit(not (good and _kernels.try_gang(12, 20, 3)[1] == 3))
    print(os.waitpid(pid, 0)[1])
stop.set()
[t.join() for t in threads]
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    assert run_script(PROCESSES.replace("METHOD", method), tmp_path) == ["True"] * 8


PROCESSES = """
import multiprocessing
import warnings
from rnnfast import _kernels

def work(n):
    return int(_kernels.try_pool(40, n, 500)[0].sum()), _kernels.try_gang(12, 20, n)[1]

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    counts = [1, 2, 3, 7] * 2
    want = [work(n) for n in counts]
    with multiprocessing.get_context("METHOD").Pool(2) as pool:
        for n, got, expected in zip(counts, pool.map(work, counts), want):
            print(got == expected)
"""


def test_joblib(tmp_path):
    """Its processes and its threads; the processes take the limit that joblib gives them."""
    pytest.importorskip("joblib")
    assert run_script(JOBLIB, tmp_path) == ["True"] * 3


JOBLIB = """
import os
import joblib
from rnnfast import _kernels, get_num_threads

def work(n):
    return int(_kernels.try_pool(40, n, 500)[0].sum()), _kernels.try_gang(12, 20, n)[0].sum()

def limit():
    return get_num_threads()

if __name__ == "__main__":
    want = [work(n) for n in (1, 2, 3, 7)]
    for backend in ("loky", "threading"):
        with joblib.parallel_config(backend, n_jobs=2):
            got = joblib.Parallel()(joblib.delayed(work)(n) for n in (1, 2, 3, 7))
        print(got == want)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count()))
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=2):
        found = set(joblib.Parallel()(joblib.delayed(limit)() for _ in range(4)))
    few = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(found == {min(2, few)})
"""


# ---- the interpreter's end -----------------------------------------------------------------------

def test_exit_while_a_thread_runs(tmp_path):
    assert run_script(EXIT, tmp_path) == ["end"]


EXIT = """
import threading
from rnnfast import _kernels

started = threading.Event()

def forever():
    while True:
        _kernels.try_pool(40, 3, 500)
        _kernels.try_gang(12, 20, 3)
        started.set()

threading.Thread(target=forever, daemon=True).start()
started.wait()
print("end")
"""


def test_two_directions_at_exit(tmp_path):
    assert run_script(AT_EXIT, tmp_path) == ["[0,", "1]"]


AT_EXIT = """
import atexit
import rnnfast
from rnnfast import _threads

rnnfast.set_num_threads(2)
_threads.run_pair(lambda k: k)
atexit.register(lambda: print(_threads.run_pair(lambda k: k)))
"""


# ---- limits --------------------------------------------------------------------------------------

def test_set_num_threads():
    rnnfast.set_num_threads(5)
    assert rnnfast.get_num_threads() == 5
    rnnfast.set_num_threads(None)
    assert 1 <= rnnfast.get_num_threads() <= os.cpu_count()
    rnnfast.set_num_threads(10**12)
    assert rnnfast.get_num_threads() > 10**6


@pytest.mark.parametrize(("n", "error"), [
    (0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), ("2", TypeError),
])  # fmt: skip
def test_set_num_threads_refuses(n, error):
    with pytest.raises(error, match=f"number of threads must be .*{n!r}"):
        rnnfast.set_num_threads(n)


def test_other_threads_see_the_limit():
    rnnfast.set_num_threads(5)
    found = []
    thread = threading.Thread(target=lambda: found.append(rnnfast.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [5]


def test_two_directions_share_the_limit():
    rnnfast.set_num_threads(5)
    assert _threads.run_pair(lambda k: (k, rnnfast.get_num_threads())) == [(0, 3), (1, 2)]
    assert rnnfast.get_num_threads() == 5
    with pytest.raises(ZeroDivisionError):
        _threads.run_pair(lambda k: 1 // k)
    assert rnnfast.get_num_threads() == 5
    rnnfast.set_num_threads(1)
    here = threading.get_ident()
    assert _threads.run_pair(lambda k: threading.get_ident()) == [here, here]


@pytest.mark.parametrize(("environ", "quota", "expected"), [
    ({}, None, (8, False)),
    ({}, 3, (3, False)),
    ({}, 20, (8, False)),
    ({"OMP_NUM_THREADS": "4"}, None, (4, False)),
    ({"OMP_NUM_THREADS": "4,2"}, 3, (3, False)),
    ({"OMP_NUM_THREADS": "16"}, None, (8, False)),
    ({"OMP_NUM_THREADS": "many"}, None, (8, False)),
    ({"OMP_NUM_THREADS": "0"}, None, (8, False)),
    ({"RNNFAST_NUM_THREADS": "16", "OMP_NUM_THREADS": "1"}, 2, (16, True)),
    ({"RNNFAST_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 2, (1, False)),
])  # fmt: skip
def test_default(monkeypatch, environ, quota, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert _threads.default_threads(environ, quota) == expected


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5"])
def test_default_refuses_nonsense(value):
    with pytest.raises(ValueError, match=f"RNNFAST_NUM_THREADS must be .*{value}"):
        _threads.default_threads({"RNNFAST_NUM_THREADS": value}, None)


LIMIT = "import rnnfast; print(rnnfast.get_num_threads())"


@pytest.mark.parametrize(("env", "expected"), [
    ({"RNNFAST_NUM_THREADS": "11"}, "11"),
    ({"OMP_NUM_THREADS": "1"}, "1"),
    ({"RNNFAST_NUM_THREADS": "11", "OMP_NUM_THREADS": "1"}, "11"),
])  # fmt: skip
def test_environment(tmp_path, env, expected):
    assert run_script(LIMIT, tmp_path, **env) == [expected]


@pools
@linux
def test_affinity(tmp_path):
    """The mask is read again at each call, and the workers follow the caller."""
    if len(os.sched_getaffinity(0)) < 2 and (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU")
    assert run_script(AFFINITY, tmp_path) == ["True"] * 5


AFFINITY = """
import glob, os
import rnnfast
from rnnfast import _kernels, _threads

def workers():
    tasks = [p for p in glob.glob("/proc/self/task/*") if open(p + "/comm").read() == "rnnfast\\n"]
    return [os.sched_getaffinity(int(os.path.basename(p))) for p in tasks]

os.sched_setaffinity(0, range(os.cpu_count()))
every = os.sched_getaffinity(0)
most = _threads.cgroup_cpus() or len(every)
first, last = {min(every)}, {max(every)}
print(rnnfast.get_num_threads() == min(len(every), most))
os.sched_setaffinity(0, first)
print(rnnfast.get_num_threads() == 1)
_kernels.try_gang(12, 20, 3)
print(workers() == [first] * 2)
os.sched_setaffinity(0, last)
_kernels.try_gang(12, 20, 3)
print(workers() == [last] * 2)
os.sched_setaffinity(0, every)
print(rnnfast.get_num_threads() == min(len(every), most))
"""


@pytest.mark.parametrize(("text", "cpus"), [
    ("max 100000\n", None), ("100000 100000\n", 1), ("150000 100000\n", 2), ("5000 100000\n", 1),
    ("400000 100000\n", 4), ("400001 100000\n", 5), ("-1\n 100000\n", None), ("50000\n 20000\n", 3),
    ("", None), (" ", None), ("max", None), ("100 0", None), ("nonsense 7", None),
])  # fmt: skip
def test_quota(text, cpus):
    assert _threads.quota_cpus(text) == cpus


def tree(root, **files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(("files", "cpus"), [
    # version 2: the strictest of the group and those above it
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
      "sys/fs/cgroup/a/cpu.max": "250000 100000\n"}, 3),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
    # a container sees its own group as the root
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    # version 1
    ({"proc/self/cgroup": "3:cpuset:/x\n2:cpu,cpuacct:/a:b\n0::/\n",
      "sys/fs/cgroup/cpu,cpuacct/a:b/cpu.cfs_quota_us": "150000\n",
      "sys/fs/cgroup/cpu,cpuacct/a:b/cpu.cfs_period_us": "50000\n"}, 3),
    # version 1 in a container: the path is the host's, the mount begins at the container's group
    ({"proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n",
      "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ({"proc/self/cgroup": "1:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
    # the group of another controller does not count
    ({"proc/self/cgroup": "5:cpuset:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
      "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}, None),
    ({}, None),
])  # fmt: skip
def test_cgroup(tmp_path, files, cpus):
    assert _threads.cgroup_cpus(tree(tmp_path, **files)) == cpus


def test_cgroup_of_this_machine():
    assert (_threads.cgroup_cpus() or 1) >= 1


# ---- threadpoolctl -------------------------------------------------------------------------------

@pytest.mark.parametrize("order", ["threadpoolctl, rnnfast", "rnnfast, threadpoolctl"])
def test_threadpoolctl(tmp_path, order):
    """It sees the threads whichever was imported first, limits them, and undoes that: afterwards
    what was set is what was before, a default that follows the affinity mask included."""
    pytest.importorskip("threadpoolctl", minversion="3.2")
    code = f"import {order}\n{CONTROLLED}"
    expected = [rnnfast.__version__, "5", "1", "3", "1", "5", "True", "1", "True", "loader"]
    assert run_script(code, tmp_path) == expected


CONTROLLED = """
import os

def info():
    (found,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "rnnfast"]
    return found

print(info()["version"])
rnnfast.set_num_threads(5)
print(info()["num_threads"])
with threadpoolctl.threadpool_limits(1):
    print(rnnfast.get_num_threads())
    with threadpoolctl.threadpool_limits(3, user_api="rnnfast"):
        print(rnnfast.get_num_threads())
    print(rnnfast.get_num_threads())
print(rnnfast.get_num_threads())

rnnfast.set_num_threads(None)
pinned = hasattr(os, "sched_setaffinity")
if pinned:
    os.sched_setaffinity(0, range(os.cpu_count()))
before = rnnfast.get_num_threads()
with threadpoolctl.threadpool_limits(7):
    pass
print(rnnfast.get_num_threads() == before)
if pinned:
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
print(rnnfast.get_num_threads() if pinned else 1)
if pinned:
    os.sched_setaffinity(0, every)
print(rnnfast.get_num_threads() == before)
print("loader" if "Source" in type(threadpoolctl.__spec__.loader).__name__ else "wrapped")
"""


# ---- the pool in C, under the thread sanitizer ---------------------------------------------------

def build(tmp_path, *flags):
    if shutil.which("cc") is None or not (ROOT / "csrc" / "pool.c").exists():
        pytest.skip("no cc, or no csrc/ beside tests/")
    trial, program = tmp_path / "trial.c", tmp_path / "pool_stress"
    trial.write_text("int main(void) { return 0; }\n")
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # another sanitizer's
    compiled = subprocess.run(["cc", *flags, trial, "-o", tmp_path / "trial"], capture_output=True,
                              env=plain)  # fmt: skip
    if compiled.returncode or subprocess.run([tmp_path / "trial"], env=plain).returncode:
        pytest.skip(f"{flags} does not work here")
    subprocess.run(["cc", "-std=c11", "-O1", "-g", *flags, "-I", ROOT / "csrc",
                    ROOT / "tests" / "pool_stress.c", ROOT / "csrc" / "pool.c",
                    ROOT / "csrc" / "cpu.c", "-pthread", "-o", program], check=True,
                   env=plain)  # fmt: skip
    return subprocess.run([program], capture_output=True, text=True, timeout=300, env=plain)


@pools
@pytest.mark.parametrize("flags", [[], ["-fsanitize=thread"], ["-fsanitize=address,undefined"]],
                         ids=["plain", "thread", "address"])  # fmt: skip
def test_stress(tmp_path, flags):
    done = build(tmp_path, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
