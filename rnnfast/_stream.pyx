"""A stack of recurrent layers ready to run: weights packed once, states and scratch of its own.

What `Stream` and dense inference of engine ``fused`` run on. Results have the bits of the functions
in _rnn, _lstm and _gru: the same kernels, the same chains (docs/arithmetic.md).
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport allocate, empty
from rnnfast._product cimport (
    PANEL,
    TILE,
    gemm_columns,
    gemm_weights,
    in_place,
    inside_size,
    pack_to,
    packed_size,
    product_in_place,
)
from rnnfast._seq cimport Share, data, matrix, meet, range_of, vector
from rnnfast._types cimport EPS, real_t

cnp.import_array()

cdef enum:
    RNN, LSTM, GRU

KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
cdef enum:
    FEW_UNITS = 64  # RF_FEW_UNITS of csrc/step_tmpl.h
    AVX2 = 32  # bytes of a vector
    BLOCK = 1024  # rows that one product of inputs covers: their sums stay in the nearer caches
    # Multiply-adds of a step up to which it keeps the GIL: to give it away and take it back costs
    # more than the few microseconds are worth to other threads.
    BRIEF = 200000


# One layer in one direction; NULL where the variant has no use for a part.
cdef struct Cell:
    int kind
    bint before     # a GRU's reset comes before the product
    bint normed     # layer norm
    bint projected
    bint reverse
    bint together   # the inputs of many steps are one product,
    Py_ssize_t few  # of so many rows where these are few, else 0
    K.rf_act act
    K.rf_lstm opt
    Py_ssize_t inputs
    Py_ssize_t H
    Py_ssize_t P    # numbers of the state h
    Py_ssize_t G
    void *w_ih      # packed for a step, which reads its inputs itself; or NULL, and then
    void *w_all     # packed for one product over many steps, or as it is where that has few rows
    void *turned    # and scratch for x' and the transpose of the result
    void *w_in      # reset before: n's rows, while w_ih and w_hh have r's and z's
    void *w_hh
    void *w_hn
    void *w_hr
    void *bias
    void *bias_n
    void *peephole
    void *gain_ih
    void *gain_hh
    void *gain_c
    void *bias_c
    void *h         # [B, P]
    void *c         # [B, H]
    void *next      # [B, P] scratch
    void *m         # [B, H] scratch: o tanh(c) before its projection, or r h
    void *z         # [B, H] scratch: a gate that the second half of a step needs
    void *a         # [B, G H] scratch of layer norm: W_ih x,
    void *ah        # W_hh h,
    void *gates     # a GRU's gates,
    void *cn        # [B, H] an LSTM's c
    bint back       # a step goes through the weights as the one before it did not


cdef inline bint in_halves(const Cell *s) noexcept nogil:
    """Whether in the middle of a step all units must be there."""
    return s.before or s.projected


cdef void norm_inputs(const Cell *s, Py_ssize_t N, real_t *a) noexcept nogil:
    """The layer norm of N rows W_ih x, in place."""
    cdef Py_ssize_t W = s.G * s.H, i
    cdef real_t rstd
    for i in range(N):
        K.layer_norm_forward(1, W, <real_t>EPS, a + i * W, <real_t *>s.gain_ih, <real_t *>s.bias,
                             a + i * W, &rstd, a + i * W, False)


cdef void normed_step(Cell *s, Share *share, Py_ssize_t B, const real_t *x, real_t *a, real_t *out,
                      real_t *y, Py_ssize_t ldy) noexcept nogil:
    """A step with layer norm without its projection: a share's columns of the products, then its
    rows of all the rest. a: [B, G H] the normed inputs' part, unless x has the inputs."""
    cdef Py_ssize_t H = s.H, W = s.G * H, first, last, n
    if x != NULL:
        a = <real_t *>s.a
    if range_of(share, W, PANEL, &first, &last):
        if x != NULL:
            gemm_columns(B, first, last, W, s.inputs, x, <real_t *>NULL, <real_t *>s.w_ih, a)
        gemm_columns(B, first, last, W, s.P, <real_t *>s.h, <real_t *>NULL, <real_t *>s.w_hh,
                     <real_t *>s.ah)
    meet(share)
    if not range_of(share, B, 1, &first, &last):
        return
    n = last - first
    a += first * W
    if y != NULL:
        y += first * ldy
    if x != NULL:
        norm_inputs(s, n, a)
    if s.kind == LSTM:
        K.lstm_norm_forward(n, H, &s.opt, <real_t>EPS, <real_t *>s.ah + first * W,
                            <real_t *>s.gain_hh, <real_t *>s.gain_c, <real_t *>s.bias_c, a,
                            <real_t *>s.peephole, <real_t *>s.c + first * H,
                            <real_t *>s.cn + first * H, <real_t *>NULL, <real_t *>NULL,
                            <real_t *>NULL, <real_t *>NULL, <real_t *>NULL, out + first * H, y,
                            ldy)
    else:
        K.gru_norm_forward(n, H, s.act, <real_t>EPS, <real_t *>s.ah + first * W,
                           <real_t *>s.gain_hh, a, <real_t *>s.bias_n,
                           <real_t *>s.gates + first * W, <real_t *>NULL, <real_t *>NULL,
                           <real_t *>NULL, <real_t *>s.h + first * H, out + first * H, y, ldy)


