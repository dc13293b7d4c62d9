"""A stack of recurrent layers ready to run: weights packed once, states and scratch of its own.

What `Stream` and dense inference of engine ``fused`` run on. Results have the bits of the functions
in _rnn, _lstm and _gru: the same kernels, the same chains (docs/arithmetic.md).
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport allocate, empty
from rnnfast._product cimport (
    PANEL,
    TILE,
    gemm_weights,
    in_place,
    inside_size,
    pack_to,
    packed_size,
    product_in_place,
)
from rnnfast._seq cimport Share, data, matrix, meet, range_of, vector
from rnnfast._types cimport real_t

cnp.import_array()

cdef enum:
    RNN, LSTM, GRU

KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
cdef enum:
    FEW_UNITS = 32  # RF_FEW_UNITS of csrc/step_tmpl.h
    BLOCK = 1024  # rows that one product of inputs covers: their sums stay in the nearer caches
    # Multiply-adds of a step up to which it keeps the GIL: to give it away and take it back costs
    # more than the few microseconds are worth to other threads.
    BRIEF = 200000


# One layer in one direction.
cdef struct Cell:
    int kind
    K.rf_act act
    K.rf_lstm opt
    Py_ssize_t inputs
    Py_ssize_t H
    Py_ssize_t G
    bint reverse
    void *w_ih      # packed with all gates: a step reads its inputs itself; or NULL, and then
    void *w_all     # packed for one product over many steps; or as it is where that has few rows:
    Py_ssize_t few  # so many, or 0; and then
    void *turned    # scratch for x' and the transpose of the result
    void *w_hh
    void *bias
    void *bias_n
    void *peephole
    void *h         # [B, H]
    void *c         # [B, H]
    void *next      # [B, H] scratch
    bint back       # a step goes through the weights as the one before it did not


cdef void step(Cell *s, Py_ssize_t B, Py_ssize_t j0, Py_ssize_t j1, const real_t *x,
               const real_t *start, Py_ssize_t lds, real_t *y, Py_ssize_t ldy) noexcept nogil:
    """One time step of the hidden units j0 to j1; x NULL: `start` has the inputs' part already."""
    cdef Py_ssize_t H = s.H
    cdef real_t *h = <real_t *>s.h
    cdef real_t *new = <real_t *>s.next
    cdef const real_t *w_ih = <real_t *>s.w_ih if x != NULL else NULL
    if s.kind == LSTM:
        K.lstm_step(B, H, j0, j1, s.back, &s.opt, s.inputs, x, w_ih, start, lds, H, h,
                    <real_t *>s.w_hh, <real_t *>s.peephole, <real_t *>s.c, <real_t *>NULL,
                    <real_t *>NULL, new, y, ldy)
    elif s.kind == GRU:
        K.gru_step(B, H, j0, j1, s.back, s.act, s.inputs, x, w_ih, start, lds,
                   <real_t *>s.bias_n, h, <real_t *>s.w_hh, h, <real_t *>NULL, <real_t *>NULL, new,
                   y, ldy)
    else:
        K.rnn_step(B, H, j0, j1, s.back, s.act, s.inputs, x, w_ih, start, lds, h,
                   <real_t *>s.w_hh, new, y, ldy)


cdef void swap(Cell *s) noexcept nogil:
    """What a step wrote is what the next one reads."""
    cdef void *h = s.h
    s.h, s.next = s.next, h
    s.back = not s.back


cdef void one_step(Cell *cells, Py_ssize_t layers, Py_ssize_t B, const real_t *x,
                   real_t *y) noexcept nogil:
    """A time step of all layers, in one direction, on this thread: each reads what the one below
    has just written."""
    cdef K.rf_fpmode mode = K.enter()
    cdef Py_ssize_t k
    for k in range(layers):
        step(&cells[k], B, 0, cells[k].H, x, <real_t *>cells[k].bias, 0,
             y if k == layers - 1 else NULL, cells[k].H)
        swap(&cells[k])
        x = <real_t *>cells[k].h
    K.leave(mode)


