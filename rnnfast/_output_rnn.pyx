"""The recurrence through the output alone over BLAS or our own products. Twins:
rnnfast.reference.output_rnn, which explains the arguments; equations and labels: docs/math.md,
section 5."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._product cimport gemm, gemm_units, gemm_weights, pack, packed_data, panels
from rnnfast._seq cimport Packed, data, optional
from rnnfast._types cimport real_t

from rnnfast._dense import column_sum, input_product, input_product_backward, weight_product

from rnnfast import _product

cnp.import_array()
_product.ready()

OUTPUTS = ("linear", "softmax")


cdef void forward(const Packed *q, Py_ssize_t H, Py_ssize_t O, K.rf_act f, const real_t *w_oh,
                  const real_t *packed_oh, const real_t *w_ho, const real_t *packed_ho,
                  const real_t *b_o, real_t *a, real_t *o, real_t *o_prev, real_t *h, real_t *z,
                  real_t *p) noexcept nogil:
    """packed_oh, packed_ho: what `pack` made of the weights, or NULL; a: [N,H] U x + b; o: [B,O]
    last output, in and out; o_prev: [N,O] and h: [N,H] out; z: [N,O] out; p: [N,O] out, or NULL:
    the output is linear."""
    cdef Py_ssize_t t, n, row
    for t in range(q.T):
        n = q.sizes[t]
        row = q.offsets[t]
        _seq.zero_reset_units(q, t, O, 0, O, o)
        memcpy(o_prev + row * O, o, n * O * sizeof(real_t))
        gemm_weights(n, H, O, o, O, w_oh, packed_oh, <real_t>1, a + row * H, H)  # F2
        K.rnn_forward(n, H, f, a + row * H, h + row * H, <real_t *>NULL, H)  # F3
        _seq.fill_rows(n, O, b_o, z + row * O)
        gemm_weights(n, O, H, h + row * H, H, w_ho, packed_ho, <real_t>1, z + row * O, O)  # F4
        if p != NULL:
            K.softmax(n, O, z + row * O, p + row * O)  # F5
        memcpy(o, (p if p != NULL else z) + row * O, n * O * sizeof(real_t))


cdef void softmax_backward(Py_ssize_t n, Py_ssize_t O, const real_t *p, real_t *do) noexcept nogil:
    """B1: do = (do - sum_j do_j p_j) p per row, j ascending; p, do: [n,O]."""
    cdef Py_ssize_t i, j
    cdef real_t dot
    for i in range(n):
        dot = 0
        for j in range(O):
            dot = dot + do[i * O + j] * p[i * O + j]
        for j in range(O):
            do[i * O + j] = (do[i * O + j] - dot) * p[i * O + j]


cdef void backward(const Packed *q, Py_ssize_t H, Py_ssize_t O, K.rf_act f, const real_t *w_oh,
                   const real_t *panels_oh, const real_t *w_ho, const real_t *panels_ho,
                   const real_t *h, const real_t *p, real_t *do, real_t *dz, real_t *dh,
                   real_t *da) noexcept nogil:
    """panels_oh, panels_ho: what `panels` made of the weights, or NULL; h: [N,H]; p: [N,O] or NULL;
    do: [B,O] in dE/do_n, out dE/do0; dz: [N,O] in from the loss, out dE/dz; dh: [B,H] scratch;
    da: [N,H] out."""
    cdef Py_ssize_t t, n, row
    for t in range(q.T - 1, -1, -1):
        n = q.sizes[t]
        row = q.offsets[t]
        if p != NULL:
            softmax_backward(n, O, p + row * O, do)  # B1
        K.add(n * O, do, dz + row * O)  # B2
        if panels_ho == NULL:
            gemm(False, n, H, O, dz + row * O, O, w_ho, H, <real_t>0, dh, H)  # B3
        K.rnn_backward(n, H, 0, H, t & 1, n if panels_ho != NULL else 0, O, dz + row * O, O,
                       panels_ho, f, h + row * H, dh, <real_t *>NULL, H, da + row * H)  # B3, B4
        gemm_units(t & 1, n, 0, O, H, da + row * H, H, w_oh, panels_oh, <real_t>0, do, O)  # B5
        _seq.zero_reset_units(q, t, O, 0, O, do)


def output_rnn_forward(x, batch_sizes, o0, w_ih, w_oh, w_ho, b_h=None, b_o=None, *,
                       output="linear", resets=None, keep=True):
    """Twin of `rnnfast.reference.output_rnn.output_rnn_forward`."""
    cdef int num = _seq.typenum(w_ho)
    cdef Py_ssize_t N = len(x), B = len(o0), O = w_ho.shape[0], H = w_ho.shape[1]
    cdef Packed q
    cdef K.rf_act f = K.activation("tanh")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
    offsets = _seq.offsets_of(batch_sizes, B, N)
    _seq.pack(&q, batch_sizes, offsets, resets, B, N, False)
    cdef void *pwo = data(w_oh, "w_oh", num, (H, O))
    cdef void *pwh = data(w_ho, "w_ho", num, (O, H))
    cdef void *pbo = optional(b_o, "b_o", num, (O,))
    data(o0, "o0", num, (B, O))
    o = o0.copy()
    h = np.empty((N, H), w_ho.dtype)
    z, o_prev = np.empty((N, O), w_ho.dtype), np.empty((N, O), w_ho.dtype)
    p = np.empty((N, O), w_ho.dtype) if output == "softmax" else None
    a = input_product(x, w_ih, b_h)  # F1
    packed_oh, packed_ho = pack(w_oh), pack(w_ho)
    cdef void *qwo = packed_data(packed_oh)
    cdef void *qwh = packed_data(packed_ho)
    cdef void *pa = data(a, "a", num, (N, H))
    cdef void *po = data(o, "o", num, (B, O))
    cdef void *pop = data(o_prev, "o_prev", num, (N, O))
    cdef void *ph = data(h, "h", num, (N, H))
    cdef void *pz = data(z, "z", num, (N, O))
    cdef void *pp = optional(p, "p", num, (N, O))
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            forward[float](&q, H, O, f, <float *>pwo, <float *>qwo, <float *>pwh, <float *>qwh,
                           <float *>pbo, <float *>pa, <float *>po, <float *>pop, <float *>ph,
                           <float *>pz, <float *>pp)
        else:
            forward[double](&q, H, O, f, <double *>pwo, <double *>qwo, <double *>pwh, <double *>qwh,
                            <double *>pbo, <double *>pa, <double *>po, <double *>pop,
                            <double *>ph, <double *>pz, <double *>pp)
        K.leave(mode)
    if not keep:
        return z, o, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_oh": w_oh,
            "w_ho": w_ho, "h": h, "o_prev": o_prev, "p": p}
    return z, o, tape


def output_rnn_backward(tape, dz, do_n, grads, need_dx=True):
    """Twin of `rnnfast.reference.output_rnn.output_rnn_backward`."""
    w_oh, w_ho = tape["w_oh"], tape["w_ho"]
    cdef int num = _seq.typenum(w_ho)
    cdef Py_ssize_t N = len(tape["x"]), B = len(do_n), O = w_ho.shape[0], H = w_ho.shape[1]
    cdef Packed q
    cdef K.rf_act f = K.activation("tanh")
    offsets = _seq.offsets_of(tape["batch_sizes"], B, N)
    _seq.pack(&q, tape["batch_sizes"], offsets, tape["resets"], B, N, False)
    cdef void *pwo = data(w_oh, "w_oh", num, (H, O))
    cdef void *pwh = data(w_ho, "w_ho", num, (O, H))
    cdef void *ph = data(tape["h"], "h", num, (N, H))
    cdef void *pp = optional(tape["p"], "p", num, (N, O))
    data(dz, "dz", num, (N, O))
    data(do_n, "do_n", num, (B, O))
    dz, do = dz.copy(), do_n.copy()
    dh, da = np.empty((B, H), w_ho.dtype), np.empty((N, H), w_ho.dtype)
    panels_oh, panels_ho = panels(w_oh), panels(w_ho)
    cdef void *qwo = packed_data(panels_oh)
    cdef void *qwh = packed_data(panels_ho)
    cdef void *pdo = data(do, "do", num, (B, O))
    cdef void *pdz = data(dz, "dz", num, (N, O))
    cdef void *pdh = data(dh, "dh", num, (B, H))
    cdef void *pda = data(da, "da", num, (N, H))
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            backward[float](&q, H, O, f, <float *>pwo, <float *>qwo, <float *>pwh, <float *>qwh,
                            <float *>ph, <float *>pp, <float *>pdo, <float *>pdz, <float *>pdh,
                            <float *>pda)
        else:
            backward[double](&q, H, O, f, <double *>pwo, <double *>qwo, <double *>pwh,
                             <double *>qwh, <double *>ph, <double *>pp, <double *>pdo,
                             <double *>pdz, <double *>pdh, <double *>pda)
        K.leave(mode)
    weight_product(da, tape["o_prev"], grads["w_oh"])  # B6
    weight_product(dz, tape["h"], grads["w_ho"])  # B7
    for bias, d in (("b_h", da), ("b_o", dz)):
        if bias in grads:
            column_sum(d, grads[bias])  # B8
    dx = input_product_backward(tape["x"], tape["w_ih"], da, grads["w_ih"], need_dx)  # B9
    return dx, do