cdef void step(Cell *s, Share *share, Py_ssize_t B, const real_t *x, const real_t *start,
               Py_ssize_t lds, real_t *y, Py_ssize_t ldy) noexcept nogil:
    """One time step of a share's hidden units; x NULL: `start` has the inputs' part already."""
    cdef Py_ssize_t H = s.H, j0, j1
    cdef real_t *h = <real_t *>s.h
    cdef real_t *new = <real_t *>s.next
    cdef real_t *out = <real_t *>s.m if s.projected else new
    cdef real_t *to = NULL if s.projected else y
    cdef const real_t *w_ih = <real_t *>s.w_ih if x != NULL else NULL
    cdef K.rf_act identity
    if s.normed:
        normed_step(s, share, B, x, <real_t *>start, out, to, ldy)
    elif range_of(share, H, TILE, &j0, &j1):
        if s.kind == LSTM:
            K.lstm_step(B, H, j0, j1, s.back, &s.opt, s.inputs, x, w_ih, start, lds, s.P, h,
                        <real_t *>s.w_hh, <real_t *>s.peephole, <real_t *>s.c, <real_t *>NULL,
                        <real_t *>NULL, out, to, ldy)
        elif s.before:
            K.gru_before_gates_step(B, H, j0, j1, s.back, s.act, s.inputs, x, w_ih, start, lds, h,
                                    <real_t *>s.w_hh, <real_t *>NULL, <real_t *>s.z, H,
                                    <real_t *>s.m)
        elif s.kind == GRU:
            K.gru_step(B, H, j0, j1, s.back, s.act, s.inputs, x, w_ih, start, lds,
                       <real_t *>s.bias_n, h, <real_t *>s.w_hh, h, <real_t *>NULL,
                       <real_t *>NULL, new, y, ldy)
        else:
            K.rnn_step(B, H, j0, j1, s.back, s.act, s.inputs, x, w_ih, start, lds, H, h,
                       <real_t *>s.w_hh, new, y, ldy)
    if not in_halves(s):
        return
    meet(share)
    if s.projected:
        identity.kind = K.RF_IDENTITY
        if range_of(share, s.P, TILE, &j0, &j1):
            K.rnn_step(B, s.P, j0, j1, s.back, identity, 0, <real_t *>NULL, <real_t *>NULL,
                       <real_t *>NULL, 0, H, out, <real_t *>s.w_hr, new, y, ldy)
    elif range_of(share, H, TILE, &j0, &j1):
        K.gru_before_output_step(B, H, j0, j1, s.back, s.inputs, x,
                                 <real_t *>s.w_in if x != NULL else NULL,
                                 start + 2 * H if start != NULL else NULL, lds, <real_t *>s.m,
                                 <real_t *>s.w_hn, <real_t *>s.z, <real_t *>NULL, H, h, new, y, ldy)


cdef void swap(Cell *s) noexcept nogil:
    """What a step wrote is what the next one reads."""
    cdef void *h = s.h
    s.h, s.next = s.next, h
    s.back = not s.back


cdef bint is_few(const Cell *s, Py_ssize_t T, Py_ssize_t n, int size) noexcept nogil:
    """Whether n sequences go through all T steps one after the other, each in one kernel: as long
    as it has the weights in the first cache, AVX2's tiles of many rows of few units are no faster;
    AVX-512's are. docs/performance.md has the figures."""
    cdef Py_ssize_t H = s.H
    cdef Py_ssize_t weights = s.G * H * (s.P + (s.inputs if s.w_ih != NULL else 0)) * size
    if H > FEW_UNITS or in_halves(s) or s.normed:
        return False
    if n == 1:
        return True
    if K.layout() == 0:
        return False
    if H * size <= AVX2:
        return n <= 3
    if s.kind == RNN:
        return n <= 8 and weights <= 10000
    if weights <= 10000:
        return n <= 32 or T >= 128
    return n <= 8 and weights <= 20000 or n <= 4 and weights <= 40000


cdef void begin_anew(const Cell *s, Share *share, const uint8_t *resets, Py_ssize_t n, real_t *h,
                     real_t *c) noexcept nogil:
    """The state before a step is zero where `resets` says so; a share's units."""
    cdef Py_ssize_t first, last
    if not _seq.any_of(resets, n):
        return
    if range_of(share, s.P, TILE, &first, &last):
        _seq.zero_flagged(resets, n, s.P, first, last, h)
    if s.kind == LSTM and range_of(share, s.H, TILE, &first, &last):
        _seq.zero_flagged(resets, n, s.H, first, last, c)
    meet(share)


cdef Py_ssize_t until_reset(const uint8_t *resets, Py_ssize_t stride, Py_ssize_t T) noexcept nogil:
    """Of T steps, those before the next one, other than the first, that begins anew."""
    cdef Py_ssize_t t = 1
    if resets == NULL:
        return T
    while t < T and not resets[t * stride]:
        t += 1
    return t


