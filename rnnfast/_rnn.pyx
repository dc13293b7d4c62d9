"""The tanh or ReLU recurrence over BLAS. Twins: rnnfast.reference.rnn, which explains the
arguments; equations and labels: docs/math.md."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._product cimport gemm, gemm_weights, inside, pack, packed_data
from rnnfast._seq cimport Packed, empty, matrix, optional_matrix, optional_vector, time_of
from rnnfast._types cimport real_t

from rnnfast._dense import (
    column_sum,
    input_product,
    input_product_backward,
    total_bias,
    weight_product,
)

from rnnfast import _product

cnp.import_array()
_product.ready()


cdef void forward(const Packed *q, Py_ssize_t H, K.rf_act f, const real_t *w_hh,
                  const real_t *packed, real_t *a, Py_ssize_t I, const real_t *x,
                  const real_t *packed_ih, const real_t *start, real_t *h, const real_t *mask,
                  real_t *hm, real_t *new, real_t *h_prev, real_t *y,
                  Py_ssize_t ldy) noexcept nogil:
    """a: [N,H] W_ih x + b, or NULL where the steps read x: [N,I] themselves and their chains begin
    at start: [H] or NULL; h: [B,H] state, in and out; mask: [B,H] or NULL; hm: [B,H] scratch for
    the masked state, h itself without a mask; new: [B,H] scratch; h_prev: [N,H] out, or NULL."""
    cdef Py_ssize_t s, t, n, row
    cdef const real_t *x_t
    for s in range(q.T):
        t = time_of(q, s)
        n = q.sizes[t]
        row = q.offsets[t]
        _seq.zero_reset_rows(q, t, H, h)
        if mask != NULL:
            K.multiply(n * H, h, mask, hm)
        if h_prev != NULL:
            memcpy(h_prev + row * H, hm, n * H * sizeof(real_t))
        if packed != NULL:
            x_t = x + row * I if a == NULL else NULL
            K.rnn_step(n, H, 0, H, f, I, x_t, packed_ih, start if a == NULL else a + row * H,
                       0 if a == NULL else H, hm, packed, new, y + row * ldy, ldy)  # F1 .. F3
            memcpy(h, new, n * H * sizeof(real_t))
            continue
        gemm_weights(n, H, H, hm, H, w_hh, NULL, <real_t>1, a + row * H, H)  # F2
        K.rnn_forward(n, H, f, a + row * H, h, y + row * ldy, ldy)  # F3


cdef void backward(const Packed *q, Py_ssize_t H, K.rf_act f, const real_t *w_hh,
                   const real_t *h, const real_t *dy, const real_t *mask, real_t *dh,
                   real_t *da) noexcept nogil:
    """h: [N,H] the states; dy: [N,H] or NULL; dh: [B,H] in dE/dh_n, out dE/dh0; da: [N,H] out."""
    cdef Py_ssize_t s, t, n, row
    for s in range(q.T - 1, -1, -1):
        t = time_of(q, s)
        n = q.sizes[t]
        row = q.offsets[t]
        K.rnn_backward(n, H, f, h + row * H, dh, dy + row * H if dy != NULL else NULL, H,
                       da + row * H)  # B1, B2
        gemm(False, n, H, H, da + row * H, H, w_hh, H, <real_t>0, dh, H)  # B3
        if mask != NULL:
            K.multiply(n * H, dh, mask, dh)
        _seq.zero_reset_rows(q, t, H, dh)


def rnn_forward(x, batch_sizes, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh",
                h_mask=None, resets=None, reverse=False, keep=True, out=None):
    """Twin of `rnnfast.reference.rnn.rnn_forward`."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(x), B = len(h0), H = w_hh.shape[0], ldy
    cdef Packed q
    cdef K.rf_act f = K.activation(nonlinearity)
    offsets = _seq.offsets_of(batch_sizes, B, N)
    _seq.pack(&q, batch_sizes, offsets, resets, B, N, reverse)
    cdef void *w = matrix(w_hh, "w_hh", num, H, H)
    matrix(h0, "h0", num, B, H)
    h = h0.copy()
    y = empty(N, H, num) if out is None else out
    cdef void *py = _seq.strided(y, "out", num, N, H, &ldy)
    h_prev = empty(N, H, num) if keep else None
    hm = h if h_mask is None else empty(B, H, num)
    cdef void *pm = optional_matrix(h_mask, "h_mask", num, B, H)
    cdef void *phm = matrix(hm, "hm", num, B, H)
    cdef Py_ssize_t I = w_ih.shape[1]
    matrix(w_ih, "w_ih", num, H, I)
    cdef bint inputs_inside = inside(x, q.T)
    bias = total_bias(b_ih, b_hh)
    a = None if inputs_inside else input_product(x, w_ih, bias)  # F1
    packed, packed_ih = pack(w_hh), pack(w_ih) if inputs_inside else None
    new = empty(B, H, num)
    cdef void *pp = packed_data(packed)
    cdef void *pi = packed_data(packed_ih)
    cdef void *px = matrix(x, "x", num, N, I) if inputs_inside else NULL
    cdef void *pb = optional_vector(bias, "bias", num, H)
    cdef void *pn = matrix(new, "new", num, B, H)
    cdef void *pa = optional_matrix(a, "a", num, N, H)
    cdef void *ph = matrix(h, "h", num, B, H)
    cdef void *php = optional_matrix(h_prev, "h_prev", num, N, H)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            forward[float](&q, H, f, <float *>w, <float *>pp, <float *>pa, I, <float *>px,
                           <float *>pi, <float *>pb, <float *>ph, <float *>pm, <float *>phm,
                           <float *>pn, <float *>php, <float *>py, ldy)
        else:
            forward[double](&q, H, f, <double *>w, <double *>pp, <double *>pa, I, <double *>px,
                            <double *>pi, <double *>pb, <double *>ph, <double *>pm, <double *>phm,
                            <double *>pn, <double *>php, <double *>py, ldy)
        K.leave(mode)
    if not keep:
        return y, h, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "reverse": reverse, "h_mask": h_mask, "nonlinearity": nonlinearity,
            "h": np.array(y, order="C"), "h_prev": h_prev}
    return y, h, tape


