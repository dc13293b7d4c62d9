from libc.stdint cimport int64_t, uint64_t
from rnnfast._types cimport real_t


cdef extern from "rnnfast.h" nogil:
    enum:
        RF_SIGMOID
        RF_TANH
        RF_RELU
        RF_HARD_SIGMOID
    ctypedef struct rf_act:
        int kind
        double alpha
        double beta
    ctypedef struct rf_lstm:
        rf_act gate
        int coupled
        double clip
    ctypedef uint64_t rf_fpmode

ctypedef const rf_lstm *const_lstm

include "_kernel_tables.pxi"

# The floating-point mode of everything that is not inside BLAS: denormals flushed unless the
# caller asked to keep them (docs/arithmetic.md, section 5).
cdef rf_fpmode enter() noexcept nogil
cdef rf_fpmode gradual() noexcept nogil
cdef void leave(rf_fpmode before) noexcept nogil

cdef rf_act activation(object spec) except *