cdef void steps_of_few(Cell *s, Py_ssize_t T, Py_ssize_t B, Py_ssize_t n, const real_t *x,
                       const real_t *start, Py_ssize_t lds, const uint8_t *resets, real_t *y,
                       Py_ssize_t ldy) noexcept nogil:
    """T time steps of n of B sequences; x, start, resets, y: of the first of them."""
    cdef Py_ssize_t H = s.H, sign = -B if s.reverse else B, b, t, steps
    cdef Py_ssize_t ldx = sign * s.inputs
    cdef const real_t *w_ih = <real_t *>s.w_ih if x != NULL else NULL
    cdef const real_t *x_t
    cdef const real_t *start_t
    cdef const uint8_t *resets_t = NULL
    cdef real_t *y_t
    cdef real_t *h = <real_t *>s.h
    cdef real_t *c = <real_t *>s.c
    for b in range(n):
        t = 0
        while t < T:
            x_t = x + b * s.inputs + t * ldx if x != NULL else NULL
            start_t = start + b * lds + t * sign * lds if start != NULL else NULL
            y_t = y + b * ldy + t * sign * ldy if y != NULL else NULL
            if resets != NULL:
                resets_t = resets + b + t * sign
                _seq.zero_flagged(resets_t, 1, H, 0, H, h)
                if s.kind == LSTM:
                    _seq.zero_flagged(resets_t, 1, H, 0, H, c)
            steps = until_reset(resets_t, sign, T - t)
            if s.kind == LSTM:
                K.lstm_steps(steps, H, &s.opt, s.inputs, x_t, ldx, w_ih, start_t, sign * lds, h,
                             <real_t *>s.w_hh, <real_t *>s.peephole, c, y_t, sign * ldy)
            elif s.kind == GRU:
                K.gru_steps(steps, H, s.act, s.inputs, x_t, ldx, w_ih, start_t, sign * lds,
                            <real_t *>s.bias_n, h, <real_t *>s.w_hh, y_t, sign * ldy)
            else:
                K.rnn_steps(steps, H, s.act, s.inputs, x_t, ldx, w_ih, start_t, sign * lds, h,
                            <real_t *>s.w_hh, y_t, sign * ldy)
            t += steps
        h += H
        if s.kind == LSTM:
            c += H


cdef void one_step(Cell *cells, Py_ssize_t layers, Py_ssize_t B, const real_t *x,
                   real_t *y) noexcept nogil:
    """A time step of all layers, in one direction, on this thread: each reads what the one below
    has just written."""
    cdef K.rf_fpmode mode = K.enter()
    cdef Share share
    cdef Py_ssize_t k
    share.worker, share.workers, share.gang, share.alone = 0, 1, NULL, 0
    cdef real_t *out
    for k in range(layers):
        out = y if k == layers - 1 else NULL
        if B == 1 and is_few(&cells[k], 1, 1, sizeof(real_t)):
            steps_of_few(&cells[k], 1, B, B, x, <real_t *>cells[k].bias, 0, NULL, out,
                         cells[k].P)
        else:
            step(&cells[k], &share, B, x, <real_t *>cells[k].bias, 0, out, cells[k].P)
            swap(&cells[k])
        x = <real_t *>cells[k].h
    K.leave(mode)


# T steps of one layer, in one direction or both, over all B sequences.
cdef struct Job:
    Cell *cells
    int directions
    int num
    int parts       # of the batch, by rows; a task is a part in a direction
    bint few_units  # a sequence's steps are one kernel, which leaves the state where it was
    Py_ssize_t T
    Py_ssize_t B
    char *x         # [T B, inputs], or NULL where
    char *a         # holds the inputs' sums of all steps; else scratch, `room` rows a direction
    Py_ssize_t room
    const uint8_t *resets   # [T, B] or NULL
    char *y         # rows ldy apart, the second direction's behind the first's, or NULL
    Py_ssize_t ldy


cdef void inputs_product(const Cell *s, Share *share, Py_ssize_t N, const real_t *x,
                         real_t *a) noexcept nogil:
    """a = bias + W_ih x; with layer norm, which comes next and brings its own, without bias."""
    cdef Py_ssize_t W = s.G * s.H, I = s.inputs, i, first, last
    cdef real_t *columns = <real_t *>s.turned
    cdef real_t *bias
    if s.few:
        if range_of(share, I, TILE, &first, &last):
            K.transpose(N, last - first, x + first, I, columns + first * N, N)
        meet(share)
    if not range_of(share, W, PANEL, &first, &last):
        return
    bias = <real_t *>s.bias + first if s.bias != NULL and not s.normed else NULL
    if s.few:
        product_in_place(N, last - first, I, columns, <real_t *>s.w_all + first * I, bias,
                         columns + (I + first) * N, a + first, W)
        return
    for i in range(N):
        _seq.fill_rows(1, last - first, bias, a + i * W + first)
    gemm_weights(N, last - first, I, x, I, <real_t *>NULL, <real_t *>s.w_all + first * I,
                 <real_t>1, a + first, W)


