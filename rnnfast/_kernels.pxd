from libc.stdint cimport int64_t, uint64_t
from rnnfast._types cimport real_t


cdef extern from "rnnfast.h" nogil:
    enum:
        RF_SIGMOID
        RF_TANH
        RF_RELU
        RF_HARD_SIGMOID
        RF_IDENTITY
    ctypedef struct rf_act:
        int kind
        double alpha
        double beta
    ctypedef struct rf_lstm:
        rf_act gate
        int coupled
        double clip
    ctypedef uint64_t rf_fpmode
    void rf_fetch(const void *p)

# csrc/pool.h says what each promises
cdef extern from "pool.h" nogil:
    ctypedef struct rf_gang
    ctypedef void rf_task(void *arg, int task, int worker) noexcept nogil
    ctypedef void rf_gang_task(void *arg, int worker, int threads, rf_gang *gang) noexcept nogil

ctypedef const rf_lstm *const_lstm

include "_kernel_tables.pxi"

# The floating-point mode of everything that is not inside BLAS: denormals flushed unless the
# caller asked to keep them (docs/arithmetic.md, section 5).
cdef rf_fpmode enter() noexcept nogil
cdef rf_fpmode gradual() noexcept nogil
cdef void leave(rf_fpmode before) noexcept nogil

# The thread pool, and how many threads a call may use (a system call: small work need not ask).
cdef int num_threads() noexcept nogil
cdef void pool_run(int tasks, int threads, rf_task *f, void *arg) noexcept nogil
cdef int pool_run_gang(int threads, rf_gang_task *f, void *arg) noexcept nogil
cdef int pool_barrier(rf_gang *gang) noexcept nogil

# Whether the instruction set in use has 32 vector registers.
cdef bint many_registers() noexcept nogil
cdef bint looks_ahead() noexcept nogil
cdef int layout() noexcept nogil

cdef rf_act activation(object spec) except *
