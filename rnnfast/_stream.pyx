"""A stack of recurrent layers ready to run: weights packed once, states and scratch of its own.

What `Stream` and dense inference of engine ``fused`` run on. Results have the bits of the functions
in _rnn, _lstm and _gru: the same kernels, the same chains (docs/arithmetic.md).
"""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport empty
from rnnfast._product cimport gemm_weights, inside_size, pack, packed_data
from rnnfast._seq cimport matrix, optional_matrix, optional_vector
from rnnfast._types cimport real_t

from rnnfast._dense import lookup_table, total_bias
from rnnfast._gru import gru_bias

cnp.import_array()

cdef enum:
    RNN, LSTM, GRU

KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
cdef enum:
    FEW_UNITS = 32  # RF_FEW_UNITS of csrc/step_tmpl.h
    BLOCK = 1024  # rows that one product of inputs covers: their sums stay in the nearer caches


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
    void *w_all     # packed for one product over many steps
    void *w_hh
    void *bias
    void *bias_n
    void *peephole
    void *h         # [B, H]
    void *c         # [B, H]
    void *next      # [B, H] scratch
    bint back       # a step goes through the weights as the one before it did not


cdef void step(Cell *s, Py_ssize_t B, const real_t *x, const real_t *start, Py_ssize_t lds,
               real_t *y, Py_ssize_t ldy) noexcept nogil:
    """One time step; x NULL: `start` has the inputs' part already."""
    cdef Py_ssize_t H = s.H
    cdef real_t *h = <real_t *>s.h
    cdef real_t *new = <real_t *>s.next
    cdef const real_t *w_ih = <real_t *>s.w_ih if x != NULL else NULL
    if s.kind == LSTM:
        K.lstm_step(B, H, 0, H, s.back, &s.opt, s.inputs, x, w_ih, start, lds, H, h, <real_t *>s.w_hh,
                    <real_t *>s.peephole, <real_t *>s.c, <real_t *>NULL, <real_t *>NULL, new, y,
                    ldy)
    elif s.kind == GRU:
        K.gru_step(B, H, 0, H, s.back, s.act, s.inputs, x, w_ih, start, lds, <real_t *>s.bias_n, h,
                   <real_t *>s.w_hh, h, <real_t *>NULL, <real_t *>NULL, new, y, ldy)
    else:
        K.rnn_step(B, H, 0, H, s.back, s.act, s.inputs, x, w_ih, start, lds, h, <real_t *>s.w_hh, new, y,
                   ldy)
    s.h, s.next = new, h
    s.back = not s.back


cdef bint few(const Cell *s, Py_ssize_t B) noexcept nogil:
    """Whether all steps run in one kernel, which leaves the state where it was."""
    return B == 1 and s.H <= FEW_UNITS


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


# T steps of one layer, in one direction or both, over all B sequences or divided into parts.
cdef struct Job:
    Cell *cells
    int num
    int parts       # of the batch, by rows; a task is a part in a direction
    Py_ssize_t T
    Py_ssize_t B
    char *x         # [T B, inputs], or NULL where
    char *a         # holds the inputs' sums of all steps; else scratch, `room` rows a direction
    Py_ssize_t room
    char *y         # rows ldy apart, the second direction's behind the first's, or NULL
    Py_ssize_t ldy


cdef void run_rows(Cell *s, const Job *job, Py_ssize_t first, Py_ssize_t n, const real_t *x,
                   real_t *a, real_t *y) noexcept nogil:
    """T steps of the n sequences from `first` on; x, a, y: of the whole batch."""
    cdef Py_ssize_t W = s.G * s.H, B = job.B, T = job.T, count = T, done = 0, steps, i, t, row
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
            _seq.fill_rows(steps * B, W, <real_t *>s.bias, a)
            gemm_weights(steps * B, W, s.inputs, x + row * s.inputs, s.inputs, <real_t *>NULL,
                         <real_t *>s.w_all, <real_t>1, a, W)
        i = 0
        while i < steps:
            t = T - 1 - done - i if s.reverse else done + i
            if x == NULL:
                x_t, start = NULL, a + (t * B + first) * W
            elif all_steps:
                x_t, start = NULL, a + (steps - 1 - i if s.reverse else i) * B * W
            else:
                x_t, start = x + (t * B + first) * s.inputs, <real_t *>s.bias
            y_t = y + (t * B + first) * job.ldy if y != NULL else NULL
            if few(s, B):
                steps_of_few(s, steps, x_t, start, 0 if x_t != NULL else W, y_t, job.ldy)
                break
            step(s, n, x_t, start, 0 if x_t != NULL else W, y_t, job.ldy)
            i += 1
        done += steps


