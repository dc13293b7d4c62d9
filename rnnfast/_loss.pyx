"""Losses with their gradients. Twins: rnnfast.reference.loss; labels: docs/math.md."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._seq cimport data, optional

cnp.import_array()


def softmax(z):
    """Twin of `rnnfast.reference.loss.softmax`."""
    cdef int num = _seq.typenum(z)
    cdef Py_ssize_t N = z.shape[0], V = z.shape[1]
    cdef void *pz = data(z, "z", num, (N, V))
    p = np.empty((N, V), z.dtype)
    cdef void *pp = data(p, "p", num, (N, V))
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.softmax(N, V, <float *>pz, <float *>pp)
        else:
            K.softmax(N, V, <double *>pz, <double *>pp)
        K.leave(mode)
    return p


def softmax_cross_entropy(z, targets, scale, weight=None, double smoothing=0.0, dz=None):
    """Twin of `rnnfast.reference.loss.softmax_cross_entropy`."""
    cdef int num = _seq.typenum(z)
    cdef Py_ssize_t N = z.shape[0], V = z.shape[1]
    cdef void *pz = data(z, "z", num, (N, V))
    cdef void *py = data(targets, "targets", cnp.NPY_INT64, (N,))
    cdef void *ps = data(scale, "scale", num, (N,))
    cdef void *pw = optional(weight, "weight", cnp.NPY_DOUBLE, (N,))
    cdef void *pd = optional(dz, "dz", num, (N, V), True)
    if N and targets.max() >= V:
        raise ValueError(f"targets must be below {V}, the number of classes; got {targets.max()}")
    loss = np.empty(N, z.dtype)
    cdef void *pl = data(loss, "loss", num, (N,))
    cdef double total
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            total = K.softmax_cross_entropy(N, V, <float *>pz, <int64_t *>py, <float>smoothing,
                                            <float *>ps, <double *>pw, <float *>pl, <float *>pd)
        else:
            total = K.softmax_cross_entropy(N, V, <double *>pz, <int64_t *>py, smoothing,
                                            <double *>ps, <double *>pw, <double *>pl,
                                            <double *>pd)
        K.leave(mode)
    return total, loss


def sigmoid_cross_entropy(z, target, double scale=1.0):
    """Twin of `rnnfast.reference.loss.sigmoid_cross_entropy`."""
    cdef int num = _seq.typenum(z)
    cdef Py_ssize_t N = z.shape[0], V = z.shape[1]
    cdef void *pz = data(z, "z", num, (N, V))
    cdef void *pt = data(target, "target", num, (N, V))
    loss, dz = np.empty(N, z.dtype), np.empty((N, V), z.dtype)
    cdef void *pl = data(loss, "loss", num, (N,))
    cdef void *pd = data(dz, "dz", num, (N, V))
    cdef double total
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            total = K.sigmoid_cross_entropy(N, V, <float *>pz, <float *>pt, <float>scale,
                                            <float *>pl, <float *>pd)
        else:
            total = K.sigmoid_cross_entropy(N, V, <double *>pz, <double *>pt, scale,
                                            <double *>pl, <double *>pd)
        K.leave(mode)
    return total, loss, dz


def quadratic_error(y, target, double scale=1.0):
    """Twin of `rnnfast.reference.loss.quadratic_error`."""
    cdef int num = _seq.typenum(y)
    cdef Py_ssize_t N = y.shape[0], V = y.shape[1]
    cdef void *py = data(y, "y", num, (N, V))
    cdef void *pt = data(target, "target", num, (N, V))
    loss, dy = np.empty(N, y.dtype), np.empty((N, V), y.dtype)
    cdef void *pl = data(loss, "loss", num, (N,))
    cdef void *pd = data(dy, "dy", num, (N, V))
    cdef double total
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            total = K.quadratic_error(N, V, <float *>py, <float *>pt, <float>scale, <float *>pl,
                                      <float *>pd)
        else:
            total = K.quadratic_error(N, V, <double *>py, <double *>pt, scale, <double *>pl,
                                      <double *>pd)
        K.leave(mode)
    return total, loss, dy
