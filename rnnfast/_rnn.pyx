"""The tanh or ReLU recurrence over BLAS. Twins: rnnfast.reference.rnn, which explains the
arguments; equations and labels: docs/math.md."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport empty
from rnnfast._product cimport (
    PANEL,
    TILE,
    gemm_units,
    gemm_weights,
    inside,
    is_fixed,
    pack,
    packed_data,
    panels,
)
from rnnfast._seq cimport Packed, matrix, optional_matrix, optional_vector, time_of
from rnnfast._types cimport real_t

from rnnfast._dense import (
    bias_sums,
    input_product,
    input_product_backward,
    total_bias,
    weight_product,
)

from rnnfast import _product

cnp.import_array()
_product.ready()


# The arrays of one call; NULL where the mode has no use for one.
cdef struct Rnn:
    Packed q
    K.rf_act act
    Py_ssize_t H, ldy, inputs
    size_t size     # of an element
    void *w_hh      # [H, H]
    void *packed_hh  # and packed, where the engine wants it so; for BPTT in panels
    void *a         # [N, H] W_ih x + b; or NULL, and then
    void *x         # [N, I] the steps read their inputs themselves
    void *packed_ih
    void *start     # [H] where their chains begin
    void *h         # [B, H] state; backward: dE/dh
    void *mask      # [B, H] of recurrent dropout
    void *hm        # [B, H] scratch: the masked state; h itself without a mask
    void *next      # [B, H] scratch: the new state while the old one is read
    void *h_prev    # [N, H]
    void *h_all     # [N, H] the states for BPTT, where a step's kernel writes them; or NULL
    bint joined     # what a step writes into h_all lies where the next one has its h_prev
    void *y         # [N, H], rows ldy apart; backward: the states
    void *dy        # [N, H]
    void *da        # [N, H]


cdef void forward(const Rnn *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, a share's part of each."""
    cdef Py_ssize_t H = s.H, i, t, n, row, j0, j1
    cdef real_t *h = <real_t *>s.h
    cdef real_t *hm = <real_t *>s.hm
    cdef real_t *next = <real_t *>s.next
    cdef real_t *new
    cdef real_t *y
    cdef real_t *a
    cdef const real_t *x
    for i in range(s.q.T):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        y = <real_t *>s.y + row * s.ldy
        a = <real_t *>s.a + row * H if s.a != NULL else NULL
        _seq.begin_step(&s.q, t, share, H, TILE, h)
        if s.mask == NULL:
            hm = h
        else:
            if _seq.range_of(share, H, TILE, &j0, &j1):
                _seq.multiply_units(n, H, j0, j1, h, <real_t *>s.mask, hm)
            _seq.meet(share)
        if s.packed_hh == NULL:
            if s.h_prev != NULL:
                memcpy(<real_t *>s.h_prev + row * H, hm, n * H * sizeof(real_t))
            gemm_weights(n, H, H, hm, H, w_hh, NULL, <real_t>1, a, H)  # F2
            K.rnn_forward(n, H, s.act, a, h, y, s.ldy)  # F3
            continue
        x = <real_t *>s.x + row * s.inputs if a == NULL else NULL
        new = <real_t *>s.h_all + row * H if s.h_all != NULL else next
        if _seq.range_of(share, H, TILE, &j0, &j1):
            if s.h_prev != NULL and hm != <real_t *>s.h_prev + row * H:
                _seq.copy_units(n, H, j0, j1, hm, <real_t *>s.h_prev + row * H)
            K.rnn_step(n, H, j0, j1, i & 1, s.act, s.inputs, x, <real_t *>s.packed_ih,
                       a if a != NULL else <real_t *>s.start, H if a != NULL else 0, H, hm,
                       <real_t *>s.packed_hh, new, y, s.ldy)  # F1 .. F3
        if s.joined:
            h = new
        elif share.workers == 1:
            memcpy(h, new, n * H * sizeof(real_t))
        else:  # what is reset must stay on the tape
            if s.h_all != NULL and _seq.range_of(share, H, TILE, &j0, &j1):
                _seq.copy_units(n, H, j0, j1, new, next)
            h, next = next, h
        _seq.meet(share)
    if h != <real_t *>s.h and not share.worker:
        memcpy(<real_t *>s.h, h, s.q.B * H * sizeof(real_t))


