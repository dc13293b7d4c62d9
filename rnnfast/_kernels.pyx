"""The kernels of csrc/ for the rest of the package: one function per row of kernels.inc, over
both dtypes, calling the table of the instruction set in use."""

import os

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t
from rnnfast._types cimport real_t

cnp.import_array()


cdef extern from "rnnfast.h" nogil:
    rf_fpmode rf_ftz_enter()
    rf_fpmode rf_ftz_keep()
    void rf_ftz_leave(rf_fpmode before)
    int rf_isa_count()
    const char *rf_isa_name(int k)
    int rf_isa_runs(int k)
    const rf_table_f32 *rf_isa_f32(int k)
    const rf_table_f64 *rf_isa_f64(int k)
    int rf_isa_best()
    int rf_kernel_count()
    const char *rf_kernel_name(int k)

cdef extern from "cpu.h" nogil:
    const int rf_looks_ahead
    void rf_cpu_look()

cdef extern from "pool.h" nogil:
    void rf_pool_run(int tasks, int threads, rf_task *f, void *arg)
    int rf_pool_run_gang(int threads, rf_gang_task *f, void *arg)
    void rf_pool_try_anew()
    int rf_pool_barrier(rf_gang *gang)
    int rnnfast_get_num_threads()
    void rnnfast_set_num_threads(int n)
    void rf_threads_default(int most, int exact)
    int rf_threads_share(int n)

cdef const rf_table_f32 *f32 = rf_isa_f32(0)
cdef const rf_table_f64 *f64 = rf_isa_f64(0)
cdef bint flush = True
cdef bint registers_32 = False
cdef bint gates_apart = False

include "_kernel_calls.pxi"


cdef rf_fpmode enter() noexcept nogil:
    return rf_ftz_enter() if flush else rf_ftz_keep()


cdef rf_fpmode gradual() noexcept nogil:
    return rf_ftz_keep()


cdef void leave(rf_fpmode before) noexcept nogil:
    rf_ftz_leave(before)


# ---- threads -------------------------------------------------------------------------------------

cdef int num_threads() noexcept nogil:
    return rnnfast_get_num_threads()


cdef void pool_run(int tasks, int threads, rf_task *f, void *arg) noexcept nogil:
    rf_pool_run(tasks, threads, f, arg)


cdef int pool_run_gang(int threads, rf_gang_task *f, void *arg) noexcept nogil:
    return rf_pool_run_gang(threads, f, arg)


cdef int pool_barrier(rf_gang *gang) noexcept nogil:
    return rf_pool_barrier(gang)


def get_threads():
    """Threads that a call on this thread may use."""
    return rnnfast_get_num_threads()


def set_threads(int n):
    """Let calls use n threads; n < 1, or the default's number: the default again."""
    rnnfast_set_num_threads(n)


def set_default_threads(int most, bint exact):
    """The default is `most`, or unless exact the CPUs that the calling thread may use where those
    are fewer."""
    rf_threads_default(most, exact)


def set_share(int n):
    """Let calls on this thread use n threads at most; 0: as on any. Returns what was before."""
    return rf_threads_share(n)


# ---- choice of instruction set and of the denormals' treatment --------------------------------

cdef int isa_index(str name) except -1:
    cdef int k
    for k in range(rf_isa_count()):
        if rf_isa_name(k).decode() == name:
            if not rf_isa_runs(k):
                raise ValueError(f"this CPU does not run {name!r}; it runs {isas()}")
            return k
    raise ValueError(f"no instruction set {name!r} in this build; this CPU runs {isas()}")


def isas():
    """Names of the instruction sets that this build has and this CPU runs, plainest first."""
    return [rf_isa_name(k).decode() for k in range(rf_isa_count()) if rf_isa_runs(k)]


def get_isa():
    """Name of the instruction set in use."""
    return f32.isa.decode()


def set_isa(str name=None):
    """Use the instruction set `name`; None: the widest that this CPU runs."""
    global f32, f64, registers_32, gates_apart
    cdef int k = rf_isa_best() if name is None else isa_index(name)
    f32 = rf_isa_f32(k)
    f64 = rf_isa_f64(k)
    registers_32 = get_isa() == "avx512"
    gates_apart = get_isa() == "avx2"


cdef bint many_registers() noexcept nogil:
    return registers_32


rf_cpu_look()


cdef bint looks_ahead() noexcept nogil:
    """Whether this CPU reads ahead by itself (csrc/cpu.h)."""
    return rf_looks_ahead


cdef int layout() noexcept nogil:
    """How weights are packed now: what one instruction set packed is not for each other."""
    return gates_apart


def get_denormals():
    """"flush" or "keep"."""
    return "flush" if flush else "keep"


def set_denormals(str mode):
    """"flush": what is below the smallest normal is 0 in all kernels; "keep": gradual underflow."""
    global flush
    if mode not in ("flush", "keep"):
        raise ValueError(f"denormals must be 'flush' or 'keep', got {mode!r}")
    flush = mode == "flush"


# ---- activations by name -----------------------------------------------------------------------

# name -> (kind, alpha, beta): min(max(alpha x + beta, 0), 1) for the hard sigmoids
ACTIVATIONS = {
    "sigmoid": (RF_SIGMOID, 0.0, 0.0),
    "tanh": (RF_TANH, 0.0, 0.0),
    "relu": (RF_RELU, 0.0, 0.0),
    "hard_sigmoid": (RF_HARD_SIGMOID, 1.0 / 6.0, 0.5),
    "hard_sigmoid_onnx": (RF_HARD_SIGMOID, 0.2, 0.5),
}


