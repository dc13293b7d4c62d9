"""What the three cells share: checked arrays, packed batches, rows."""

import numpy as np

cimport numpy as cnp
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K

cnp.import_array()


cdef int typenum(object x) except -1:
    """NPY_FLOAT or NPY_DOUBLE of an array; any other dtype is a TypeError."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected an ndarray, got {type(x).__name__}")
    cdef int num = cnp.PyArray_TYPE(<cnp.ndarray>x)
    if num != cnp.NPY_FLOAT and num != cnp.NPY_DOUBLE:
        raise TypeError(f"expected float32 or float64, got {x.dtype}")
    return num


cdef void *data(object a, str name, int num, tuple shape, bint write=False) except? NULL:
    """The memory of a C-contiguous array of just this dtype and shape, which must be writable if
    `write`."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(a).__name__}")
    cdef cnp.ndarray arr = <cnp.ndarray>a
    if cnp.PyArray_TYPE(arr) != num or not cnp.PyArray_ISBEHAVED_RO(arr):
        raise TypeError(f"{name}: expected {np.dtype(cnp.PyArray_DescrFromType(num))} in native "
                        f"byte order, got {a.dtype}")
    if (<object>arr).shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {(<object>arr).shape}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(arr):
        raise ValueError(f"{name}: expected a C-contiguous array")
    if write and not cnp.PyArray_ISWRITEABLE(arr):
        raise ValueError(f"{name}: expected a writable array")
    return cnp.PyArray_DATA(arr)


cdef void *optional(object a, str name, int num, tuple shape, bint write=False) except? NULL:
    """`data`, or NULL for None."""
    return NULL if a is None else data(a, name, num, shape, write)


cdef void *matrix(object a, str name, int num, Py_ssize_t rows, Py_ssize_t columns,
                  bint write=False) except? NULL:
    """`data` for two dimensions; without a tuple, which would cost more than all the checks."""
    cdef cnp.ndarray arr
    if isinstance(a, np.ndarray):
        arr = <cnp.ndarray>a
        if (cnp.PyArray_NDIM(arr) == 2 and cnp.PyArray_TYPE(arr) == num
                and cnp.PyArray_DIM(arr, 0) == rows and cnp.PyArray_DIM(arr, 1) == columns
                and cnp.PyArray_IS_C_CONTIGUOUS(arr) and cnp.PyArray_ISBEHAVED_RO(arr)
                and (not write or cnp.PyArray_ISWRITEABLE(arr))):
            return cnp.PyArray_DATA(arr)
    return data(a, name, num, (rows, columns), write)


cdef void *optional_matrix(object a, str name, int num, Py_ssize_t rows, Py_ssize_t columns,
                           bint write=False) except? NULL:
    """`matrix`, or NULL for None."""
    return NULL if a is None else matrix(a, name, num, rows, columns, write)


cdef void *vector(object a, str name, int num, Py_ssize_t n, bint write=False) except? NULL:
    """`data` for one dimension."""
    cdef cnp.ndarray arr
    if isinstance(a, np.ndarray):
        arr = <cnp.ndarray>a
        if (cnp.PyArray_NDIM(arr) == 1 and cnp.PyArray_TYPE(arr) == num
                and cnp.PyArray_DIM(arr, 0) == n and cnp.PyArray_IS_C_CONTIGUOUS(arr)
                and cnp.PyArray_ISBEHAVED_RO(arr)
                and (not write or cnp.PyArray_ISWRITEABLE(arr))):
            return cnp.PyArray_DATA(arr)
    return data(a, name, num, (n,), write)


cdef void *optional_vector(object a, str name, int num, Py_ssize_t n,
                           bint write=False) except? NULL:
    """`vector`, or NULL for None."""
    return NULL if a is None else vector(a, name, num, n, write)