cdef void backward(const Rnn *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, last to first, a share's part of each."""
    cdef Py_ssize_t H = s.H, i, t, n, row, j0, j1
    cdef Py_ssize_t m = 0  # rows whose B3 of the step before is still to be done, from da
    cdef real_t *dh = <real_t *>s.h
    cdef real_t *packed = <real_t *>s.packed_hh
    cdef real_t *da = NULL
    cdef real_t *later
    for i in range(s.q.T - 1, -1, -1):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        later, da = da, <real_t *>s.da + row * H
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            if m > n:
                gemm_units(i & 1, m - n, j0, j1, H, later + n * H, H, w_hh, packed, <real_t>0,
                           dh + n * H, H)  # B3 of sequences that begin here
            K.rnn_backward(n, H, j0, j1, i & 1, min(m, n), H, later, H, packed, s.act,
                           <real_t *>s.y + row * H, dh,
                           <real_t *>s.dy + row * H if s.dy != NULL else NULL, H,
                           da)  # B3, B1, B2
        _seq.meet(share)
        m = _seq.put_off(&s.q, i, t, packed != NULL and s.mask == NULL)
        if m:
            continue
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            gemm_units(i & 1, n, j0, j1, H, da, H, w_hh, packed, <real_t>0, dh, H)  # B3
            if s.mask != NULL:
                _seq.multiply_units(n, H, j0, j1, dh, <real_t *>s.mask, dh)
        _seq.zero_share(&s.q, t, share, H, PANEL, dh)


cdef void forward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Rnn *s = <Rnn *>arg
    if s.size == sizeof(float):
        forward[float](s, share, <float *>s.w_hh)
    else:
        forward[double](s, share, <double *>s.w_hh)


cdef void backward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Rnn *s = <Rnn *>arg
    if s.size == sizeof(float):
        backward[float](s, share, <float *>s.w_hh)
    else:
        backward[double](s, share, <double *>s.w_hh)


cdef _seq.Division division(Rnn *s, _seq.share_task *task):
    cdef _seq.Division d
    d.s, d.size, d.q, d.task, d.shift = s, sizeof(Rnn), &s.q, task, shift
    d.H = s.H
    d.weights = s.H * (s.H + s.inputs)
    return d


cdef void shift(void *part, const Packed *q) noexcept:
    """Let what is kept by sequence begin at the part's first one."""
    cdef Rnn *s = <Rnn *>part
    cdef Py_ssize_t b = q.first, H = s.H * s.size
    s.q = q[0]
    s.h = _seq.below(s.h, b, H)
    s.hm = _seq.below(s.hm, b, H)
    s.next = _seq.below(s.next, b, H)
    s.mask = _seq.below(s.mask, b, H)


cdef void setup(Rnn *s, object batch_sizes, object offsets, object resets, object w_hh,
                object h_mask, object nonlinearity, bint reverse, Py_ssize_t N,
                Py_ssize_t B) except *:
    """The parts that forward and backward share."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t H = w_hh.shape[0]
    memset(s, 0, sizeof(Rnn))
    s.H, s.size = H, w_hh.itemsize
    s.act = K.activation(nonlinearity)
    _seq.pack(&s.q, batch_sizes, offsets, resets, B, N, reverse)
    s.w_hh = matrix(w_hh, "w_hh", num, H, H)
    s.mask = optional_matrix(h_mask, "h_mask", num, B, H)


def rnn_forward(x, batch_sizes, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh",
                h_mask=None, resets=None, reverse=False, keep=True, out=None):
    """Twin of `rnnfast.reference.rnn.rnn_forward`."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(x), B = len(h0), H = w_hh.shape[0], I = w_ih.shape[1]
    cdef Rnn s
    cdef _seq.Division d
    offsets = _seq.offsets_of(batch_sizes, B, N)
    setup(&s, batch_sizes, offsets, resets, w_hh, h_mask, nonlinearity, reverse, N, B)
    matrix(h0, "h0", num, B, H)
    matrix(w_ih, "w_ih", num, H, I)
    h = h0.copy()
    y = empty(N, H, num) if out is None else out
    packed = pack(w_hh)
    h_prev = h_all = None
    if keep and packed is not None and resets is None and h_mask is None and N == s.q.T * B:
        states = empty(N + B, H, num)  # those before and those after the steps
        h_prev, h_all = (states[B:], states[:N]) if reverse else (states[:N], states[B:])
        s.joined = True
    elif keep:
        h_prev = empty(N, H, num)
        h_all = empty(N, H, num) if is_fixed() else None
    hm = h if h_mask is None else empty(B, H, num)
    new = empty(B, H, num)
    cdef bint inputs_inside = inside(x, s.q.T)
    bias = total_bias(b_ih, b_hh)
    a = None if inputs_inside else input_product(x, w_ih, bias)  # F1
    packed_ih = pack(w_ih) if inputs_inside else None
    s.packed_hh, s.packed_ih = packed_data(packed), packed_data(packed_ih)
    if inputs_inside:
        s.inputs = I
        s.x = matrix(x, "x", num, N, I)
    s.start = optional_vector(bias, "bias", num, H)
    s.a = optional_matrix(a, "a", num, N, H)
    s.y = _seq.strided(y, "out", num, N, H, &s.ldy)
    s.h = matrix(h, "h", num, B, H)
    s.hm = matrix(hm, "hm", num, B, H)
    s.next = matrix(new, "new", num, B, H)
    s.h_prev = optional_matrix(h_prev, "h_prev", num, N, H)
    s.h_all = optional_matrix(h_all, "h_all", num, N, H)
    d = division(&s, forward_task)
    _seq.divide(&d, is_fixed(), batch_sizes, offsets)
    if not keep:
        return y, h, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "reverse": reverse, "h_mask": h_mask, "nonlinearity": nonlinearity,
            "h": np.array(y, order="C") if h_all is None else h_all, "h_prev": h_prev}
    return y, h, tape