cdef void steps_of_few(Cell *s, Py_ssize_t T, const real_t *x, const real_t *start, Py_ssize_t lds,
                       real_t *y, Py_ssize_t ldy) noexcept nogil:
    """T time steps; x, start, y: of the first of them."""
    cdef Py_ssize_t H = s.H, ldx = -s.inputs if s.reverse else s.inputs
    cdef const real_t *w_ih = <real_t *>s.w_ih if x != NULL else NULL
    if s.reverse:
        lds, ldy = -lds, -ldy
    if s.kind == LSTM:
        K.lstm_steps(T, H, &s.opt, s.inputs, x, ldx, w_ih, start, lds, <real_t *>s.h,
                     <real_t *>s.w_hh, <real_t *>s.peephole, <real_t *>s.c, y, ldy)
    elif s.kind == GRU:
        K.gru_steps(T, H, s.act, s.inputs, x, ldx, w_ih, start, lds, <real_t *>s.bias_n,
                    <real_t *>s.h, <real_t *>s.w_hh, y, ldy)
    else:
        K.rnn_steps(T, H, s.act, s.inputs, x, ldx, w_ih, start, lds, <real_t *>s.h,
                    <real_t *>s.w_hh, y, ldy)


# T steps of one layer, in one direction or both, over all B sequences.
cdef struct Job:
    Cell *cells
    int directions
    int num
    int parts       # of the batch, by rows; a task is a part in a direction
    bint few_units  # all steps in one kernel, which leaves the state where it was
    Py_ssize_t T
    Py_ssize_t B
    char *x         # [T B, inputs], or NULL where
    char *a         # holds the inputs' sums of all steps; else scratch, `room` rows a direction
    Py_ssize_t room
    char *y         # rows ldy apart, the second direction's behind the first's, or NULL
    Py_ssize_t ldy


cdef void inputs_product(const Cell *s, Share *share, Py_ssize_t N, const real_t *x,
                         real_t *a) noexcept nogil:
    """a = bias + W_ih x."""
    cdef Py_ssize_t W = s.G * s.H, I = s.inputs, i, first, last
    cdef real_t *columns = <real_t *>s.turned
    cdef real_t *bias
    if s.few:
        if range_of(share, I, TILE, &first, &last):
            K.transpose(N, last - first, x + first, I, columns + first * N, N)
        meet(share)
    if not range_of(share, W, PANEL, &first, &last):
        return
    bias = <real_t *>s.bias + first if s.bias != NULL else NULL
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
    cdef Py_ssize_t j0, j1
    cdef bint all_steps = x != NULL and s.w_ih == NULL  # one product for many steps
    cdef const real_t *x_t
    cdef const real_t *start
    cdef real_t *y_t
    if all_steps:
        count = BLOCK // B + 1
    while done < T:
        steps = min(count, T - done)
        if all_steps:
            row = (T - done - steps if s.reverse else done) * B
            inputs_product(s, share, steps * B, x + row * s.inputs, a)
            meet(share)
        for i in range(steps):
            t = T - 1 - done - i if s.reverse else done + i
            if x == NULL:
                x_t, start = NULL, a + (t * B + b) * W
            elif all_steps:
                x_t, start = NULL, a + (steps - 1 - i if s.reverse else i) * B * W
            else:
                x_t, start = x + (t * B + b) * s.inputs, <real_t *>s.bias
            y_t = y + (t * B + b) * job.ldy if y != NULL else NULL
            if job.few_units:
                steps_of_few(s, steps, x_t, start, 0 if x_t != NULL else W, y_t, job.ldy)
                break
            if range_of(share, s.H, TILE, &j0, &j1):
                step(s, n, j0, j1, x_t, start, 0 if x_t != NULL else W, y_t, job.ldy)
            swap(s)
            meet(share)
        done += steps