def rnn_backward(tape, dy, dh_n, grads, need_dx=True):
    """Twin of `rnnfast.reference.rnn.rnn_backward`."""
    w_hh = tape["w_hh"]
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(tape["x"]), B = len(dh_n), H = w_hh.shape[0]
    cdef Packed q
    cdef K.rf_act f = K.activation(tape["nonlinearity"])
    offsets = _seq.offsets_of(tape["batch_sizes"], B, N)
    _seq.pack(&q, tape["batch_sizes"], offsets, tape["resets"], B, N, tape["reverse"])
    cdef void *w = matrix(w_hh, "w_hh", num, H, H)
    cdef void *ph = matrix(tape["h"], "h", num, N, H)
    cdef void *pdy = optional_matrix(dy, "dy", num, N, H)
    cdef void *pm = optional_matrix(tape["h_mask"], "h_mask", num, B, H)
    matrix(dh_n, "dh_n", num, B, H)
    matrix(grads["w_hh"], "dw_hh", num, H, H, True)
    dh = dh_n.copy()
    da = empty(N, H, num)
    cdef void *pdh = matrix(dh, "dh", num, B, H)
    cdef void *pda = matrix(da, "da", num, N, H)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            backward[float](&q, H, f, <float *>w, <float *>ph, <float *>pdy, <float *>pm,
                            <float *>pdh, <float *>pda)
        else:
            backward[double](&q, H, f, <double *>w, <double *>ph, <double *>pdy, <double *>pm,
                             <double *>pdh, <double *>pda)
        K.leave(mode)
    weight_product(da, tape["h_prev"], grads["w_hh"])  # B4
    for bias in ("b_ih", "b_hh"):
        if bias in grads:
            column_sum(da, grads[bias])  # B5
    dx = input_product_backward(tape["x"], tape["w_ih"], da, grads["w_ih"], need_dx)  # B6
    return dx, dh