cdef void run_share(Cell *s, const Job *job, Py_ssize_t b, Py_ssize_t n, Share *share,
                    const real_t *x, real_t *a, real_t *y) noexcept nogil:
    """All steps of a share, for n sequences from b on; x, a, y: of the whole batch."""
    cdef Py_ssize_t W = s.G * s.H, B = job.B, T = job.T, count = T, done = 0, steps, i, t, row
    cdef Py_ssize_t first, last
    cdef bint all_steps = x != NULL and s.w_ih == NULL  # one product for many steps
    cdef const real_t *x_t
    cdef const real_t *start
    cdef const uint8_t *resets = NULL
    cdef real_t *y_t
    if all_steps:
        count = BLOCK // B + 1
    while done < T:
        steps = min(count, T - done)
        if all_steps:
            row = (T - done - steps if s.reverse else done) * B
            inputs_product(s, share, steps * B, x + row * s.inputs, a)
            meet(share)
            if s.normed and range_of(share, steps * B, 1, &first, &last):
                norm_inputs(s, last - first, a + first * W)
        for i in range(steps):
            t = T - 1 - done - i if s.reverse else done + i
            if x == NULL:
                x_t, start = NULL, a + (t * B + b) * W
            elif all_steps:
                x_t, start = NULL, a + (steps - 1 - i if s.reverse else i) * B * W
            else:
                x_t, start = x + (t * B + b) * s.inputs, <real_t *>s.bias
            y_t = y + (t * B + b) * job.ldy if y != NULL else NULL
            if job.resets != NULL:
                resets = job.resets + t * B + b
            if job.few_units:
                steps_of_few(s, steps, B, n, x_t, start, 0 if x_t != NULL else W, resets, y_t,
                             job.ldy)
                break
            if resets != NULL:
                begin_anew(s, share, resets, n, <real_t *>s.h, <real_t *>s.c)
            step(s, share, n, x_t, start, 0 if x_t != NULL else W, y_t, job.ldy)
            swap(s)
            meet(share)
        done += steps


cdef void run_direction(const Job *job, int d, Py_ssize_t b, Py_ssize_t n,
                        Share *share) noexcept nogil:
    cdef Cell s = job.cells[d]  # a copy, as each share goes through the steps by itself
    cdef Py_ssize_t W = s.G * s.H
    cdef Py_ssize_t size = sizeof(float) if job.num == cnp.NPY_FLOAT else sizeof(double)
    cdef char *y = job.y + s.P * size if job.y != NULL and s.reverse else job.y
    cdef char *a = job.a if job.x == NULL else job.a + d * job.room * W * size
    s.h = _seq.below(s.h, b * s.P, size)
    s.c = _seq.below(s.c, b * s.H, size)
    s.next = _seq.below(s.next, b * s.P, size)
    s.m = _seq.below(s.m, b * s.H, size)
    s.z = _seq.below(s.z, b * s.H, size)
    s.a = _seq.below(s.a, b * W, size)
    s.ah = _seq.below(s.ah, b * W, size)
    s.gates = _seq.below(s.gates, b * W, size)
    s.cn = _seq.below(s.cn, b * s.H, size)
    if job.num == cnp.NPY_FLOAT:
        run_share(&s, job, b, n, share, <float *>job.x, <float *>a, <float *>y)
    else:
        run_share(&s, job, b, n, share, <double *>job.x, <double *>a, <double *>y)