cdef void run_task(void *arg, int task, int worker) noexcept nogil:
    cdef Job *job = <Job *>arg
    cdef Cell s = job.cells[task // job.parts]
    cdef int part = task % job.parts
    cdef Py_ssize_t first = job.B * part // job.parts, n = job.B * (part + 1) // job.parts - first
    cdef Py_ssize_t size = sizeof(float) if job.num == cnp.NPY_FLOAT else sizeof(double)
    cdef char *y = job.y + s.H * size if job.y != NULL and s.reverse else job.y
    cdef char *a = job.a if job.x == NULL else job.a + task // job.parts * job.room * s.G * s.H * size
    s.h = _seq.below(s.h, first * s.H, size)
    s.c = _seq.below(s.c, first * s.H, size)
    s.next = _seq.below(s.next, first * s.H, size)
    if job.num == cnp.NPY_FLOAT:
        run_rows(&s, job, first, n, <float *>job.x, <float *>a, <float *>y)
    else:
        run_rows(&s, job, first, n, <double *>job.x, <double *>a, <double *>y)


cdef void run_job(Job *job, int directions) noexcept nogil:
    """All tasks; then the cells' states are where the last step left them."""
    cdef Cell *s = job.cells
    cdef Py_ssize_t work = job.T * job.B * s.G * s.H * (s.H + (s.inputs if job.x != NULL else 0))
    cdef int threads = K.num_threads() if work * directions >= _seq.WORK_FOR_POOL else 1, d
    cdef K.rf_fpmode mode
    cdef void *h
    job.parts = 1
    if job.x == NULL or s.w_ih != NULL:  # not with a product that is over the whole batch
        job.parts = min(<Py_ssize_t>(threads + directions - 1) // directions, job.B)
    mode = K.enter()
    if threads > 1 and directions * job.parts > 1:
        K.pool_run(directions * job.parts, threads, run_task, job)
    else:
        for d in range(directions * job.parts):
            run_task(job, d, 0)
    K.leave(mode)
    for d in range(directions):
        s = &job.cells[d]
        if job.T % 2 and not few(s, job.B):
            h = s.h
            s.h, s.next = s.next, h
            s.back = not s.back


cdef class Stack:
    """Layers on top of each other, in one or both directions, B sequences side by side.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
    weights : list of dict
        By layer, then direction: w_ih, w_hh, and b_ih, b_hh, peephole where there are any.
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
    cdef object dtype, kept, scratch, between, table, states
    cdef bint lstm
    cdef object cell_memory

    def __init__(self, str cell, list weights, Py_ssize_t directions, Py_ssize_t B, act,
                 bint coupled=False, double clip=0.0, Py_ssize_t steps=1):
        cdef Cell *s
        cdef Py_ssize_t k, W
        first = weights[0]
        self.num = _seq.typenum(first["w_hh"])
        self.dtype = first["w_hh"].dtype
        self.H, self.B, self.directions = first["w_hh"].shape[1], B, directions
        self.W = W = first["w_hh"].shape[0]
        self.layers = len(weights) // directions
        self.inputs, self.features = first["w_ih"].shape[1], directions * self.H
        self.lstm = cell == "lstm"
        memory = np.zeros(len(weights) * sizeof(Cell), np.uint8)
        self.cell_memory = memory
        self.cells = <Cell *>cnp.PyArray_DATA(<cnp.ndarray>memory)
        self.kept = []
        self.table = self.scratch = self.between = None
        shape = len(weights), B, self.H
        # twice: a step reads one half and writes the other
        self.states = [np.zeros((2, *shape), self.dtype)]
        if self.lstm:
            self.states.append(np.zeros(shape, self.dtype))
        for k in range(len(weights)):
            s = &self.cells[k]
            p = weights[k]
            s.kind = KINDS[cell]
            s.act = s.opt.gate = K.activation(act)
            s.opt.coupled, s.opt.clip = coupled, clip
            s.H, s.G, s.inputs = self.H, W // self.H, p["w_ih"].shape[1]
            s.reverse = k % directions == 1
            matrix(p["w_ih"], "w_ih", self.num, W, s.inputs)
            matrix(p["w_hh"], "w_hh", self.num, W, self.H)
            bias, bias_n = p.get("b_ih"), None
            if cell == "gru":
                bias, bias_n = gru_bias(bias, p.get("b_hh"), True)
            else:
                bias = total_bias(bias, p.get("b_hh"))
            peephole = p.get("peephole")
            together = steps > 1 and not inside_size(B, s.inputs)
            packed = pack(p["w_ih"], 1 if together else s.G), pack(p["w_hh"], s.G)
            s.w_all = packed_data(packed[0]) if together else NULL
            s.w_ih = NULL if together else packed_data(packed[0])
            s.w_hh = packed_data(packed[1])
            s.bias = optional_vector(bias, "bias", self.num, W)
            s.bias_n = optional_vector(bias_n, "bias", self.num, self.H)
            s.peephole = optional_matrix(peephole, "peephole", self.num, 3, self.H)
            self.kept.append((packed, bias, bias_n, peephole, p["w_ih"]))
        self.point()

    cdef void point(self):
        """Let the cells' states be the first halves."""
        cdef char *h = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.states[0])
        cdef char *c = NULL
        cdef Py_ssize_t k, n = self.layers * self.directions
        cdef Py_ssize_t size = self.B * self.H * cnp.PyArray_ITEMSIZE(<cnp.ndarray>self.states[0])
        if self.lstm:
            c = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.states[1])
        for k in range(n):
            self.cells[k].h, self.cells[k].next = h + k * size, h + (n + k) * size
            self.cells[k].c = c + k * size if c != NULL else NULL

    def reset(self):
        """The zero state."""
        for a in self.states:
            a.fill(0)
        self.point()

    def get_state(self):
        """[h] or [h, c], each (layers * directions, B, H), copies."""
        cdef Py_ssize_t k, n = self.layers * self.directions
        cdef Py_ssize_t size = self.B * self.H * cnp.PyArray_ITEMSIZE(<cnp.ndarray>self.states[0])
        h = np.empty((n, self.B, self.H), self.dtype)
        cdef char *p = <char *>cnp.PyArray_DATA(<cnp.ndarray>h)
        for k in range(n):
            memcpy(p + k * size, self.cells[k].h, size)
        return [h, self.states[1].copy()] if self.lstm else [h]

    def set_state(self, list state):
        """Arrays as `get_state` gives them."""
        self.point()
        self.states[0][0] = state[0]
        if self.lstm:
            self.states[1][...] = state[1]

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

    def step(self, x, out=None):
        """One time step: (B, inputs) or (B,) class indices to (B, directions H), a new array or
        `out`. What is not of just that kind and shape gives NotImplemented."""
        cdef cnp.ndarray source
        if not isinstance(x, np.ndarray):
            return NotImplemented
        source = <cnp.ndarray>x
        if (cnp.PyArray_TYPE(source) != self.num or cnp.PyArray_NDIM(source) != 2
                or cnp.PyArray_DIM(source, 0) != self.B
                or cnp.PyArray_DIM(source, 1) != self.inputs
                or not cnp.PyArray_IS_C_CONTIGUOUS(source)
                or not cnp.PyArray_ISBEHAVED_RO(source)):
            return NotImplemented
        if out is None:
            out = empty(self.B, self.features, self.num)
        self.advance(source, False, 1, self.memory_of(out, self.B))
        return out

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
            job.cells = &self.cells[layer * self.directions]
            job.x = <char *>(px if layer == 0 else buffers[(layer - 1) % 2])
            job.y = <char *>(y if layer == self.layers - 1 else buffers[layer % 2])
            if not ids or layer > 0:
                with nogil:
                    run_job(&job, self.directions)
                continue
            job.x = NULL
            for d in range(self.directions):
                self.look_up(<int64_t *>px, N, tables[d], job.a)
                job.cells = &self.cells[d]
                with nogil:
                    run_job(&job, 1)
        return 0

    cdef object tables(self):
        """Per direction of the first layer: bias + column of W_ih by class, [inputs, W]."""
        if self.table is None:
            self.table = []
            for _, bias, _, _, w_ih in self.kept[:self.directions]:
                self.table.append(lookup_table(w_ih, bias))
        return self.table

    cdef void look_up(self, const int64_t *ids, Py_ssize_t N, object table, void *a):
        cdef void *p = cnp.PyArray_DATA(<cnp.ndarray>table)
        if self.num == cnp.NPY_FLOAT:
            _seq.gather_rows[float](N, self.W, ids, <float *>p, <float *>a)
        else:
            _seq.gather_rows[double](N, self.W, ids, <double *>p, <double *>a)