cdef object offsets_of(object batch_sizes, Py_ssize_t B, Py_ssize_t N):
    """Row of each step's first sequence, [T], after checking that the sizes make sense."""
    if not isinstance(batch_sizes, np.ndarray) \
            or cnp.PyArray_TYPE(<cnp.ndarray>batch_sizes) != cnp.NPY_INT64 \
            or cnp.PyArray_NDIM(<cnp.ndarray>batch_sizes) != 1 \
            or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>batch_sizes):
        raise TypeError("batch_sizes: expected a contiguous int64 vector")
    cdef cnp.npy_intp T = cnp.PyArray_DIM(<cnp.ndarray>batch_sizes, 0)
    cdef const int64_t *sizes = <const int64_t *>vector(batch_sizes, "batch_sizes",
                                                        cnp.NPY_INT64, T)
    cdef Py_ssize_t t
    cdef int64_t before = B, total = 0
    cdef cnp.ndarray offsets = cnp.PyArray_EMPTY(1, &T, cnp.NPY_INT64, 0)
    cdef int64_t *out = <int64_t *>cnp.PyArray_DATA(offsets)
    for t in range(T):
        if sizes[t] < 0 or sizes[t] > before:
            raise ValueError(f"batch_sizes must not increase and lie in [0, {B}], "
                             f"got {sizes[t]} at step {t}")
        out[t] = total
        before = sizes[t]
        total += before
    if total != N:
        raise ValueError(f"batch_sizes add up to {total}, but there are {N} rows")
    return offsets


cdef void pack(Packed *q, object batch_sizes, object offsets, object resets, Py_ssize_t B,
               Py_ssize_t N, bint reverse) except *:
    q.T, q.B, q.N, q.reverse, q.first = len(batch_sizes), B, N, reverse, 0
    q.sizes = <const int64_t *>vector(batch_sizes, "batch_sizes", cnp.NPY_INT64, q.T)
    q.offsets = <const int64_t *>vector(offsets, "offsets", cnp.NPY_INT64, q.T)
    q.resets = <const uint8_t *>optional_vector(resets, "resets", cnp.NPY_UINT8, N)


# What a step of so many rows costs, in rows: reading the weights costs as much as another 1.5, and
# up to 2 rows that is what takes the time (docs/performance.md).
cdef double cost_of(Py_ssize_t rows) noexcept nogil:
    return max(rows + 1.5, 4.0)


# What a thread at a barrier costs: two threads break even where a step costs four times as much,
# 30,000 weights for one row (docs/performance.md).
cdef double BARRIER = 30000
cdef Py_ssize_t TILE = 16  # hidden units that stay together: RF_TILE of csrc/kernels_tmpl.h


cdef bint for_pool(Py_ssize_t T, Py_ssize_t B, double weights) noexcept nogil:
    """Whether T steps of B rows that read so many weights are enough for several threads."""
    return T * weights * max(B, 4) >= WORK_FOR_POOL