cdef void run_direction(const Job *job, int d, Py_ssize_t b, Py_ssize_t n,
                        Share *share) noexcept nogil:
    cdef Cell s = job.cells[d]  # a copy, as each share goes through the steps by itself
    cdef Py_ssize_t size = sizeof(float) if job.num == cnp.NPY_FLOAT else sizeof(double)
    cdef char *y = job.y + s.H * size if job.y != NULL and s.reverse else job.y
    cdef char *a = job.a if job.x == NULL else job.a + d * job.room * s.G * s.H * size
    s.h = _seq.below(s.h, b * s.H, size)
    s.c = _seq.below(s.c, b * s.H, size)
    s.next = _seq.below(s.next, b * s.H, size)
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
    cdef double weights = s.G * s.H * (s.H + (s.inputs if job.x != NULL else 0))
    cdef bint rows = job.x == NULL or s.w_ih != NULL  # not with a product over the whole batch
    cdef _seq.Plan plan = _seq.plan(job.T, job.B if rows else 1, job.directions, weights, s.H)
    cdef K.rf_fpmode mode = K.enter()
    cdef int d
    job.parts = plan.parts
    job.few_units = job.B == 1 and s.H <= FEW_UNITS and not plan.units
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


cdef Py_ssize_t inputs_room(Py_ssize_t G, Py_ssize_t H, Py_ssize_t inputs, bint together,
                            Py_ssize_t few) noexcept nogil:
    """Elements of the inputs' weights, packed; or of what a product of few rows writes."""
    if few:
        return rounded((inputs + G * H) * few)
    return packed_size(1, G * H, inputs) if together else packed_size(G, H, inputs)


cdef Py_ssize_t room_of(Py_ssize_t G, Py_ssize_t H, Py_ssize_t inputs, bint together,
                        Py_ssize_t few) noexcept nogil:
    """Elements that `prepare` needs."""
    return (inputs_room(G, H, inputs, together, few) + packed_size(G, H, H) + rounded(G * H)
            + rounded(H))


