"""One step of each optimiser on one array, in place. Twins: rnnfast.reference.optim."""

cimport numpy as cnp

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._seq cimport data, optional

cnp.import_array()


def sgd_step(g, p, buf, double lr, double momentum, double keep, double decay, bint nesterov):
    """Twin of `rnnfast.reference.optim.sgd_step`."""
    cdef int num = _seq.typenum(p)
    cdef Py_ssize_t n = p.size
    cdef void *pg = data(g, "g", num, p.shape)
    cdef void *pp = data(p, "p", num, p.shape, True)
    cdef void *pb = optional(buf, "buf", num, p.shape, True)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.sgd_step(n, <float *>pg, <float *>pp, <float *>pb, <float>lr, <float>momentum,
                       <float>keep, <float>decay, nesterov)
        else:
            K.sgd_step(n, <double *>pg, <double *>pp, <double *>pb, lr, momentum, keep, decay,
                       nesterov)
        K.leave(mode)


def adam_step(g, p, m, v, vmax, double step, double beta1, double beta2, double root, double eps,
              double decay, double shrink):
    """Twin of `rnnfast.reference.optim.adam_step`."""
    cdef int num = _seq.typenum(p)
    cdef Py_ssize_t n = p.size
    cdef void *pg = data(g, "g", num, p.shape)
    cdef void *pp = data(p, "p", num, p.shape, True)
    cdef void *pm = data(m, "m", num, p.shape, True)
    cdef void *pv = data(v, "v", num, p.shape, True)
    cdef void *px = optional(vmax, "vmax", num, p.shape, True)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.adam_step(n, <float *>pg, <float *>pp, <float *>pm, <float *>pv, <float *>px,
                        <float>step, <float>beta1, <float>beta2, <float>root, <float>eps,
                        <float>decay, <float>shrink)
        else:
            K.adam_step(n, <double *>pg, <double *>pp, <double *>pm, <double *>pv, <double *>px,
                        step, beta1, beta2, root, eps, decay, shrink)
        K.leave(mode)


def rmsprop_step(g, p, v, buf, double lr, double alpha, double eps, double decay,
                 double momentum):
    """Twin of `rnnfast.reference.optim.rmsprop_step`."""
    cdef int num = _seq.typenum(p)
    cdef Py_ssize_t n = p.size
    cdef void *pg = data(g, "g", num, p.shape)
    cdef void *pp = data(p, "p", num, p.shape, True)
    cdef void *pv = data(v, "v", num, p.shape, True)
    cdef void *pb = optional(buf, "buf", num, p.shape, True)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.rmsprop_step(n, <float *>pg, <float *>pp, <float *>pv, <float *>pb, <float>lr,
                           <float>alpha, <float>eps, <float>decay, <float>momentum)
        else:
            K.rmsprop_step(n, <double *>pg, <double *>pp, <double *>pv, <double *>pb, lr, alpha,
                           eps, decay, momentum)
        K.leave(mode)


def adagrad_step(g, p, v, double lr, double eps, double decay):
    """Twin of `rnnfast.reference.optim.adagrad_step`."""
    cdef int num = _seq.typenum(p)
    cdef Py_ssize_t n = p.size
    cdef void *pg = data(g, "g", num, p.shape)
    cdef void *pp = data(p, "p", num, p.shape, True)
    cdef void *pv = data(v, "v", num, p.shape, True)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.adagrad_step(n, <float *>pg, <float *>pp, <float *>pv, <float>lr, <float>eps,
                           <float>decay)
        else:
            K.adagrad_step(n, <double *>pg, <double *>pp, <double *>pv, lr, eps, decay)
        K.leave(mode)
