"""The GRU over BLAS, reset after or before the product. Twins: rnnfast.reference.gru, which
explains the arguments; equations and labels: docs/math.md."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport empty
from rnnfast._product cimport (
    PANEL,
    TILE,
    gemm_columns,
    gemm_units,
    gemm_weights,
    inside,
    is_fixed,
    pack,
    packed_data,
    panels,
)
from rnnfast._seq cimport (
    Packed,
    data,
    goes_on,
    matrix,
    optional_matrix,
    optional_vector,
    time_of,
    vector,
)
from rnnfast._types cimport EPS, real_t

from rnnfast._dense import (
    column_dot,
    column_sum,
    input_product,
    input_product_backward,
    layer_norm_backward,
    layer_norm_forward,
    total_bias,
    weight_product,
)

from rnnfast import _product

cnp.import_array()
_product.ready()


# The arrays of one call; NULL where the variant or the mode has no use for one.
cdef struct Gru:
    Packed q
    K.rf_act gate
    Py_ssize_t H, ldy, inputs, lds
    size_t size         # of an element
    bint fixed          # the products are our own: rows may be divided
    bint after
    void *w_hh          # [3H, H]
    void *x             # [N, I] where a step reads its inputs itself
    void *packed_ih     # and W_ih packed with all gates
    void *start         # where the chains begin: [3H] with lds = 0, or ax
    void *packed_hh     # packed W_hh; reset before the product: its r and z, likewise W_ih
    void *packed_n      # and its n
    void *packed_in
    void *panels_hh     # W_hh for BPTT, where the engine wants it so; reset before: r and z
    void *panels_n      # and n
    void *gain_hh       # [3H]
    void *bias_n        # [H] where u_n starts
    void *ax            # [N, 3H] from F1
    void *gates         # [N, 3H] r z n, or [B, 3H] scratch; reset before: ax, if there is one
    void *u             # [N, H] u_n, reset after
    void *rh            # [N, H] r h, reset before, or [B, H] scratch
    void *h             # [B, H] state; backward: dE/dh
    void *next          # [B, H] scratch: the new state while the old one is read
    void *h_prev        # [N, H]
    void *mask          # [B, H] of recurrent dropout
    void *hm            # [N, H] what W_hh reads; h_prev itself without a mask, scratch [B, H]
    void *y             # [N, H], rows ldy apart
    void *ah            # [B, 3H] scratch: W_hh h before its layer norm
    void *hhat          # [N, 3H]
    void *h_rstd        # [N]
    void *dy            # [N, H]
    void *dax           # [N, 3H] da_r da_z da_n
    void *dah           # [N, 3H] da_r da_z du_n
    void *dm            # [N, 3H] dah before the layer norm of W_hh h; dah itself without one
    void *drh           # [B, H] scratch
    void *dhm           # [B, H] scratch: the gradient of the masked state
    bint keep


cdef const real_t *masked(const Gru *s, _seq.Share *share, Py_ssize_t n, Py_ssize_t row,
                          const real_t *h) noexcept nogil:
    """Keep h_{t-1} of a step; return what W_hh reads: h, or h times the mask."""
    cdef Py_ssize_t H = s.H, j0, j1
    cdef real_t *hm = <real_t *>s.hm + (row * H if s.keep else 0)
    if _seq.range_of(share, H, TILE, &j0, &j1):
        if s.keep:
            _seq.copy_units(n, H, j0, j1, h, <real_t *>s.h_prev + row * H)
        if s.mask != NULL:
            _seq.multiply_units(n, H, j0, j1, h, <real_t *>s.mask, hm)
    if s.mask == NULL:
        return h
    _seq.meet(share)
    return hm


cdef void norm_step(const Gru *s, _seq.Share *share, Py_ssize_t n, Py_ssize_t row,
                    const real_t *hm, const real_t *w_hh) noexcept nogil:
    """A step with layer norm: a share's columns of the product, then its rows of all the rest."""
    cdef Py_ssize_t H = s.H, W = 3 * H, first, last, at
    cdef real_t *h = <real_t *>s.h
    if _seq.range_of(share, W, PANEL, &first, &last):
        gemm_columns(n, first, last, W, H, hm, w_hh, <real_t *>s.packed_hh, <real_t *>s.ah)
    _seq.meet(share)
    if _seq.range_of(share, n, 1, &first, &last):
        at = row + first
        K.gru_norm_forward(last - first, H, s.gate, <real_t>EPS, <real_t *>s.ah + first * W,
                           <real_t *>s.gain_hh, <real_t *>s.ax + at * W, <real_t *>s.bias_n,
                           <real_t *>s.gates + (at if s.keep else first) * W,
                           <real_t *>s.hhat + at * W if s.keep else NULL,
                           <real_t *>s.h_rstd + at if s.keep else NULL,
                           <real_t *>s.u + at * H if s.keep else NULL, h + first * H,
                           h + first * H, <real_t *>s.y + at * s.ldy, s.ldy)  # F2 .. F5
    _seq.meet(share)