cdef Plan plan(Py_ssize_t T, Py_ssize_t B, int directions, double weights,
               Py_ssize_t H) noexcept nogil:
    """For T steps of B rows that read so many weights each, in each direction.

    Costs are in multiply-adds where many rows share the weights. By rows, threads need not wait for
    each other; by hidden units, all rows share a thread's weights, which may then fit its cache.
    """
    cdef Plan p
    cdef double step = weights * cost_of(B), rows, units
    cdef Py_ssize_t tasks, largest
    cdef int most
    p.threads = K.num_threads() if B and for_pool(T, B, directions * weights) else 1
    p.parts = max(min((<Py_ssize_t>p.threads + directions - 1) // directions, B), 1)
    tasks, largest = directions * p.parts, (B + p.parts - 1) // p.parts
    rows = (tasks + p.threads - 1) // p.threads * weights * cost_of(largest)
    most = min(<Py_ssize_t>p.threads, (H + TILE - 1) // TILE, <Py_ssize_t>sqrt(step / BARRIER))
    units = directions * (step / max(most, 1) + most * BARRIER)
    p.units = most > 1 and units < 0.95 * rows  # for less, no waiting for each other
    p.threads = most if p.units else min(<Py_ssize_t>p.threads, tasks)
    return p


def try_plan(Py_ssize_t T, Py_ssize_t B, int directions, double weights, Py_ssize_t H):
    """(threads, parts of the rows or 0 where hidden units are divided), as `plan` has it."""
    cdef Plan p = plan(T, B, directions, weights, H)
    return p.threads, 0 if p.units else p.parts


# Rows that a task has at least where sequences end at different steps: a tile's.
cdef Py_ssize_t ROWS_OF_TASK = 6


cdef int tasks_of(const Packed *q, double work):
    """Into how many tasks to divide the rows, for `work` multiply-adds; 1: not at all.

    Each task runs all time steps of its sequences, so that no thread waits for another.
    """
    if q.B < 2 or work < WORK_FOR_POOL:
        return 1
    cdef Py_ssize_t threads = K.num_threads(), most
    if threads < 2:
        return 1
    if q.sizes[0] == q.sizes[q.T - 1]:
        return min(threads, q.B)
    most = min(4 * threads, q.B // ROWS_OF_TASK)  # the longest sequences are together
    return max(most, min(threads, q.B))


cdef void meet(Share *share) noexcept nogil:
    """The end of a round: what the others wrote in theirs is there then."""
    if share.alone:
        share.alone -= 1
    if share.workers > 1 and not share.alone:
        share.alone = K.pool_barrier(share.gang)


cdef bint range_of(const Share *share, Py_ssize_t n, Py_ssize_t unit, Py_ssize_t *first,
                   Py_ssize_t *last) noexcept nogil:
    """Divide 0 .. n - 1 by whole units; whether there are any for this worker."""
    cdef Py_ssize_t k = share.worker, workers = share.workers, units
    if workers == 1:
        first[0], last[0] = 0, n
        return n > 0
    units = (n + unit - 1) // unit
    if share.alone:
        k, workers = 1 if share.worker else 0, 1
    first[0], last[0] = units * k // workers * unit, min(units * (k + 1) // workers * unit, n)
    return first[0] < last[0]


cdef struct Parts:
    share_task *task
    char *s
    size_t size


cdef void part_task(void *arg, int task, int worker) noexcept nogil:
    """Some rows, all hidden units."""
    cdef Parts *parts = <Parts *>arg
    cdef Share share
    share.worker, share.workers, share.gang, share.alone = 0, 1, NULL, 0
    parts.task(parts.s + task * parts.size, &share)


cdef void gang_task(void *arg, int worker, int workers, K.rf_gang *gang) noexcept nogil:
    """All rows, some hidden units."""
    cdef Parts *parts = <Parts *>arg
    cdef Share share
    share.worker, share.workers, share.gang, share.alone = worker, workers, gang, 0
    parts.task(parts.s, &share)


cdef void divide(Division *d, bint fixed, object batch_sizes, object offsets) except *:
    """Run all steps on one thread; or, where the products are our own and there is enough to do, on
    several: each does parts of the batch, d.s copied for each part, or part of the hidden units.

    Part k has rows B k / tasks to B (k + 1) / tasks of every step.
    """
    cdef const Packed *q = d.q
    cdef int tasks = tasks_of(q, q.N * d.weights) if fixed else 1, k
    cdef K.rf_fpmode mode
    cdef Parts parts
    cdef Packed part
    cdef Plan p
    p.units = False
    if fixed and d.H and q.T > 1 and q.sizes[0] == q.sizes[q.T - 1]:
        p = plan(q.T, q.B, 1, d.weights, d.H)
    parts.task, parts.s, parts.size = d.task, <char *>d.s, d.size
    if tasks > 1 and not p.units:
        memory = np.empty(tasks * d.size, np.uint8)
        parts.s = <char *>cnp.PyArray_DATA(<cnp.ndarray>memory)
        first = np.arange(tasks + 1) * q.B // tasks
        rows = np.diff(first)[:, None]
        sizes = np.clip(batch_sizes - first[:-1, None], 0, rows)
        starts = offsets + first[:-1, None]
        for k in range(tasks):
            memcpy(parts.s + k * d.size, d.s, d.size)
            part = q[0]
            part.first, part.B = first[k], rows[k, 0]
            part.sizes = <const int64_t *>vector(sizes[k], "sizes", cnp.NPY_INT64, q.T)
            part.offsets = <const int64_t *>vector(starts[k], "offsets", cnp.NPY_INT64, q.T)
            d.shift(parts.s + k * d.size, &part)
    with nogil:
        mode = K.enter()
        if p.units:
            K.pool_run_gang(p.threads, gang_task, &parts)
        elif tasks > 1:
            K.pool_run(tasks, tasks, part_task, &parts)
        else:
            part_task(&parts, 0, 0)
        K.leave(mode)


cdef void copy_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                     const real_t *source, real_t *to) noexcept nogil:
    """Units first to last of so many rows of H."""
    cdef Py_ssize_t b
    if last - first == H:
        memcpy(to, source, rows * H * sizeof(real_t))
        return
    for b in range(rows):
        memcpy(to + b * H + first, source + b * H + first, (last - first) * sizeof(real_t))


cdef void add_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                    const real_t *source, real_t *to) noexcept nogil:
    """to += source, in units first to last of so many rows of H."""
    cdef Py_ssize_t b
    for b in range(rows):
        K.add(last - first, source + b * H + first, to + b * H + first)


cdef void multiply_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                         const real_t *x, const real_t *y, real_t *out) noexcept nogil:
    """out = x y, in units first to last of so many rows of H."""
    cdef Py_ssize_t b
    if last - first == H:
        K.multiply(rows * H, x, y, out)
        return
    for b in range(rows):
        K.multiply(last - first, x + b * H + first, y + b * H + first, out + b * H + first)


cdef void multiply_add_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                             const real_t *x, const real_t *y, real_t *out) noexcept nogil:
    """out += x y, in units first to last of so many rows of H."""
    cdef Py_ssize_t b
    for b in range(rows):
        K.multiply_add(last - first, x + b * H + first, y + b * H + first, out + b * H + first)