cdef void prepare(Cell *s, bint together, Py_ssize_t few, const real_t *w_ih, const real_t *w_hh,
                  const real_t *b_ih, const real_t *b_hh, real_t *to) noexcept nogil:
    """Pack a cell's parameters, from `to` on. The inputs' weights for one product over many steps,
    or not at all if it is of few rows."""
    cdef Py_ssize_t W = s.G * s.H
    cdef bint biased = b_ih != NULL or b_hh != NULL
    cdef int num = cnp.NPY_FLOAT if real_t is float else cnp.NPY_DOUBLE
    cdef K.rf_fpmode mode = K.enter()
    s.w_ih = s.w_all = s.turned = s.bias = s.bias_n = NULL
    s.few = few
    if few:
        s.w_all, s.turned = <void *>w_ih, to
    elif together:
        s.w_all = to
        pack_to(num, True, 1, W, s.inputs, w_ih, to)
    else:
        s.w_ih = to
        pack_to(num, True, s.G, s.H, s.inputs, w_ih, to)
    to += inputs_room(s.G, s.H, s.inputs, together, few)
    s.w_hh = to
    pack_to(num, True, s.G, s.H, s.H, w_hh, to)
    to += packed_size(s.G, s.H, s.H)
    if biased:
        s.bias = to
        s.bias_n = to + rounded(W) if s.kind == GRU else NULL
        put_bias(s.kind == GRU, s.H, W, b_ih, b_hh, to, to + rounded(W))
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
        By layer, then direction: the names of w_ih, w_hh, and of b_ih, b_hh, peephole where there
        are any.
    directions : int
    B : int
    act : str
        Activation of the gates, of the RNN's state.
    coupled, clip
        Of an LSTM.
    steps : int
        Time steps that a call will cover, as far as known: many make one product of their inputs.
    """

    cdef Cell *cells
    cdef readonly Py_ssize_t layers, directions, B, inputs, features
    cdef Py_ssize_t H, W, room, wide_room
    cdef int num
    cdef bint lstm
    cdef bint single        # a step is for `one_step`,
    cdef bint brief         # and with the GIL
    cdef char *states       # h of all cells; as much again, since a step reads one half and writes
    cdef size_t state_size  # the other; and c. state_size: bytes of one of the three
    cdef object memory, kept, scratch, between, table

    def __init__(self, str cell, dict params, list names, Py_ssize_t directions, Py_ssize_t B, act,
                 bint coupled=False, double clip=0.0, Py_ssize_t steps=1):
        cdef Cell *s
        cdef Py_ssize_t k, n = len(names), size, total, inputs, W, H, few, most = 0
        cdef Py_ssize_t rows = min(steps, BLOCK // B + 1) * B  # of the largest product of inputs
        cdef bint together
        cdef int kind = KINDS[cell]
        cdef K.rf_act activation = K.activation(act)
        cdef cnp.ndarray w_hh = params[names[0]["w_hh"]], w_ih = params[names[0]["w_ih"]]
        cdef char *p
        cdef void *pw_ih
        cdef void *pw_hh
        cdef void *b_ih
        cdef void *b_hh
        cdef dict own
        self.num = _seq.typenum(w_hh)
        size = cnp.PyArray_ITEMSIZE(w_hh)
        self.W, self.H = W, H = cnp.PyArray_DIM(w_hh, 0), cnp.PyArray_DIM(w_hh, 1)
        self.B, self.directions, self.layers = B, directions, n // directions
        self.inputs, self.features = cnp.PyArray_DIM(w_ih, 1), directions * H
        self.lstm = kind == LSTM
        self.state_size = n * B * H * size
        self.kept, self.table, self.scratch, self.between = [], None, None, None

        # All in one piece: a small net would spend most of its time on making arrays.
        total = 16 + rounded((n * sizeof(Cell) + size - 1) // size) + rounded(3 * n * B * H)
        for k in range(n):
            inputs = self.inputs if k < directions else self.features
            together = steps > 1 and not inside_size(B, inputs)
            few = rows if together and in_place(rows, inputs) else 0
            total += room_of(W // H, H, inputs, together, few)
        self.memory = empty(1, total, self.num)
        p = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.memory)
        p += -<size_t>p % 64
        self.cells = <Cell *>p
        p += rounded((n * sizeof(Cell) + size - 1) // size) * size
        self.states = p
        p += rounded(3 * n * B * H) * size
        total = 0
        for k in range(n):
            s, own = &self.cells[k], names[k]
            s.kind, s.act, s.opt.gate = kind, activation, activation
            s.opt.coupled, s.opt.clip = coupled, clip
            s.H, s.G = H, W // H
            s.inputs = inputs = self.inputs if k < directions else self.features
            s.reverse = k % directions == 1
            b_ih = parameter(params, own, "b_ih", self.num, W, 0)
            b_hh = parameter(params, own, "b_hh", self.num, W, 0)
            s.peephole = parameter(params, own, "peephole", self.num, 3, H)
            pw_ih = matrix(params[own["w_ih"]], "w_ih", self.num, W, inputs)
            pw_hh = matrix(params[own["w_hh"]], "w_hh", self.num, W, H)
            self.kept.append((params[own["w_ih"]], params.get(own.get("peephole"))))
            together = steps > 1 and not inside_size(B, inputs)
            few = rows if together and in_place(rows, inputs) else 0
            if self.num == cnp.NPY_FLOAT:
                prepare(s, together, few, <float *>pw_ih, <float *>pw_hh, <float *>b_ih,
                        <float *>b_hh, <float *>p)
            else:
                prepare(s, together, few, <double *>pw_ih, <double *>pw_hh, <double *>b_ih,
                        <double *>b_hh, <double *>p)
            p += room_of(s.G, H, inputs, together, few) * size
            total, most = total + B * W * (H + inputs), max(most, W * (H + inputs))
        self.single = directions == 1 and steps == 1 and not _seq.for_pool(1, B, most)
        self.brief = total <= BRIEF
        self.reset()

    cdef void point(self):
        """Let the cells' states be the first halves."""
        cdef char *h = self.states
        cdef Py_ssize_t k, n = self.layers * self.directions, size = self.state_size // n
        for k in range(n):
            self.cells[k].h = h + k * size
            self.cells[k].next = h + (n + k) * size
            self.cells[k].c = h + (2 * n + k) * size

    def reset(self):
        """The zero state."""
        memset(self.states, 0, 3 * self.state_size)
        self.point()

    def get_state(self):
        """[h] or [h, c], each (layers * directions, B, H), copies."""
        cdef cnp.npy_intp shape[3]
        cdef Py_ssize_t k, n = self.layers * self.directions, size = self.state_size // n
        shape[0], shape[1], shape[2] = n, self.B, self.H
        h = allocate(3, shape, self.num)
        cdef char *to = <char *>cnp.PyArray_DATA(<cnp.ndarray>h)
        for k in range(n):
            memcpy(to + k * size, self.cells[k].h, size)
        if not self.lstm:
            return [h]
        c = allocate(3, shape, self.num)
        memcpy(cnp.PyArray_DATA(<cnp.ndarray>c), self.states + 2 * self.state_size,
               self.state_size)
        return [h, c]

    def set_state(self, list state):
        """Arrays as `get_state` gives them."""
        cdef tuple shape = (self.layers * self.directions, self.B, self.H)
        self.point()
        memcpy(self.states, data(state[0], "h", self.num, shape), self.state_size)
        if self.lstm:
            memcpy(self.states + 2 * self.state_size, data(state[1], "c", self.num, shape),
                   self.state_size)

    def run(self, x, Py_ssize_t T, out):
        """T steps from the state at hand.

        x: (T, B, inputs), or int64 (T, B) class indices in [0, inputs), C-contiguous;
        out: writable C-contiguous array of T B (directions H) elements, or None.
        """
        cdef Py_ssize_t N = T * self.B
        cdef cnp.ndarray source = <cnp.ndarray>x
        cdef bint ids = cnp.PyArray_TYPE(source) == cnp.NPY_INT64
        if ids:
            if cnp.PyArray_SIZE(source) != N:
                raise ValueError(f"expected {N} class indices, got {x.size}")
            _seq.checked_ids(x.reshape(N), N, self.inputs)
        elif (cnp.PyArray_TYPE(source) != self.num or cnp.PyArray_SIZE(source) != N * self.inputs
              or not cnp.PyArray_IS_C_CONTIGUOUS(source) or not cnp.PyArray_ISBEHAVED_RO(source)):
            raise ValueError(f"expected a contiguous {self.dtype} array of {N} x {self.inputs}, "
                             f"got {x.dtype} {x.shape}")
        self.advance(source, ids, T, self.memory_of(out, N))

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
        to = self.memory_of(out, self.B)
        if not self.single:
            self.advance(source, False, 1, to)
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

    cdef int advance(self, cnp.ndarray source, bint ids, Py_ssize_t T, void *y) except -1:
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
        """Per direction of the first layer: bias + column of W_ih by class, [inputs, W]."""
        cdef cnp.npy_intp W = self.W
        cdef Py_ssize_t d
        if self.table is None:
            from rnnfast._dense import lookup_table

            self.table = []
            for d in range(self.directions):
                bias = None
                if self.cells[d].bias != NULL:
                    bias = cnp.PyArray_SimpleNewFromData(1, &W, self.num, self.cells[d].bias)
                self.table.append(lookup_table(self.kept[d][0], bias))
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
