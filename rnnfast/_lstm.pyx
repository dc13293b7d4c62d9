"""The LSTM over BLAS. Twins: rnnfast.reference.lstm, which explains the arguments; equations and
labels: docs/math.md."""

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
    goes_on,
    matrix,
    optional_matrix,
    optional_vector,
    time_of,
    vector,
)
from rnnfast._types cimport EPS, real_t

from rnnfast._dense import (
    bias_sums,
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
cdef struct Lstm:
    Packed q
    K.rf_lstm opt
    Py_ssize_t H, P, G
    Py_ssize_t ldy, inputs, lds
    size_t size         # of an element
    bint fixed          # the products are our own: rows may be divided
    void *w_hh          # [G H, P]
    void *w_hr          # [P, H]
    void *x             # [N, I] where a step reads its inputs itself
    void *packed_ih     # and W_ih packed with all gates
    void *start         # where the chains begin: [G H] with lds = 0, or a
    void *packed_hh     # both weights packed, where the engine wants them so
    void *packed_hr
    void *panels_hh     # both for BPTT, where the engine wants them so
    void *panels_hr
    void *peephole      # [3, H]
    void *mask          # [B, P] of recurrent dropout
    void *hm            # [B, P] scratch: the masked state; h itself without a mask
    void *gain_hh       # [G H]
    void *gain_c        # [H]
    void *bias_c        # [H]
    void *h             # [B, P] state; backward: dE/dh
    void *next          # [B, P] scratch: the new state while the old one is read
    void *c             # [B, H] state; backward: dE/dc
    void *a             # [N, G H] in pre-activations from F1, out gates
    void *h_prev        # [N, P]
    void *c_prev        # [N, H]
    void *c_t           # [N, H]
    void *tanh_c        # [N, H]
    void *m             # [N, H] o tanh(c), or [B, H] scratch
    void *y             # [N, P], rows ldy apart
    void *ah            # [B, G H] scratch: W_hh h before its layer norm
    void *hhat          # [N, G H]
    void *h_rstd        # [N]
    void *chat          # [N, H]
    void *c_rstd        # [N]
    void *cn            # [B, H] scratch: c after its layer norm; backward: the gradient of c
    void *dy            # [N, P]
    void *dm            # [B, H] scratch: W_hr^T dh
    void *dp            # [N, P] dh before the projection
    void *da            # [N, G H]
    void *dah           # [N, G H] da before the layer norm of W_hh h; da itself without one
    void *dcn           # [N, H]
    bint keep


cdef inline real_t *at(void *p, Py_ssize_t offset, const real_t *unused) noexcept nogil:
    """p + offset, or NULL."""
    return <real_t *>p + offset if p != NULL else NULL


cdef void norm_step(const Lstm *s, _seq.Share *share, Py_ssize_t n, Py_ssize_t row,
                    const real_t *hm, real_t *out, const real_t *w_hh) noexcept nogil:
    """A step with layer norm: a share's columns of the product, then its rows of all the rest."""
    cdef Py_ssize_t H = s.H, W = s.G * H, first, last, r
    cdef real_t *c = <real_t *>s.c
    if _seq.range_of(share, W, PANEL, &first, &last):
        gemm_columns(n, first, last, W, s.P, hm, w_hh, <real_t *>s.packed_hh, <real_t *>s.ah)
    _seq.meet(share)
    if not _seq.range_of(share, n, 1, &first, &last):
        return
    r = row + first
    K.lstm_norm_forward(last - first, H, &s.opt, <real_t>EPS, <real_t *>s.ah + first * W,
                        <real_t *>s.gain_hh, <real_t *>s.gain_c, <real_t *>s.bias_c,
                        <real_t *>s.a + r * W, <real_t *>s.peephole, c + first * H,
                        <real_t *>s.cn + first * H, at(s.hhat, r * W, w_hh),
                        at(s.h_rstd, r, w_hh), at(s.chat, r * H, w_hh),
                        at(s.c_rstd, r, w_hh),
                        at(s.tanh_c, r * H, w_hh), out + first * H,
                        <real_t *>s.y + r * s.ldy if s.w_hr == NULL else NULL,
                        s.ldy)  # F2 .. F5
    if s.c_t != NULL:
        _seq.copy_units(last - first, H, 0, H, c + first * H, <real_t *>s.c_t + r * H)


cdef void forward(const Lstm *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, a share's part of each."""
    cdef Py_ssize_t H = s.H, P = s.P, W = s.G * s.H, i, t, n, row, kept, j0, j1
    cdef real_t *h = <real_t *>s.h
    cdef real_t *now       # the state before a step: h, or where the step before put it on the tape
    cdef real_t *new = <real_t *>s.next
    cdef real_t *hm = <real_t *>s.hm
    cdef real_t *c = <real_t *>s.c
    cdef real_t *a
    cdef real_t *out       # where o tanh(c) goes: the state, or the input of the projection
    cdef real_t *y
    cdef real_t *tanh_c
    cdef bint projected = s.w_hr != NULL, normed = s.gain_hh != NULL
    cdef bint whole = s.packed_hh != NULL and not normed  # the step in one kernel
    cdef bint taped = False  # the state before the step is on the tape already
    cdef K.rf_act identity
    identity.kind = K.RF_IDENTITY
    for i in range(s.q.T):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        kept = row if s.keep else 0
        a = at(s.a, row * W, w_hh)
        y = <real_t *>s.y + row * s.ldy
        _seq.zero_share(&s.q, t, share, H, TILE, c)
        now = <real_t *>s.h_prev + row * P if taped else h
        _seq.begin_step(&s.q, t, share, P, TILE, now)
        if s.mask == NULL:
            hm = now
        else:
            if _seq.range_of(share, P, TILE, &j0, &j1):
                _seq.multiply_units(n, P, j0, j1, h, <real_t *>s.mask, hm)
            _seq.meet(share)
        if s.keep and not taped and _seq.range_of(share, P, TILE, &j0, &j1):
            _seq.copy_units(n, P, j0, j1, hm, <real_t *>s.h_prev + row * P)
        taped = s.keep and whole and not projected and s.mask == NULL and goes_on(&s.q, i)
        if projected:
            out = <real_t *>s.m + kept * H
        elif taped:
            out = <real_t *>s.h_prev + s.q.offsets[time_of(&s.q, i + 1)] * P
        else:
            out = new if whole else h
        tanh_c = at(s.tanh_c, kept * H, w_hh)
        if _seq.range_of(share, H, TILE, &j0, &j1):
            if s.keep:
                _seq.copy_units(n, H, j0, j1, c, <real_t *>s.c_prev + row * H)
            if whole:
                K.lstm_step(n, H, j0, j1, i & 1, &s.opt, s.inputs, at(s.x, row * s.inputs, w_hh),
                            <real_t *>s.packed_ih, a if s.lds else <real_t *>s.start, s.lds, P, hm,
                            <real_t *>s.packed_hh, <real_t *>s.peephole, c,
                            a if s.keep else NULL, tanh_c, out,
                            y if not projected else NULL, s.ldy)  # F1 .. F5
            elif not normed:
                gemm_weights(n, W, P, hm, P, w_hh, NULL, <real_t>1, a, W)  # F2
                K.lstm_forward(n, H, &s.opt, a, <real_t *>s.peephole, c, tanh_c, out,
                               y if not projected else NULL, s.ldy)  # F3, F4, F5
            if s.c_t != NULL and not normed:
                _seq.copy_units(n, H, j0, j1, c, <real_t *>s.c_t + row * H)
        if normed:
            norm_step(s, share, n, row, hm, out, w_hh)
        if projected and s.packed_hr != NULL:
            _seq.meet(share)
            if _seq.range_of(share, P, TILE, &j0, &j1):
                K.rnn_step(n, P, j0, j1, i & 1, identity, 0, <real_t *>NULL, <real_t *>NULL,
                           <real_t *>NULL, 0, H, out, <real_t *>s.packed_hr, h, y, s.ldy)  # F6
        elif projected:
            gemm_weights(n, P, H, out, H, <real_t *>s.w_hr, NULL, <real_t>0, h, P)  # F6
            _seq.put_rows(n, P, h, y, s.ldy)
        elif taped:
            pass
        elif whole and share.workers > 1:
            h, new = new, h  # what a step wrote is what the next one reads
        elif whole:
            memcpy(h, out, n * H * sizeof(real_t))
        _seq.meet(share)
    if h != <real_t *>s.h and not share.worker:
        memcpy(<real_t *>s.h, h, s.q.B * H * sizeof(real_t))


cdef void backward(const Lstm *s, _seq.Share *share, const real_t *w_hh) noexcept nogil:
    """All steps, last to first, a share's part of each."""
    cdef Py_ssize_t H = s.H, P = s.P, W = s.G * s.H, i, t, n, row, j0, j1
    cdef real_t *dh = <real_t *>s.h
    cdef real_t *dc = <real_t *>s.c
    cdef real_t *gates
    cdef real_t *da
    cdef real_t *dah
    cdef real_t *dy
    cdef real_t *d         # dE/d(o tanh(c)) without dy
    cdef real_t *tanh_c
    cdef real_t *dp
    cdef bint projected = s.w_hr != NULL, normed = s.gain_hh != NULL
    cdef bint whole = s.panels_hh != NULL and not normed  # gates in the kernel of a product
    cdef Py_ssize_t m = 0   # rows that wait for a product: k columns of `ahead` times `packed`
    cdef Py_ssize_t k = 0
    cdef real_t *ahead = NULL
    cdef real_t *packed = NULL
    for i in range(s.q.T - 1, -1, -1):
        t = time_of(&s.q, i)
        n = s.q.sizes[t]
        row = s.q.offsets[t]
        gates = <real_t *>s.a + row * W
        da = <real_t *>s.da + row * W
        dah = <real_t *>s.dah + row * W
        dy = at(s.dy, row * P, w_hh)
        tanh_c = <real_t *>s.tanh_c + row * H
        d = dh
        if projected:
            dp = <real_t *>s.dp + row * P
            d = <real_t *>s.dm
            if _seq.range_of(share, P, PANEL, &j0, &j1):
                if dy != NULL:
                    _seq.add_units(n, P, j0, j1, dy, dh)  # B1
                _seq.copy_units(n, P, j0, j1, dh, dp)
            dy = NULL
            _seq.meet(share)
            m, k, ahead, packed = n if whole else 0, P, dp, <real_t *>s.panels_hr
            if not whole and _seq.range_of(share, H, PANEL, &j0, &j1):
                gemm_units(i & 1, n, j0, j1, P, dp, P, <real_t *>s.w_hr, <real_t *>s.panels_hr,
                           <real_t>0, d, H)
        if normed:
            _seq.meet(share)  # whole rows of dE/dh and dE/dc
            if _seq.range_of(share, n, 1, &j0, &j1):
                row += j0
                K.lstm_norm_backward(j1 - j0, H, &s.opt, <real_t *>s.a + row * W,
                                     <real_t *>s.peephole, <real_t *>s.c_prev + row * H,
                                     <real_t *>s.tanh_c + row * H, at(s.c_t, row * H, w_hh),
                                     <real_t *>s.gain_hh, <real_t *>s.hhat + row * W,
                                     <real_t *>s.h_rstd + row, <real_t *>s.gain_c,
                                     <real_t *>s.chat + row * H, <real_t *>s.c_rstd + row,
                                     d + j0 * H, dy + j0 * H if dy != NULL else NULL, H,
                                     <real_t *>s.dcn + row * H, <real_t *>s.cn + j0 * H,
                                     dc + j0 * H, <real_t *>s.da + row * W,
                                     <real_t *>s.dah + row * W)  # B1 .. B5
        elif _seq.range_of(share, H, PANEL, &j0, &j1):
            if m > n:
                gemm_units(i & 1, m - n, j0, j1, k, ahead + n * k, k, w_hh, packed, <real_t>0,
                           dh + n * P, P)  # B6 of sequences that begin here
            K.lstm_backward(n, H, j0, j1, i & 1, min(m, n), k, ahead, k, packed, &s.opt, gates,
                            <real_t *>s.peephole, <real_t *>s.c_prev + row * H, tanh_c,
                            at(s.c_t, row * H, w_hh), d, dy, H, dc, da)  # B6, B1 .. B5
        _seq.meet(share)
        m = _seq.put_off(&s.q, i, t, whole and not projected and s.mask == NULL)
        if m:
            k, ahead, packed = W, da, <real_t *>s.panels_hh
            continue
        if _seq.range_of(share, P, PANEL, &j0, &j1):
            gemm_units(i & 1, n, j0, j1, W, dah, W, w_hh, <real_t *>s.panels_hh, <real_t>0, dh,
                       P)  # B6
            if s.mask != NULL:
                _seq.multiply_units(n, P, j0, j1, dh, <real_t *>s.mask, dh)
        _seq.zero_share(&s.q, t, share, P, PANEL, dh)
        _seq.zero_share(&s.q, t, share, H, PANEL, dc)


cdef void forward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Lstm *s = <Lstm *>arg
    if s.size == sizeof(float):
        forward[float](s, share, <float *>s.w_hh)
    else:
        forward[double](s, share, <double *>s.w_hh)


cdef void backward_task(void *arg, _seq.Share *share) noexcept nogil:
    cdef Lstm *s = <Lstm *>arg
    if s.size == sizeof(float):
        backward[float](s, share, <float *>s.w_hh)
    else:
        backward[double](s, share, <double *>s.w_hh)


cdef _seq.Division division(Lstm *s, _seq.share_task *task):
    cdef _seq.Division d
    d.s, d.size, d.q, d.task, d.shift = s, sizeof(Lstm), &s.q, task, shift
    d.H = s.H
    d.weights = s.G * s.H * (s.P + s.inputs) + (s.P * s.H if s.w_hr != NULL else 0)
    return d


cdef void shift(void *part, const Packed *q) noexcept:
    """Let what is kept by sequence begin at the part's first one."""
    cdef Lstm *s = <Lstm *>part
    cdef Py_ssize_t b = q.first, P = s.P * s.size, H = s.H * s.size
    s.q = q[0]
    s.h = _seq.below(s.h, b, P)
    s.hm = _seq.below(s.hm, b, P)
    s.next = _seq.below(s.next, b, P)
    s.mask = _seq.below(s.mask, b, P)
    s.c = _seq.below(s.c, b, H)
    s.ah = _seq.below(s.ah, b, s.G * H)
    s.cn = _seq.below(s.cn, b, H)
    s.dm = _seq.below(s.dm, b, H)
    if not s.keep:
        s.m = _seq.below(s.m, b, H)


cdef void setup(Lstm *s, object batch_sizes, object offsets, object resets, object w_hh,
                object w_hr, object peephole, object norm, object h_mask, object gate,
                bint coupled, double clip, bint reverse, Py_ssize_t N, Py_ssize_t B,
                Py_ssize_t H) except *:
    """The parts that forward and backward share."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t P = w_hh.shape[1], G = 3 if coupled else 4
    memset(s, 0, sizeof(Lstm))
    s.H, s.P, s.G = H, P, G
    s.size = w_hh.itemsize
    s.fixed = is_fixed()
    s.opt.gate = K.activation(gate)
    if s.opt.gate.kind not in (K.RF_SIGMOID, K.RF_HARD_SIGMOID):
        raise ValueError(f"gate must be a sigmoid, got {gate!r}")
    s.opt.coupled = coupled
    s.opt.clip = clip
    if w_hr is None and P != H:
        raise ValueError(f"w_hh: expected shape {(G * H, H)}, got {w_hh.shape}")
    _seq.pack(&s.q, batch_sizes, offsets, resets, B, N, reverse)
    s.w_hh = matrix(w_hh, "w_hh", num, G * H, P)
    s.w_hr = optional_matrix(w_hr, "w_hr", num, P, H)
    s.peephole = optional_matrix(peephole, "peephole", num, 3, H)
    s.mask = optional_matrix(h_mask, "h_mask", num, B, P)
    s.gain_hh = s.gain_c = s.bias_c = NULL
    if norm is not None:
        _, gain_hh, gain_c, bias_c = norm
        s.gain_hh = vector(gain_hh, "gain_hh", num, G * H)
        s.gain_c = vector(gain_c, "gain_c", num, H)
        s.bias_c = vector(bias_c, "bias_c", num, H)


def lstm_forward(x, batch_sizes, h0, c0, w_ih, w_hh, b_ih=None, b_hh=None, *, w_hr=None,
                 peephole=None, norm=None, gate="sigmoid", coupled=False, clip=0.0, h_mask=None,
                 resets=None, reverse=False, keep=True, out=None):
    """Twin of `rnnfast.reference.lstm.lstm_forward`."""
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(x), B = len(h0), H = c0.shape[1], P = w_hh.shape[1]
    cdef Py_ssize_t W = w_hh.shape[0], ldy
    cdef Lstm s
    offsets = _seq.offsets_of(batch_sizes, B, N)
    setup(&s, batch_sizes, offsets, resets, w_hh, w_hr, peephole, norm, h_mask, gate, coupled,
          clip, reverse, N, B, H)
    matrix(h0, "h0", num, B, P)
    matrix(c0, "c0", num, B, H)
    h, c = h0.copy(), c0.copy()
    y = empty(N, P, num) if out is None else out
    cdef Py_ssize_t G = s.G
    cdef bint inputs_inside = norm is None and inside(x, s.q.T)
    cdef _seq.Division d
    packed_ih = pack(w_ih, G) if inputs_inside else None
    packed_hh, packed_hr = pack(w_hh, G if norm is None else 1), pack(w_hr)
    s.packed_ih = packed_data(packed_ih)
    s.packed_hh = packed_data(packed_hh)
    s.packed_hr = packed_data(packed_hr)
    s.y = _seq.strided(y, "out", num, N, P, &ldy)
    s.ldy = ldy
    s.keep = keep

    bias = total_bias(b_ih, b_hh)
    optional_vector(bias, "bias", num, W)
    matrix(w_ih, "w_ih", num, W, w_ih.shape[1])
    kept = {}
    if inputs_inside:
        a = empty(N, W, num) if keep else None
        s.inputs = w_ih.shape[1]
        s.x = matrix(x, "x", num, N, s.inputs)
        s.start = optional_vector(bias, "bias", num, W)
        s.lds = 0
    else:
        a = input_product(x, w_ih, bias if norm is None else None)  # F1
        s.x = s.start = NULL
        s.inputs, s.lds = 0, W
    if norm is not None:
        a, kept["xhat"], x_rstd = layer_norm_forward(a, norm[0], bias)  # F1
        kept["x_rstd"] = x_rstd[:, None]

    def scratch(name, rows, n, needed=True):
        """An array of the tape, or as many rows as a step needs where there is no tape."""
        if not needed:
            return None
        kept[name] = empty(rows, n, num)
        return kept[name]

    cdef Py_ssize_t R = N if keep else B
    s.a = optional_matrix(a, "a", num, N, W)
    s.h = matrix(h, "h", num, B, P)
    new = empty(B, P, num)
    s.next = matrix(new, "new", num, B, P)
    hm = h if h_mask is None else empty(B, P, num)
    s.hm = matrix(hm, "hm", num, B, P)
    s.c = matrix(c, "c", num, B, H)
    s.h_prev = optional_matrix(scratch("h_prev", N, P, keep), "h_prev", num, N, P)
    s.c_prev = optional_matrix(scratch("c_prev", N, H, keep), "c_prev", num, N, H)
    s.tanh_c = optional_matrix(scratch("tanh_c", N, H, keep), "tanh_c", num, N, H)
    s.m = optional_matrix(scratch("m", R, H, w_hr is not None), "m", num, R, H)
    kept_c = scratch("c", N, H, keep and (peephole is not None or clip > 0))
    s.c_t = optional_matrix(kept_c, "c", num, N, H)
    cdef bint norms = keep and norm is not None
    s.hhat = optional_matrix(scratch("hhat", N, W, norms), "hhat", num, N, W)
    s.h_rstd = optional_matrix(scratch("h_rstd", N, 1, norms), "h_rstd", num, N, 1)
    s.chat = optional_matrix(scratch("chat", N, H, norms), "chat", num, N, H)
    s.c_rstd = optional_matrix(scratch("c_rstd", N, 1, norms), "c_rstd", num, N, 1)
    ah, cn = empty(B, W, num), empty(B, H, num)
    s.ah = matrix(ah, "ah", num, B, W)
    s.cn = matrix(cn, "cn", num, B, H)
    d = division(&s, forward_task)
    _seq.divide(&d, s.fixed, batch_sizes, offsets)
    if not keep:
        return y, h, c, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "w_hr": w_hr, "peephole": peephole, "norm": norm, "h_mask": h_mask, "gate": gate,
            "coupled": coupled, "clip": clip, "reverse": reverse, "gates": a, **kept}
    return y, h, c, tape


def lstm_backward(tape, dy, dh_n, dc_n, grads, need_dx=True, *, out=None):
    """Twin of `rnnfast.reference.lstm.lstm_backward`."""
    w_hh, w_hr, peephole, norm = (tape[k] for k in ("w_hh", "w_hr", "peephole", "norm"))
    cdef int num = _seq.typenum(w_hh)
    cdef Py_ssize_t N = len(tape["x"]), B = len(dh_n), H = dc_n.shape[1], P = w_hh.shape[1]
    cdef Py_ssize_t W = w_hh.shape[0]
    cdef bint coupled = tape["coupled"]
    cdef Lstm s
    cdef _seq.Division d
    offsets = _seq.offsets_of(tape["batch_sizes"], B, N)
    setup(&s, tape["batch_sizes"], offsets, tape["resets"], w_hh, w_hr, peephole, norm,
          tape["h_mask"], tape["gate"], coupled, tape["clip"], tape["reverse"], N, B, H)
    matrix(dh_n, "dh_n", num, B, P)
    matrix(dc_n, "dc_n", num, B, H)
    matrix(grads["w_hh"], "dw_hh", num, W, P, True)
    if w_hr is not None:
        matrix(grads["w_hr"], "dw_hr", num, P, H, True)
    if peephole is not None:
        matrix(grads["peephole"], "dpeephole", num, 3, H, True)
    dh, dc = dh_n.copy(), dc_n.copy()
    da = empty(N, W, num)
    dah = da if norm is None else empty(N, W, num)
    dcn = None if norm is None else empty(N, H, num)
    cn = None if norm is None else empty(B, H, num)
    dp = None if w_hr is None else empty(N, P, num)
    dm = None if w_hr is None else empty(B, H, num)
    s.dy = optional_matrix(dy, "dy", num, N, P)
    s.h = matrix(dh, "dh", num, B, P)
    s.c = matrix(dc, "dc", num, B, H)
    s.a = matrix(tape["gates"], "gates", num, N, W)
    s.c_prev = matrix(tape["c_prev"], "c_prev", num, N, H)
    s.tanh_c = matrix(tape["tanh_c"], "tanh_c", num, N, H)
    s.da = matrix(da, "da", num, N, W)
    s.dah = matrix(dah, "dah", num, N, W)
    s.dcn = optional_matrix(dcn, "dcn", num, N, H)
    s.cn = optional_matrix(cn, "cn", num, B, H)
    s.dp = optional_matrix(dp, "dp", num, N, P)
    s.dm = optional_matrix(dm, "dm", num, B, H)
    s.c_t = NULL
    if peephole is not None or tape["clip"] > 0:
        s.c_t = matrix(tape["c"], "c", num, N, H)
    if norm is not None:
        s.hhat = matrix(tape["hhat"], "hhat", num, N, W)
        s.h_rstd = matrix(tape["h_rstd"], "h_rstd", num, N, 1)
        s.chat = matrix(tape["chat"], "chat", num, N, H)
        s.c_rstd = matrix(tape["c_rstd"], "c_rstd", num, N, 1)
    packed_hh, packed_hr = panels(w_hh), panels(w_hr)
    s.panels_hh = packed_data(packed_hh)
    s.panels_hr = packed_data(packed_hr)
    s.keep = True
    d = division(&s, backward_task)
    _seq.divide(&d, s.fixed, tape["batch_sizes"], offsets)
    weight_product(dah, tape["h_prev"], grads["w_hh"])  # B7
    bias_sums(da, grads)  # B8
    if w_hr is not None:
        weight_product(dp, tape["m"], grads["w_hr"])
    if peephole is not None:
        p = grads["peephole"]
        column_dot(da, tape["c_prev"], p[0])
        if not coupled:
            column_dot(da, tape["c_prev"], p[1], H)
        column_dot(da, tape["c"], p[2], W - H)
    dax = da
    if norm is not None:
        column_dot(da, tape["xhat"], grads["gain_ih"])
        column_dot(da, tape["hhat"], grads["gain_hh"])
        column_dot(dcn, tape["chat"], grads["gain_c"])
        column_sum(dcn, grads["bias_c"])
        dax = layer_norm_backward(da, norm[0], tape["xhat"], tape["x_rstd"][:, 0])
    dx = input_product_backward(tape["x"], tape["w_ih"], dax, grads["w_ih"], need_dx, out)  # B9
    return dx, dh, dc
