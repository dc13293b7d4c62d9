"""Gradient clipping. Twins: rnnfast.reference.clip."""

import math

import numpy as np

cimport numpy as cnp

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._seq cimport data

cnp.import_array()


cdef double squares(int num, Py_ssize_t n, double alpha, void *p) noexcept nogil:
    if num == cnp.NPY_FLOAT:
        return K.sum_squares(n, alpha, <float *>p)
    return K.sum_squares(n, alpha, <double *>p)


cdef double most(int num, Py_ssize_t n, void *p) noexcept nogil:
    if num == cnp.NPY_FLOAT:
        return K.max_abs(n, <float *>p)
    return K.max_abs(n, <double *>p)


def norm(g):
    """Euclidean norm of an array in float64, summed so that no square overflows or vanishes.

    Where g holds a NaN the norm is NaN, otherwise where it holds an infinity it is inf.
    """
    cdef int num = _seq.typenum(g)
    cdef void *p = data(g, "g", num, g.shape)
    cdef Py_ssize_t n = g.size
    cdef double top, total
    cdef K.rf_fpmode mode = K.enter()
    top = most(num, n, p)
    K.leave(mode)
    if top == 0 or not math.isfinite(top):
        return top
    # a power of two, so the products are exact; kept normal itself, hence the bound
    cdef double alpha = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(top)[1])))
    mode = K.enter()
    total = squares(num, n, alpha, p)
    K.leave(mode)
    return math.sqrt(total) / alpha


def scale(g, double factor):
    """g *= factor, in place."""
    cdef int num = _seq.typenum(g)
    cdef void *p = data(g, "g", num, g.shape, True)
    cdef Py_ssize_t n = g.size
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.scale(n, <float>factor, <float *>p)
        else:
            K.scale(n, factor, <double *>p)
        K.leave(mode)


def clip_by_value(g, double limit):
    """Twin of `rnnfast.reference.clip.clip_by_value`."""
    cdef int num = _seq.typenum(g)
    cdef void *p = data(g, "g", num, g.shape, True)
    cdef Py_ssize_t n = g.size
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.clamp(n, <float>limit, <float *>p)
        else:
            K.clamp(n, limit, <double *>p)
        K.leave(mode)


def clip_by_norm(arrays, double max_norm):
    """Twin of `rnnfast.reference.clip.clip_by_norm`."""
    total = norm(np.array([norm(g) for g in arrays], np.float64))
    if math.isfinite(total) and max_norm < total + 1e-6:
        for g in arrays:
            scale(g, max_norm / (total + 1e-6))
    return total