cdef rf_act activation(object spec) except *:
    cdef rf_act act
    if spec not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {spec!r}")
    act.kind, act.alpha, act.beta = ACTIVATIONS[spec]
    return act


# ---- for tests and benchmarks --------------------------------------------------------------------

def kernel_names():
    """The rows of csrc/kernels.inc, in order."""
    return [rf_kernel_name(k).decode() for k in range(rf_kernel_count())]


def address(str isa, str dtype, str name):
    """Address of a kernel, for a ctypes prototype made from csrc/kernels.inc."""
    cdef int k = isa_index(isa)
    cdef Py_ssize_t row = kernel_names().index(name) + 1  # a table starts with its name
    if dtype == "float32":
        return <size_t>(<void **>rf_isa_f32(k))[row]
    return <size_t>(<void **>rf_isa_f64(k))[row]


def fpmode_addresses():
    """Addresses of rf_ftz_enter, rf_ftz_keep and rf_ftz_leave."""
    return <size_t>&rf_ftz_enter, <size_t>&rf_ftz_keep, <size_t>&rf_ftz_leave


cdef struct pool_trial:
    int64_t *done
    int *worker
    Py_ssize_t n


cdef void trial_task(void *arg, int task, int worker) noexcept nogil:
    cdef pool_trial *trial = <pool_trial *>arg
    cdef int64_t x = task
    cdef Py_ssize_t _
    for _ in range(trial.n):
        x = (x * 1103515245 + 12345) & 0x7fffffff
    trial.done[task] += x
    trial.worker[task] = worker


def try_pool(int tasks, int threads, Py_ssize_t n):
    """A run of the pool: per task a number that does not depend on threads (n steps of a random
    generator that starts at the task), and the worker that did it."""
    cdef cnp.ndarray done = np.zeros(tasks, np.int64)
    cdef cnp.ndarray worker = np.full(tasks, -1, np.intc)
    cdef pool_trial trial
    trial.done = <int64_t *>cnp.PyArray_DATA(done)
    trial.worker = <int *>cnp.PyArray_DATA(worker)
    trial.n = n
    with nogil:
        rf_pool_run(tasks, threads, trial_task, &trial)
    return done, worker


cdef struct gang_trial:
    uint64_t *h
    int units, steps


cdef void trial_gang(void *arg, int worker, int threads, rf_gang *gang) noexcept nogil:
    cdef gang_trial *trial = <gang_trial *>arg
    cdef int n = trial.units, t, j, k
    cdef uint64_t sum
    for t in range(trial.steps):
        j = worker
        while j < n:
            sum = <uint64_t>j + 1
            for k in range(n):
                sum = sum * 31 + trial.h[t * n + k]
            trial.h[(t + 1) * n + j] = sum
            j += threads
        rf_pool_barrier(gang)


def try_gang(int units, int steps, int threads):
    """A recurrence over integers, its units split over a gang with a barrier per step: the states,
    (steps + 1, units), and how many threads there were."""
    cdef cnp.ndarray h = np.zeros((steps + 1, units), np.uint64)
    cdef gang_trial trial
    cdef int got
    trial.h = <uint64_t *>cnp.PyArray_DATA(h)
    trial.units = units
    trial.steps = steps
    with nogil:
        rf_pool_try_anew()  # the gang before may have found no CPU
        got = rf_pool_run_gang(threads, trial_gang, &trial)
    return h, got


UNARY = ("exp", "tanh", "sigmoid", "relu", "log1p")


cdef void apply_named(str name, Py_ssize_t n, real_t *x, real_t *y) except *:
    cdef rf_fpmode mode = enter()
    if name == "exp":
        exp(n, x, y)
    elif name == "tanh":
        tanh(n, x, y)
    elif name == "sigmoid":
        sigmoid(n, x, y)
    elif name == "relu":
        relu(n, x, y)
    else:
        log1p(n, x, y)
    leave(mode)


def apply(str name, x, str isa=None, str denormals=None):
    """f(x) element-wise by the kernel `name` of UNARY, as a new array of x's shape and dtype."""
    if name not in UNARY:
        raise ValueError(f"name must be one of {UNARY}, got {name!r}")
    before = get_isa(), get_denormals()
    cdef cnp.ndarray a = np.array(x, order="C", copy=True)
    cdef int kind = cnp.PyArray_TYPE(a)
    if kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE:
        raise TypeError(f"x must be float32 or float64, got {a.dtype}")
    if isa is not None:
        set_isa(isa)
    if denormals is not None:
        set_denormals(denormals)
    try:
        if kind == cnp.NPY_FLOAT:
            apply_named[float](name, cnp.PyArray_SIZE(a), <float *>cnp.PyArray_DATA(a),
                               <float *>cnp.PyArray_DATA(a))
        else:
            apply_named[double](name, cnp.PyArray_SIZE(a), <double *>cnp.PyArray_DATA(a),
                                <double *>cnp.PyArray_DATA(a))
    finally:
        set_isa(before[0])
        set_denormals(before[1])
    return a


set_isa(os.environ.get("RNNFAST_ISA") or None)
set_denormals(os.environ.get("RNNFAST_DENORMALS") or "flush")