cdef void zero_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                     real_t *out) noexcept nogil:
    """out = 0, in units first to last of so many rows of H."""
    cdef Py_ssize_t b
    for b in range(rows):
        memset(out + b * H + first, 0, (last - first) * sizeof(real_t))


cdef bint any_of(const uint8_t *flags, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if flags[i]:
            return True
    return False


cdef void zero_flagged(const uint8_t *flags, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t first,
                       Py_ssize_t last, real_t *state) noexcept nogil:
    """state[b, first:last] = 0 where flags[b]; state: [rows, n]."""
    cdef Py_ssize_t b
    for b in range(rows):
        if flags[b]:
            zero_units(1, n, first, last, state + b * n)


cdef bint resets_at(const Packed *q, Py_ssize_t t) noexcept nogil:
    """Whether any sequence begins anew at step t."""
    return q.resets != NULL and any_of(q.resets + q.offsets[t], q.sizes[t])


cdef void zero_reset_units(const Packed *q, Py_ssize_t t, Py_ssize_t n, Py_ssize_t first,
                           Py_ssize_t last, real_t *state) noexcept nogil:
    """state[b, first:last] = 0 where resets[t, b]; state: [B, n]."""
    if q.resets != NULL:
        zero_flagged(q.resets + q.offsets[t], q.sizes[t], n, first, last, state)


cdef void zero_share(const Packed *q, Py_ssize_t t, Share *share, Py_ssize_t n, Py_ssize_t unit,
                     real_t *state) noexcept nogil:
    """`zero_reset_units` for a share's part of what another share may have a part of."""
    cdef Py_ssize_t first, last
    if range_of(share, n, unit, &first, &last):
        zero_reset_units(q, t, n, first, last, state)


cdef void begin_step(const Packed *q, Py_ssize_t t, Share *share, Py_ssize_t n, Py_ssize_t unit,
                     real_t *h) noexcept nogil:
    """`zero_share` of what all shares read next."""
    if resets_at(q, t):
        zero_share(q, t, share, n, unit, h)
        meet(share)


cdef Py_ssize_t put_off(const Packed *q, Py_ssize_t i, Py_ssize_t t, bint whole) noexcept nogil:
    """Rows of step i of BPTT, at time t, whose product the next step's kernel is to do: all where
    steps are `whole` and nothing else happens between the two, or 0."""
    return q.sizes[t] if whole and i > 0 and not resets_at(q, t) else 0


cdef void fill_rows(Py_ssize_t N, Py_ssize_t n, const real_t *row, real_t *out) noexcept nogil:
    """out[i] = row, or 0 where row is NULL; out: [N, n]."""
    cdef Py_ssize_t i
    if row == NULL:
        memset(out, 0, N * n * sizeof(real_t))
        return
    for i in range(N):
        memcpy(out + i * n, row, n * sizeof(real_t))


cdef void gather_rows(Py_ssize_t N, Py_ssize_t n, const int64_t *ids, const real_t *table,
                      real_t *out) noexcept nogil:
    """out[i] = table[ids[i]]."""
    cdef Py_ssize_t i
    for i in range(N):
        memcpy(out + i * n, table + ids[i] * n, n * sizeof(real_t))


cdef void scatter_rows(Py_ssize_t N, Py_ssize_t n, const int64_t *ids, const real_t *rows,
                       real_t *table) noexcept nogil:
    """table[ids[i]] += rows[i], i ascending: repeated ids add up."""
    cdef Py_ssize_t i
    for i in range(N):
        K.add(n, rows + i * n, table + ids[i] * n)


cdef void put_rows(Py_ssize_t N, Py_ssize_t n, const real_t *rows, real_t *out,
                   Py_ssize_t ld) noexcept nogil:
    """out[i] = rows[i]; rows of out lie ld apart."""
    cdef Py_ssize_t i
    for i in range(N):
        memcpy(out + i * ld, rows + i * n, n * sizeof(real_t))


cdef Py_ssize_t row_size(cnp.ndarray a, str name, int lead) except -1:
    """Bytes of a[i] (lead = 1) or a[i, j] (lead = 2), which must lie together."""
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(a)
    cdef int d
    if cnp.PyArray_NDIM(a) < lead or a.dtype.hasobject:
        raise TypeError(f"{name}: expected {lead} dimensions or more and no objects, "
                        f"got {a.dtype} {(<object>a).shape}")
    for d in range(cnp.PyArray_NDIM(a) - 1, lead - 1, -1):
        if cnp.PyArray_STRIDE(a, d) != size and cnp.PyArray_DIM(a, d) > 1 and cnp.PyArray_SIZE(a):
            raise ValueError(f"{name}: expected rows whose elements lie together")
        size *= cnp.PyArray_DIM(a, d)
    return size


cdef void move_rows(const Packed *q, const int64_t *order, Py_ssize_t size, char *dense,
                    Py_ssize_t by_step, Py_ssize_t by_sequence, char *rows,
                    bint back) noexcept nogil:
    """Rows of `size` bytes from a dense batch, or back into it and zeros past the ends.

    What a sequence has in the next step is fetched ahead, as no CPU guesses their order: 1.02 to
    1.03 of a ragged RNN's training on Zen 5, 64 x 32 x 128 x 128.
    """
    cdef Py_ssize_t t, b, line
    cdef char *at
    for t in range(q.T):
        for b in range(q.B if back else q.sizes[t]):
            at = dense + t * by_step + (order[b] if order != NULL else b) * by_sequence
            if t + 1 < q.T:
                for line in range(0, size, 64):
                    K.rf_fetch(at + by_step + line)
            if b >= q.sizes[t]:
                memset(at, 0, size)
                continue
            if back:
                memcpy(at, rows, size)
            else:
                memcpy(rows, at, size)
            rows += size


def pack_rows(dense, batch_sizes, order, rows, bint back=False):
    """rows = the steps there are of a dense batch, one after the other; `back`: the other way,
    zeros past the ends.

    dense: (T, B, ...), in any order of the first two; rows: [N, ...], contiguous, of its dtype;
    batch_sizes: int64 [T]; order: int64 [B], which sequence comes first, or None: as they are.
    """
    cdef cnp.ndarray d = <cnp.ndarray?>dense, r = <cnp.ndarray?>rows
    cdef Py_ssize_t size = row_size(d, "dense", 2), T = d.shape[0], B = d.shape[1]
    cdef const int64_t *sequence = NULL
    cdef Packed q
    if d.dtype != r.dtype or row_size(r, "rows", 1) != size:
        raise ValueError(f"rows: expected {d.dtype} and shape {dense.shape[2:]}, got {r.dtype} "
                         f"{rows.shape[1:]}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(r) or not cnp.PyArray_ISWRITEABLE(d if back else r):
        raise ValueError("expected contiguous rows, and to be allowed to write")
    if len(batch_sizes) != T:
        raise ValueError(f"batch_sizes: expected {T}, got {len(batch_sizes)}")
    offsets = offsets_of(batch_sizes, B, r.shape[0])
    pack(&q, batch_sizes, offsets, None, B, r.shape[0], False)
    if order is not None:
        sequence = <const int64_t *>checked_ids(order, B, B)
    with nogil:
        move_rows(&q, sequence, size, <char *>cnp.PyArray_DATA(d), d.strides[0], d.strides[1],
                  <char *>cnp.PyArray_DATA(r), back)


def gather(ids, table, out):
    """out[i] = table[ids[i]]: the look-up that stands for a product with one-hot rows.

    ids: int64 [N], in [0, V); table: [V, n]; out: [N, n] of table's dtype.
    """
    cdef Py_ssize_t N = out.shape[0], n = out.shape[1]
    cdef int num = typenum(table)
    cdef const int64_t *i = <const int64_t *>checked_ids(ids, N, table.shape[0])
    cdef void *t = data(table, "table", num, (table.shape[0], n))
    cdef void *o = data(out, "out", num, (N, n), True)
    with nogil:
        if num == cnp.NPY_FLOAT:
            gather_rows[float](N, n, i, <float *>t, <float *>o)
        else:
            gather_rows[double](N, n, i, <double *>t, <double *>o)


def scatter_add(ids, rows, table):
    """table[ids[i]] += rows[i], i ascending; shapes as in `gather`."""
    cdef Py_ssize_t N = rows.shape[0], n = rows.shape[1]
    cdef int num = typenum(table)
    cdef const int64_t *i = <const int64_t *>checked_ids(ids, N, table.shape[0])
    cdef void *t = data(table, "table", num, (table.shape[0], n), True)
    cdef void *r = data(rows, "rows", num, (N, n))
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            scatter_rows[float](N, n, i, <float *>r, <float *>t)
        else:
            scatter_rows[double](N, n, i, <double *>r, <double *>t)
        K.leave(mode)


cdef void *checked_ids(object ids, Py_ssize_t N, Py_ssize_t V) except? NULL:
    cdef void *p = data(ids, "ids", cnp.NPY_INT64, (N,))
    if N and (ids.min() < 0 or ids.max() >= V):
        raise ValueError(f"ids must lie in [0, {V}), got {ids.min()} to {ids.max()}")
    return p


cdef void *strided(object a, str name, int num, Py_ssize_t N, Py_ssize_t n,
                   Py_ssize_t *ld) except? NULL:
    """The memory of a writable [N, n] array whose rows are contiguous and lie *ld apart."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(a).__name__}")
    cdef cnp.ndarray arr = <cnp.ndarray>a
    if cnp.PyArray_TYPE(arr) != num or not cnp.PyArray_ISBEHAVED(arr):
        raise TypeError(f"{name}: expected a writable "
                        f"{np.dtype(cnp.PyArray_DescrFromType(num))}, got {a.dtype}")
    if (<object>arr).shape != (N, n):
        raise ValueError(f"{name}: expected shape {(N, n)}, got {(<object>arr).shape}")
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(arr)
    ld[0] = n if N < 2 else arr.strides[0] // size
    if N * n and ((n > 1 and arr.strides[1] != size) or ld[0] < n
                  or (N > 1 and arr.strides[0] % size)):
        raise ValueError(f"{name}: expected rows that are contiguous and do not overlap")
    return cnp.PyArray_DATA(arr)