def rnn_backward(tape, dy, dh_n, grads, need_dx=True, *, out=None):
    """Twin of `rnnfast.reference.rnn.rnn_backward`."""
    w_hh = tape["w_hh"]
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(tape["x"]), B = len(dh_n), H = w_hh.shape[0]
    cdef Rnn s
    cdef _seq.Division d
    offsets = _seq.offsets_of(tape["batch_sizes"], B, N)
    setup(&s, tape["batch_sizes"], offsets, tape["resets"], w_hh, tape["h_mask"],
          tape["nonlinearity"], tape["reverse"], N, B)
    matrix(dh_n, "dh_n", num, B, H)
    matrix(grads["w_hh"], "dw_hh", num, H, H, True)
    dh = dh_n.copy()
    da = empty(N, H, num)
    packed = panels(w_hh)
    s.packed_hh = packed_data(packed)
    s.y = matrix(tape["h"], "h", num, N, H)
    s.dy = optional_matrix(dy, "dy", num, N, H)
    s.h = matrix(dh, "dh", num, B, H)
    s.da = matrix(da, "da", num, N, H)
    d = division(&s, backward_task)
    _seq.divide(&d, is_fixed(), tape["batch_sizes"], offsets)
    weight_product(da, tape["h_prev"], grads["w_hh"])  # B4
    bias_sums(da, grads)  # B5
    dx = input_product_backward(tape["x"], tape["w_ih"], da, grads["w_ih"], need_dx, out)  # B6
    return dx, dh