cdef void run_rows(void *arg, int task, int worker) noexcept nogil:
    cdef Job *job = <Job *>arg
    cdef Share share
    cdef int part = task % job.parts
    cdef Py_ssize_t first = job.B * part // job.parts
    share.worker, share.workers, share.gang, share.alone = 0, 1, NULL, 0
    run_direction(job, task // job.parts, first, job.B * (part + 1) // job.parts - first, &share)


cdef void run_units(void *arg, int worker, int workers, K.rf_gang *gang) noexcept nogil:
    cdef Job *job = <Job *>arg
    cdef Share share
    cdef int d
    share.worker, share.workers, share.gang, share.alone = worker, workers, gang, 0
    for d in range(job.directions):
        run_direction(job, d, 0, job.B, &share)


cdef void run_job(Job *job) noexcept nogil:
    """All steps; then the cells' states are where the last step left them."""
    cdef Cell *s = job.cells
    cdef double weights = (s.G * s.H * (s.P + (s.inputs if job.x != NULL else 0))
                           + (s.P * s.H if s.projected else 0))
    cdef bint rows = job.x == NULL or s.w_ih != NULL  # not with a product over the whole batch
    cdef _seq.Plan plan = _seq.plan(job.T, job.B if rows else 1, job.directions, weights,
                                    s.H)
    cdef K.rf_fpmode mode = K.enter()
    cdef int d
    job.parts = plan.parts
    job.few_units = not plan.units and is_few(
        s, job.T, (job.B + plan.parts - 1) // plan.parts,
        sizeof(float) if job.num == cnp.NPY_FLOAT else sizeof(double))
    if plan.units:
        K.pool_run_gang(plan.threads, run_units, job)
    else:
        K.pool_run(job.directions * job.parts, plan.threads, run_rows, job)
    K.leave(mode)
    if job.T % 2 and not job.few_units:
        for d in range(job.directions):
            swap(&job.cells[d])


cdef Py_ssize_t rounded(Py_ssize_t n) noexcept nogil:
    """So many elements that what comes after them is aligned for any vector."""
    return (n + 15) // 16 * 16


cdef void put_bias(bint gru, Py_ssize_t H, Py_ssize_t W, const real_t *b_ih, const real_t *b_hh,
                   real_t *bias, real_t *bias_n) noexcept nogil:
    """bias = b_ih + b_hh, of which one may be NULL; but what a GRU's u_n starts at is bias_n."""
    cdef Py_ssize_t n = 2 * H if gru else W
    memcpy(bias, b_hh if b_hh != NULL else b_ih, n * sizeof(real_t))
    if b_ih != NULL and b_hh != NULL:
        K.add(n, b_ih, bias)
    if gru:
        _seq.fill_rows(1, H, b_ih + n if b_ih != NULL else NULL, bias + n)
        _seq.fill_rows(1, H, b_hh + n if b_hh != NULL else NULL, bias_n)


cdef void *place(char *to, Py_ssize_t size, Py_ssize_t n, Py_ssize_t *total) noexcept nogil:
    """Room for n elements behind the `total` that are taken; NULL where n is 0."""
    cdef char *at = to + total[0] * size
    total[0] += rounded(n)
    return at if n else NULL


cdef Py_ssize_t lay_out(Cell *s, Py_ssize_t B, bint biased, char *to,
                        Py_ssize_t size) noexcept nogil:
    """Let what a cell owns lie from `to` on; the number of elements that it takes."""
    cdef Py_ssize_t H = s.H, P = s.P, W = s.G * H, I = s.inputs, total = 0
    cdef Py_ssize_t gates = 1 if s.normed else 2 if s.before else s.G  # packed side by side
    cdef Py_ssize_t rows = W if s.normed else H
    cdef bint inside = not s.together
    s.turned = place(to, size, (I + W) * s.few, &total)
    s.w_all = place(to, size, packed_size(1, W, I) if s.together and not s.few else 0, &total)
    s.w_ih = place(to, size, packed_size(gates, rows, I) if inside else 0, &total)
    s.w_in = place(to, size, packed_size(1, H, I) if inside and s.before else 0, &total)
    s.w_hh = place(to, size, packed_size(gates, rows, P), &total)
    s.w_hn = place(to, size, packed_size(1, H, P) if s.before else 0, &total)
    s.w_hr = place(to, size, packed_size(1, P, H) if s.projected else 0, &total)
    s.bias = place(to, size, W if biased else 0, &total)
    s.bias_n = place(to, size, H if biased and s.kind == GRU and not s.before else 0, &total)
    s.m = place(to, size, B * H if in_halves(s) else 0, &total)
    s.z = place(to, size, B * H if s.before else 0, &total)
    s.a = place(to, size, B * W if s.normed else 0, &total)
    s.ah = place(to, size, B * W if s.normed else 0, &total)
    s.gates = place(to, size, B * W if s.normed and s.kind == GRU else 0, &total)
    s.cn = place(to, size, B * H if s.normed and s.kind == LSTM else 0, &total)
    return total


cdef void prepare(Cell *s, const real_t *w_ih, const real_t *w_hh, const real_t *w_hr,
                  const real_t *b_ih, const real_t *b_hh) noexcept nogil:
    """Pack a cell's parameters into what `lay_out` has given it."""
    cdef Py_ssize_t H = s.H, P = s.P, W = s.G * H, I = s.inputs, rows = W if s.normed else H
    cdef Py_ssize_t gates = 1 if s.normed else 2 if s.before else s.G
    cdef int num = cnp.NPY_FLOAT if real_t is float else cnp.NPY_DOUBLE
    cdef K.rf_fpmode mode = K.enter()
    if s.few:
        s.w_all = <void *>w_ih
    elif s.together:
        pack_to(num, True, 1, W, I, w_ih, s.w_all)
    else:
        pack_to(num, True, gates, rows, I, w_ih, s.w_ih)
    pack_to(num, True, gates, rows, P, w_hh, s.w_hh)
    if s.before:
        if s.w_in != NULL:
            pack_to(num, True, 1, H, I, w_ih + 2 * H * I, s.w_in)
        pack_to(num, True, 1, H, P, w_hh + 2 * H * P, s.w_hn)
    if s.projected:
        pack_to(num, True, 1, P, H, w_hr, s.w_hr)
    if s.bias != NULL:
        put_bias(s.bias_n != NULL, H, W, b_ih, b_hh, <real_t *>s.bias, <real_t *>s.bias_n)
    K.leave(mode)


cdef void *parameter(dict params, dict own, str key, int num, Py_ssize_t rows,
                     Py_ssize_t columns) except? NULL:
    """The memory of a cell's parameter, [rows, columns], or [rows] where columns is 0; or NULL."""
    if key not in own:
        return NULL
    a = params[own[key]]
    return matrix(a, key, num, rows, columns) if columns else vector(a, key, num, rows)


cdef class Stack:
    """Layers on top of each other, in one or both directions, B sequences side by side.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
    params : dict
        Arrays by name.
    names : list of dict
        By layer, then direction: the names of w_ih, w_hh, and of what else there is of b_ih, b_hh,
        w_hr, peephole, gain_ih, gain_hh, gain_c, bias_c.
    directions : int
    B : int
    act : str
        Activation of the gates, of the RNN's state.
    coupled, clip
        Of an LSTM.
    reset_after
        Of a GRU.
    steps : int
        Time steps that a call will cover, as far as known: many make one product of their inputs.
    """

    cdef Cell *cells
    cdef readonly Py_ssize_t layers, directions, B, inputs, features
    cdef Py_ssize_t H, P, W, room, wide_room
    cdef int num, layout
    cdef bint lstm
    cdef bint single        # a step is for `one_step`,
    cdef bint brief         # and with the GIL
    cdef char *states       # h of all cells; as much again, since a step reads one half and writes
    cdef size_t h_size      # the other; and c. h_size, c_size: their bytes
    cdef size_t c_size
    cdef object memory, kept, scratch, between, table

    def __init__(self, str cell, dict params, list names, Py_ssize_t directions, Py_ssize_t B, act,
                 bint coupled=False, double clip=0.0, bint reset_after=True, Py_ssize_t steps=1):
        cdef Cell *s
        cdef Cell probe
        cdef Py_ssize_t k, n = len(names), size, total, H, P, W, most = 0
        cdef Py_ssize_t rows = min(steps, BLOCK // B + 1) * B  # of the largest product of inputs
        cdef bint biased = "b_ih" in names[0] or "b_hh" in names[0]
        cdef cnp.ndarray w_hh = params[names[0]["w_hh"]], w_ih = params[names[0]["w_ih"]]
        cdef char *p
        cdef void *pw_ih
        cdef void *pw_hh
        cdef void *pw_hr
        cdef void *b_ih
        cdef void *b_hh
        cdef dict own
        memset(&probe, 0, sizeof(Cell))
        probe.kind = KINDS[cell]
        probe.act = probe.opt.gate = K.activation(act)
        probe.opt.coupled, probe.opt.clip = coupled, clip
        probe.G = 1 if probe.kind == RNN else 3 if probe.kind == GRU or coupled else 4
        probe.before = probe.kind == GRU and not reset_after
        probe.normed, probe.projected = "gain_hh" in names[0], "w_hr" in names[0]
        self.num, self.layout = _seq.typenum(w_hh), K.layout()
        size = cnp.PyArray_ITEMSIZE(w_hh)
        self.W, self.P = W, P = cnp.PyArray_DIM(w_hh, 0), cnp.PyArray_DIM(w_hh, 1)
        self.H = probe.H = H = W // probe.G
        probe.P = P
        self.B, self.directions, self.layers = B, directions, n // directions
        self.inputs, self.features = cnp.PyArray_DIM(w_ih, 1), directions * P
        self.lstm = probe.kind == LSTM
        self.h_size, self.c_size = n * B * P * size, n * B * H * size if self.lstm else 0
        self.kept, self.table, self.scratch, self.between = [], None, None, None

        # All in one piece: a small net would spend most of its time on making arrays.
        total = 16 + rounded((n * sizeof(Cell) + size - 1) // size)
        total += rounded((2 * self.h_size + self.c_size) // size)
        for k in range(n):
            self.choose(&probe, k, steps, rows)
            total += lay_out(&probe, B, biased, NULL, size)
        self.memory = empty(1, total, self.num)
        p = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.memory)
        p += -<size_t>p % 64
        self.cells = <Cell *>p
        p += rounded((n * sizeof(Cell) + size - 1) // size) * size
        self.states = p
        p += rounded((2 * self.h_size + self.c_size) // size) * size
        total = 0
        for k in range(n):
            s, own = &self.cells[k], names[k]
            s[0] = probe
            self.choose(s, k, steps, rows)
            p += lay_out(s, B, biased, p, size) * size
            b_ih = parameter(params, own, "b_ih", self.num, W, 0)
            b_hh = parameter(params, own, "b_hh", self.num, W, 0)
            s.peephole = parameter(params, own, "peephole", self.num, 3, H)
            s.gain_ih = parameter(params, own, "gain_ih", self.num, W, 0)
            s.gain_hh = parameter(params, own, "gain_hh", self.num, W, 0)
            s.gain_c = parameter(params, own, "gain_c", self.num, H, 0)
            s.bias_c = parameter(params, own, "bias_c", self.num, H, 0)
            pw_ih = matrix(params[own["w_ih"]], "w_ih", self.num, W, s.inputs)
            pw_hh = matrix(params[own["w_hh"]], "w_hh", self.num, W, P)
            pw_hr = parameter(params, own, "w_hr", self.num, P, H)
            self.kept.append({key: params[name] for key, name in own.items()})
            if self.num == cnp.NPY_FLOAT:
                prepare(s, <float *>pw_ih, <float *>pw_hh, <float *>pw_hr, <float *>b_ih,
                        <float *>b_hh)
            else:
                prepare(s, <double *>pw_ih, <double *>pw_hh, <double *>pw_hr, <double *>b_ih,
                        <double *>b_hh)
            total, most = total + B * W * (P + s.inputs), max(most, W * (P + s.inputs))
        self.single = directions == 1 and steps == 1 and not _seq.for_pool(1, B, most)
        self.brief = total <= BRIEF
        self.reset()

    cdef void choose(self, Cell *s, Py_ssize_t k, Py_ssize_t steps, Py_ssize_t rows) noexcept:
        """What cell k reads, and how."""
        s.inputs = self.inputs if k < self.directions else self.features
        s.reverse = k % self.directions == 1
        s.together = steps > 1 and not inside_size(self.B, s.inputs)
        s.few = rows if s.together and in_place(rows, s.inputs) else 0

    cdef void point(self):
        """Let the cells' states be the first halves."""
        cdef char *h = self.states
        cdef Py_ssize_t k, n = self.layers * self.directions, size = self.h_size // n
        for k in range(n):
            self.cells[k].h = h + k * size
            self.cells[k].next = h + (n + k) * size
            self.cells[k].c = h + 2 * self.h_size + k * (self.c_size // n)

    def reset(self):
        """The zero state."""
        memset(self.states, 0, 2 * self.h_size + self.c_size)
        self.point()

    def get_state(self):
        """[h] or [h, c], each (layers * directions, B, size), copies."""
        cdef cnp.npy_intp shape[3]
        cdef Py_ssize_t k, n = self.layers * self.directions, size = self.h_size // n
        shape[0], shape[1], shape[2] = n, self.B, self.P
        h = allocate(3, shape, self.num)
        cdef char *to = <char *>cnp.PyArray_DATA(<cnp.ndarray>h)
        for k in range(n):
            memcpy(to + k * size, self.cells[k].h, size)
        if not self.lstm:
            return [h]
        shape[2] = self.H
        c = allocate(3, shape, self.num)
        memcpy(cnp.PyArray_DATA(<cnp.ndarray>c), self.states + 2 * self.h_size, self.c_size)
        return [h, c]

    def set_state(self, list state):
        """Arrays as `get_state` gives them."""
        cdef Py_ssize_t n = self.layers * self.directions
        self.point()
        memcpy(self.states, data(state[0], "h", self.num, (n, self.B, self.P)), self.h_size)
        if self.lstm:
            memcpy(self.states + 2 * self.h_size,
                   data(state[1], "c", self.num, (n, self.B, self.H)), self.c_size)

    def run(self, x, Py_ssize_t T, out, resets=None):
        """T steps from the state at hand.

        x: (T, B, inputs), or int64 (T, B) class indices in [0, inputs), C-contiguous;
        out: writable C-contiguous array of T B (directions H) elements, or None;
        resets: uint8 (T, B), C-contiguous, not 0 where the state is zero before the step.
        """
        cdef Py_ssize_t N = T * self.B
        cdef cnp.ndarray source = <cnp.ndarray>x
        cdef bint ids = cnp.PyArray_TYPE(source) == cnp.NPY_INT64
        self.check_layout()
        if ids:
            if cnp.PyArray_SIZE(source) != N:
                raise ValueError(f"expected {N} class indices, got {x.size}")
            _seq.checked_ids(x.reshape(N), N, self.inputs)
        elif (cnp.PyArray_TYPE(source) != self.num or cnp.PyArray_SIZE(source) != N * self.inputs
              or not cnp.PyArray_IS_C_CONTIGUOUS(source) or not cnp.PyArray_ISBEHAVED_RO(source)):
            raise ValueError(f"expected a contiguous {self.dtype} array of {N} x {self.inputs}, "
                             f"got {x.dtype} {x.shape}")
        self.advance(source, ids, T, self.memory_of(out, N),
                     <uint8_t *>_seq.optional(resets, "resets", cnp.NPY_UINT8, (T, self.B)))

    cdef int check_layout(self) except -1:
        if self.layout != K.layout():
            raise RuntimeError("the instruction set has changed since this stream packed its "
                               "weights")
        return 0

    cdef void *memory_of(self, object out, Py_ssize_t N) except? NULL:
        if out is None:
            return NULL
        if (cnp.PyArray_TYPE(<cnp.ndarray>out) != self.num
                or cnp.PyArray_SIZE(<cnp.ndarray>out) != N * self.features
                or not cnp.PyArray_ISCARRAY(<cnp.ndarray>out)):
            raise ValueError(f"out: expected a contiguous {self.dtype} array of {N} x "
                             f"{self.features}, got {out.dtype} {out.shape}")
        return cnp.PyArray_DATA(<cnp.ndarray>out)

    cdef object step(self, object x, object out):
        """One time step: (B, inputs) to (B, directions H), a new array or `out`; None where x is
        not of just that kind and shape or `out` not contiguous."""
        cdef cnp.ndarray source
        cdef void *from_
        cdef void *to
        if type(x) is not np.ndarray or not (out is None or type(out) is np.ndarray):
            return None
        source = <cnp.ndarray>x
        if (cnp.PyArray_TYPE(source) != self.num or cnp.PyArray_NDIM(source) != 2
                or cnp.PyArray_DIM(source, 0) != self.B
                or cnp.PyArray_DIM(source, 1) != self.inputs
                or not cnp.PyArray_ISCARRAY_RO(source)):
            return None
        if out is None:
            out = empty(self.B, self.features, self.num)
        elif not cnp.PyArray_ISCARRAY(<cnp.ndarray>out):
            return None
        self.check_layout()
        to = self.memory_of(out, self.B)
        if not self.single:
            self.advance(source, False, 1, to, NULL)
            return out
        from_ = cnp.PyArray_DATA(source)
        if self.brief:
            self.run_step(from_, to)
        else:
            with nogil:
                self.run_step(from_, to)
        return out

    cdef void run_step(self, void *x, void *y) noexcept nogil:
        if self.num == cnp.NPY_FLOAT:
            one_step(self.cells, self.layers, self.B, <float *>x, <float *>y)
        else:
            one_step(self.cells, self.layers, self.B, <double *>x, <double *>y)

    cdef int advance(self, cnp.ndarray source, bint ids, Py_ssize_t T, void *y,
                     const uint8_t *resets) except -1:
        """`run` with arguments that were looked at."""
        cdef Py_ssize_t N = T * self.B, layer, d, rows = 0
        cdef void *px = cnp.PyArray_DATA(source)
        cdef void *buffers[2]
        cdef Job job
        job.room = 0
        for layer in range(self.layers * self.directions):
            if self.cells[layer].w_all != NULL:
                job.room = min(N, (BLOCK // self.B + 1) * self.B)
        rows = N if ids else job.room * self.directions
        if rows > self.room:
            self.scratch, self.room = empty(rows, self.W, self.num), rows
        job.a = NULL
        if self.room:
            job.a = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.scratch)
        buffers[0] = buffers[1] = NULL
        if self.layers > 1:
            if N > self.wide_room:
                self.between = [empty(N, self.features, self.num) for _ in range(2)]
                self.wide_room = N
            for d in range(2):
                buffers[d] = cnp.PyArray_DATA(<cnp.ndarray>self.between[d])
        tables = self.tables() if ids else None
        job.num, job.T, job.B, job.ldy = self.num, T, self.B, self.features
        job.resets = resets
        for layer in range(self.layers):
            job.cells, job.directions = &self.cells[layer * self.directions], self.directions
            job.x = <char *>(px if layer == 0 else buffers[(layer - 1) % 2])
            job.y = <char *>(y if layer == self.layers - 1 else buffers[layer % 2])
            if not ids or layer > 0:
                with nogil:
                    run_job(&job)
                continue
            job.x, job.directions = NULL, 1
            for d in range(self.directions):
                self.look_up(<int64_t *>px, N, tables[d], job.a)
                job.cells = &self.cells[d]
                with nogil:
                    run_job(&job)
        return 0

    cdef object tables(self):
        """Per direction of the first layer: bias + column of W_ih by class, [inputs, W], normed
        where the layer does that."""
        cdef cnp.npy_intp W = self.W
        cdef Py_ssize_t d
        if self.table is None:
            from rnnfast._dense import layer_norm_forward, lookup_table

            self.table = []
            for d in range(self.directions):
                bias = None
                if self.cells[d].bias != NULL:
                    bias = cnp.PyArray_SimpleNewFromData(1, &W, self.num, self.cells[d].bias)
                w_ih, normed = self.kept[d]["w_ih"], self.cells[d].normed
                table = lookup_table(w_ih, None if normed else bias)
                if normed:
                    table = layer_norm_forward(table, self.kept[d]["gain_ih"], bias)[0]
                self.table.append(table)
        return self.table

    cdef void look_up(self, const int64_t *ids, Py_ssize_t N, object table, void *a):
        cdef void *p = cnp.PyArray_DATA(<cnp.ndarray>table)
        if self.num == cnp.NPY_FLOAT:
            _seq.gather_rows[float](N, self.W, ids, <float *>p, <float *>a)
        else:
            _seq.gather_rows[double](N, self.W, ids, <double *>p, <double *>a)


cdef class Steps:
    """What `rnnfast.layers.Stream` inherits: its `step`, with no Python frame around it."""

    cdef Stack stack  # None where the layer's steps are not a kernel's

    def __init__(self, Stack stack):
        self.stack = stack

    def step(self, x, out=None):
        """Output (B, features) for the input (B, I), or (B,) class indices, of one time step."""
        if self.stack is not None:
            y = self.stack.step(x, out)
            if y is not None:
                return y
        return self._step(x, out)