cdef void forward_after(const Gru *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, a share's part of each."""
    cdef Py_ssize_t H = s.H, i, t, n, row, kept, b, j0, j1
    cdef real_t *h = <real_t *>s.h
    cdef real_t *now  # the state before a step: h, or where the step before put it on the tape
    cdef real_t *new = <real_t *>s.next
    cdef real_t *out
    cdef const real_t *hm
    cdef real_t *ax
    cdef real_t *a
    cdef real_t *y
    cdef real_t *bias_n = <real_t *>s.bias_n
    cdef bint whole = s.packed_hh != NULL and s.gain_hh == NULL  # the step in one kernel
    cdef bint taped = False  # the state before the step is on the tape already
    for i in range(s.q.T):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        kept = row if s.keep else 0
        ax = <real_t *>s.ax + row * 3 * H if s.ax != NULL else NULL
        a = <real_t *>s.gates + kept * 3 * H if s.gates != NULL else NULL
        y = <real_t *>s.y + row * s.ldy
        now = <real_t *>s.h_prev + row * H if taped else h
        _seq.begin_step(&s.q, t, share, H, TILE, now)
        if taped:
            hm = now
        else:
            hm = masked(s, share, n, row, h)
        if whole:
            taped = s.keep and s.mask == NULL and goes_on(&s.q, i)
            out = new
            if taped:
                out = <real_t *>s.h_prev + s.q.offsets[time_of(&s.q, i + 1)] * H
            if _seq.range_of(share, H, TILE, &j0, &j1):
                K.gru_step(n, H, j0, j1, i & 1, s.gate, s.inputs,
                           <real_t *>s.x + row * s.inputs if s.x != NULL else NULL,
                           <real_t *>s.packed_ih, ax if s.lds else <real_t *>s.start, s.lds, bias_n,
                           hm, <real_t *>s.packed_hh, now, a if s.keep else NULL,
                           <real_t *>s.u + row * H if s.keep else NULL, out, y, s.ldy)  # F1 .. F5
            if taped:
                pass
            elif share.workers > 1:
                h, new = new, h  # what a step wrote is what the next one reads
            else:
                memcpy(h, new, n * H * sizeof(real_t))
            _seq.meet(share)
            continue
        if s.gain_hh != NULL:
            norm_step(s, share, n, row, hm, w_hh)
            continue
        for b in range(n):
            memcpy(a + b * 3 * H, ax + b * 3 * H, 2 * H * sizeof(real_t))
            _seq.fill_rows(1, H, bias_n, a + b * 3 * H + 2 * H)
        gemm_weights(n, 3 * H, H, hm, H, w_hh, NULL, <real_t>1, a, 3 * H)  # F2
        K.gru_forward(n, H, s.gate, a, ax, <real_t *>s.u + row * H if s.keep else NULL, h,
                      y, s.ldy)  # F3, F4, F5
    if h != <real_t *>s.h and not share.worker:
        memcpy(<real_t *>s.h, h, s.q.B * H * sizeof(real_t))


cdef void forward_before(const Gru *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, a share's part of each. Between a step's halves all units of r h have to be
    there."""
    cdef Py_ssize_t H = s.H, i, t, n, row, j0, j1
    cdef real_t *h = <real_t *>s.h
    cdef const real_t *hm
    cdef const real_t *x
    cdef const real_t *start
    cdef real_t *a
    cdef real_t *rh
    cdef real_t *y
    for i in range(s.q.T):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        a = <real_t *>s.gates + (row * 3 * H if s.keep or s.lds else 0)
        rh = <real_t *>s.rh + (row * H if s.keep else 0)
        y = <real_t *>s.y + row * s.ldy
        _seq.begin_step(&s.q, t, share, H, TILE, h)
        hm = masked(s, share, n, row, h)
        if s.packed_hh == NULL:
            gemm_weights(n, 2 * H, H, hm, H, w_hh, NULL, <real_t>1, a, 3 * H)  # F2
            K.gru_before_gates(n, H, s.gate, a, hm, rh)  # F3
            gemm_weights(n, H, H, rh, H, w_hh + 2 * H * H, NULL, <real_t>1, a + 2 * H, 3 * H)
            K.gru_before_output(n, H, a, h, y, s.ldy)  # F4, F5
            continue
        x = <real_t *>s.x + row * s.inputs if s.x != NULL else NULL
        start = a if s.lds else <real_t *>s.start
        if _seq.range_of(share, H, TILE, &j0, &j1):
            K.gru_before_gates_step(n, H, j0, j1, i & 1, s.gate, s.inputs, x,
                                    <real_t *>s.packed_ih, start, s.lds, hm,
                                    <real_t *>s.packed_hh, a if s.keep else NULL, a + H, 3 * H,
                                    rh)  # F1 .. F3
        _seq.meet(share)
        if _seq.range_of(share, H, TILE, &j0, &j1):
            K.gru_before_output_step(n, H, j0, j1, i & 1, s.inputs, x, <real_t *>s.packed_in,
                                     start + 2 * H if start != NULL else NULL, s.lds, rh,
                                     <real_t *>s.packed_n, a + H, a + 2 * H if s.keep else NULL,
                                     3 * H, h, h, y, s.ldy)  # F1, F2, F4, F5
        _seq.meet(share)


cdef void backward_after(const Gru *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, last to first, a share's part of each."""
    cdef Py_ssize_t H = s.H, i, t, n, row, j0, j1
    cdef Py_ssize_t m = 0  # rows whose B5 of the step before is still to be done, from da
    cdef real_t *dh = <real_t *>s.h
    cdef real_t *packed = <real_t *>s.panels_hh
    cdef real_t *da = NULL
    cdef real_t *later
    cdef real_t *dy
    cdef real_t *into
    cdef bint whole = packed != NULL and s.gain_hh == NULL and s.mask == NULL
    for i in range(s.q.T - 1, -1, -1):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        later, da = da, <real_t *>s.dm + row * 3 * H
        dy = <real_t *>s.dy + row * H if s.dy != NULL else NULL
        if s.gain_hh != NULL:
            _seq.meet(share)  # whole rows of dh
            if _seq.range_of(share, n, 1, &j0, &j1):
                row += j0
                K.gru_norm_backward(j1 - j0, H, s.gate, <real_t *>s.gates + row * 3 * H,
                                    <real_t *>s.u + row * H, <real_t *>s.h_prev + row * H,
                                    <real_t *>s.gain_hh, <real_t *>s.hhat + row * 3 * H,
                                    <real_t *>s.h_rstd + row, dh + j0 * H,
                                    dy + j0 * H if dy != NULL else NULL, H,
                                    <real_t *>s.dax + row * 3 * H, <real_t *>s.dah + row * 3 * H,
                                    <real_t *>s.dm + row * 3 * H)  # B1 .. B4
        elif _seq.range_of(share, H, PANEL, &j0, &j1):
            if m > n:
                gemm_units(i & 1, m - n, j0, j1, 3 * H, later + n * 3 * H, 3 * H, w_hh, packed,
                           <real_t>1, dh + n * H, H)  # B5 of sequences that begin here
            K.gru_backward(n, H, j0, j1, i & 1, min(m, n), 3 * H, later, 3 * H, packed, s.gate,
                           <real_t *>s.gates + row * 3 * H, <real_t *>s.u + row * H,
                           <real_t *>s.h_prev + row * H, dh, dy, H, <real_t *>s.dax + row * 3 * H,
                           <real_t *>s.dah + row * 3 * H)  # B5, B1 .. B4
        _seq.meet(share)
        m = _seq.put_off(&s.q, i, t, whole)
        if m:
            continue
        into = dh if s.mask == NULL else <real_t *>s.drh
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            gemm_units(i & 1, n, j0, j1, 3 * H, da, 3 * H, w_hh, packed,
                       <real_t>1 if s.mask == NULL else <real_t>0, into, H)  # B5
            if s.mask != NULL:
                _seq.multiply_add_units(n, H, j0, j1, into, <real_t *>s.mask, dh)
        _seq.zero_share(&s.q, t, share, H, PANEL, dh)


cdef void backward_before(const Gru *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, last to first, a share's part of each."""
    cdef Py_ssize_t H = s.H, i, t, n, row, j0, j1
    cdef Py_ssize_t m = 0  # rows whose B5 of the step before is still to be done, from da
    cdef real_t *dh = <real_t *>s.h
    cdef real_t *packed = <real_t *>s.panels_hh
    cdef real_t *panels_n = <real_t *>s.panels_n
    cdef real_t *dy
    cdef real_t *da = NULL
    cdef real_t *later
    cdef real_t *drh = <real_t *>s.drh
    cdef real_t *gates
    cdef real_t *hm
    cdef real_t *dhm
    cdef bint whole = packed != NULL
    for i in range(s.q.T - 1, -1, -1):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        dy = <real_t *>s.dy + row * H if s.dy != NULL else NULL
        later, da = da, <real_t *>s.dax + row * 3 * H
        gates = <real_t *>s.gates + row * 3 * H
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            if m > n:
                gemm_units(i & 1, m - n, j0, j1, 2 * H, later + n * 3 * H, 3 * H, w_hh, packed,
                           <real_t>1, dh + n * H, H)  # B5 of sequences that begin here
            K.gru_before_backward_output(n, H, j0, j1, i & 1, min(m, n), 2 * H, later, 3 * H,
                                         packed, s.gate, gates, <real_t *>s.h_prev + row * H, dh,
                                         dy, H, da)  # B5, B1, B2, B4
        _seq.meet(share)
        hm = <real_t *>s.hm + row * H
        dhm = dh if s.mask == NULL else <real_t *>s.dhm
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            if s.mask != NULL:
                _seq.zero_units(n, H, j0, j1, dhm)
            if not whole:
                gemm_units(False, n, j0, j1, H, da + 2 * H, 3 * H, w_hh + 2 * H * H, panels_n,
                           <real_t>0, drh, H)
            K.gru_before_backward_gates(n, H, j0, j1, i & 1, n if whole else 0, H, da + 2 * H,
                                        3 * H, panels_n, s.gate, gates, hm, drh, dhm,
                                        da)  # B3, B4
        _seq.meet(share)
        m = _seq.put_off(&s.q, i, t, whole and s.mask == NULL)
        if m:
            continue
        if _seq.range_of(share, H, PANEL, &j0, &j1):
            gemm_units(i & 1, n, j0, j1, 2 * H, da, 3 * H, w_hh, packed, <real_t>1, dhm, H)  # B5
            if s.mask != NULL:
                _seq.multiply_add_units(n, H, j0, j1, dhm, <real_t *>s.mask, dh)
        _seq.zero_share(&s.q, t, share, H, PANEL, dh)


cdef void forward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Gru *s = <Gru *>arg
    if s.size == sizeof(float):
        if s.after:
            forward_after[float](s, share, <float *>s.w_hh)
        else:
            forward_before[float](s, share, <float *>s.w_hh)
    else:
        if s.after:
            forward_after[double](s, share, <double *>s.w_hh)
        else:
            forward_before[double](s, share, <double *>s.w_hh)


cdef void backward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Gru *s = <Gru *>arg
    if s.size == sizeof(float):
        if s.after:
            backward_after[float](s, share, <float *>s.w_hh)
        else:
            backward_before[float](s, share, <float *>s.w_hh)
    else:
        if s.after:
            backward_after[double](s, share, <double *>s.w_hh)
        else:
            backward_before[double](s, share, <double *>s.w_hh)


cdef _seq.Division division(Gru *s, _seq.share_task *task):
    cdef _seq.Division d
    d.s, d.size, d.q, d.task, d.shift = s, sizeof(Gru), &s.q, task, shift
    d.H = s.H
    d.weights = 3 * s.H * (s.H + s.inputs)
    return d


cdef void shift(void *part, const Packed *q) noexcept:
    """Let what is kept by sequence begin at the part's first one."""
    cdef Gru *s = <Gru *>part
    cdef Py_ssize_t b = q.first, H = s.H * s.size
    s.q = q[0]
    s.h = _seq.below(s.h, b, H)
    s.next = _seq.below(s.next, b, H)
    s.mask = _seq.below(s.mask, b, H)
    s.ah = _seq.below(s.ah, b, 3 * H)
    s.drh = _seq.below(s.drh, b, H)
    s.dhm = _seq.below(s.dhm, b, H)
    if not s.keep:
        s.hm = _seq.below(s.hm, b, H)
        s.rh = _seq.below(s.rh, b, H)
        if s.after or not s.lds:
            s.gates = _seq.below(s.gates, b, 3 * H)


cdef void setup(Gru *s, object batch_sizes, object offsets, object resets, object w_hh,
                object norm, object h_mask, object gate, bint reset_after, bint reverse,
                Py_ssize_t N, Py_ssize_t B) except *:
    """The parts that forward and backward share."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t H = w_hh.shape[1]
    memset(s, 0, sizeof(Gru))
    s.H = H
    s.size = w_hh.itemsize
    s.fixed = is_fixed()
    s.after = reset_after
    s.gate = K.activation(gate)
    if s.gate.kind not in (K.RF_SIGMOID, K.RF_HARD_SIGMOID):
        raise ValueError(f"gate must be a sigmoid, got {gate!r}")
    if norm is not None and not reset_after:
        raise ValueError("layer norm needs reset_after=True")
    _seq.pack(&s.q, batch_sizes, offsets, resets, B, N, reverse)
    s.w_hh = matrix(w_hh, "w_hh", num, 3 * H, H)
    s.mask = optional_matrix(h_mask, "h_mask", num, B, H)
    s.gain_hh = NULL
    if norm is not None:
        s.gain_hh = vector(norm[1], "gain_hh", num, 3 * H)


def gru_bias(b_ih, b_hh, reset_after):
    """(what goes into F1, what u_n starts at): r and z need only the sum of both biases."""
    if b_ih is None or b_hh is None:
        b = b_hh if b_ih is None else b_ih
        if b is None or not reset_after:
            return b, None
        H = len(b) // 3
        head, zero = b[:2 * H], np.zeros(H, b.dtype)
        ax = np.concatenate([head, zero if b_ih is None else b[2 * H:]])
        return ax, b[2 * H:] if b_ih is None else zero
    both = total_bias(b_ih, b_hh)
    if not reset_after:
        return both, None
    H = len(both) // 3
    return np.concatenate([both[:2 * H], b_ih[2 * H:]]), b_hh[2 * H:]


def gru_forward(x, batch_sizes, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, reset_after=True,
                norm=None, gate="sigmoid", h_mask=None, resets=None, reverse=False, keep=True,
                out=None):
    """Twin of `rnnfast.reference.gru.gru_forward`."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(x), B = len(h0), H = w_hh.shape[1], R = N if keep else B, ldy
    cdef bint after = reset_after
    cdef Gru s
    cdef _seq.Division d
    offsets = _seq.offsets_of(batch_sizes, B, N)
    setup(&s, batch_sizes, offsets, resets, w_hh, norm, h_mask, gate, after, reverse, N, B)
    matrix(h0, "h0", num, B, H)
    matrix(w_ih, "w_ih", num, 3 * H, w_ih.shape[1])
    optional_vector(b_ih, "b_ih", num, 3 * H)
    optional_vector(b_hh, "b_hh", num, 3 * H)
    h = h0.copy()
    y = empty(N, H, num) if out is None else out
    cdef bint inputs_inside = norm is None and inside(x, s.q.T)
    cdef Py_ssize_t gates_at_once = 1 if norm is not None else 3 if after else 2
    packed_ih = packed_in = packed_n = None
    packed_hh = pack(w_hh if after else w_hh[:2 * H], gates_at_once)
    if inputs_inside:
        packed_ih = pack(w_ih if after else w_ih[:2 * H], gates_at_once)
    if not after:
        packed_n = pack(w_hh[2 * H:])
        packed_in = pack(w_ih[2 * H:]) if inputs_inside else None
    s.packed_ih, s.packed_hh = packed_data(packed_ih), packed_data(packed_hh)
    s.packed_in, s.packed_n = packed_data(packed_in), packed_data(packed_n)
    s.y = _seq.strided(y, "out", num, N, H, &ldy)
    s.ldy = ldy
    s.keep = keep
    bias, bias_n = gru_bias(b_ih, b_hh, reset_after)
    kept = {}
    if inputs_inside:
        ax, s.inputs, s.lds = None, w_ih.shape[1], 0
        s.x = matrix(x, "x", num, N, s.inputs)
        s.start = optional_vector(bias, "bias", num, 3 * H)
    else:
        ax = input_product(x, w_ih, bias if norm is None else None)  # F1
        s.x = s.start = NULL
        s.inputs, s.lds = 0, 3 * H
    if norm is not None:
        ax, kept["xhat"], x_rstd = layer_norm_forward(ax, norm[0], bias)  # F1
        kept["x_rstd"] = x_rstd[:, None]
    if keep and norm is not None:
        kept["hhat"] = empty(N, 3 * H, num)
        kept["h_rstd"] = empty(N, 1, num)
    if keep:
        kept["h_prev"] = empty(N, H, num)
    if keep and h_mask is not None:
        kept["hm"] = empty(N, H, num)
    hm = h if h_mask is None else kept["hm"] if keep else empty(B, H, num)
    kept["u" if after else "rh"] = empty(R, H, num)
    gates = empty(R, 3 * H, num) if after or ax is None else ax
    ah = empty(B, 3 * H, num) if norm is not None else None
    s.ax = optional_matrix(ax, "ax", num, N, 3 * H)
    new = empty(B, H, num)
    s.next = matrix(new, "new", num, B, H)
    s.gates = matrix(gates, "gates", num, len(gates), 3 * H)
    s.bias_n = optional_vector(bias_n, "bias_n", num, H)
    s.u = optional_matrix(kept.get("u"), "u", num, R, H)
    s.rh = optional_matrix(kept.get("rh"), "rh", num, R, H)
    s.h = matrix(h, "h", num, B, H)
    s.h_prev = optional_matrix(kept.get("h_prev"), "h_prev", num, N, H)
    s.hm = data(hm, "hm", num, hm.shape)
    s.ah = optional_matrix(ah, "ah", num, B, 3 * H)
    s.hhat = optional_matrix(kept.get("hhat"), "hhat", num, N, 3 * H)
    s.h_rstd = optional_matrix(kept.get("h_rstd"), "h_rstd", num, N, 1)
    d = division(&s, forward_task)
    _seq.divide(&d, s.fixed, batch_sizes, offsets)
    if not keep:
        return y, h, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "norm": norm, "h_mask": h_mask, "gate": gate, "reset_after": reset_after,
            "reverse": reverse, "gates": gates, **kept}
    return y, h, tape


def gru_backward(tape, dy, dh_n, grads, need_dx=True, *, out=None):
    """Twin of `rnnfast.reference.gru.gru_backward`."""
    w_hh, norm, reset_after = tape["w_hh"], tape["norm"], tape["reset_after"]
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(tape["x"]), B = len(dh_n), H = w_hh.shape[1]
    cdef bint after = reset_after
    cdef Gru s
    cdef _seq.Division d
    offsets = _seq.offsets_of(tape["batch_sizes"], B, N)
    setup(&s, tape["batch_sizes"], offsets, tape["resets"], w_hh, norm, tape["h_mask"],
          tape["gate"], after, tape["reverse"], N, B)
    matrix(dh_n, "dh_n", num, B, H)
    matrix(grads["w_hh"], "dw_hh", num, 3 * H, H, True)
    dh = dh_n.copy()
    dax = empty(N, 3 * H, num)
    dah = empty(N, 3 * H, num) if after else dax
    dm = dah if norm is None else empty(N, 3 * H, num)
    drh, dhm = empty(B, H, num), empty(B, H, num)
    hm = tape["h_prev" if tape["h_mask"] is None else "hm"]
    s.dy = optional_matrix(dy, "dy", num, N, H)
    s.h = matrix(dh, "dh", num, B, H)
    s.gates = matrix(tape["gates"], "gates", num, N, 3 * H)
    s.h_prev = matrix(tape["h_prev"], "h_prev", num, N, H)
    if after:
        s.u = matrix(tape["u"], "u", num, N, H)
    s.dax = matrix(dax, "dax", num, N, 3 * H)
    s.dah = matrix(dah, "dah", num, N, 3 * H)
    s.dm = matrix(dm, "dm", num, N, 3 * H)
    s.drh = matrix(drh, "drh", num, B, H)
    s.dhm = matrix(dhm, "dhm", num, B, H)
    s.hm = matrix(hm, "hm", num, N, H)
    if norm is not None:
        s.hhat = matrix(tape["hhat"], "hhat", num, N, 3 * H)
        s.h_rstd = matrix(tape["h_rstd"], "h_rstd", num, N, 1)
    panels_hh = panels(w_hh if after else w_hh[:2 * H])
    panels_n = None if after else panels(w_hh[2 * H:])
    s.panels_hh, s.panels_n = packed_data(panels_hh), packed_data(panels_n)
    s.keep = True
    d = division(&s, backward_task)
    _seq.divide(&d, s.fixed, tape["batch_sizes"], offsets)
    dw = grads["w_hh"]
    if after:
        weight_product(dm, hm, dw)  # B6
    else:
        weight_product(dax, hm, dw[:2 * H])
        weight_product(dax, tape["rh"], dw[2 * H:], 2 * H)
    if "b_ih" in grads:
        column_sum(dax, grads["b_ih"])  # B7
    if "b_hh" in grads:
        column_sum(dah, grads["b_hh"])
    if norm is not None:
        column_dot(dax, tape["xhat"], grads["gain_ih"])
        column_dot(dah, tape["hhat"], grads["gain_hh"])
        dax = layer_norm_backward(dax, norm[0], tape["xhat"], tape["x_rstd"][:, 0])
    dx = input_product_backward(tape["x"], tape["w_ih"], dax, grads["w_ih"], need_dx, out)  # B8
    return dx, dh
