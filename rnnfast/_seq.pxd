cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t

from rnnfast cimport _kernels as K
from rnnfast._types cimport real_t

# A packed batch: row offsets[t] + b of an [N, ...] array is step t of sequence b. Sequences are
# sorted by length, longest first, so the sizes[t] sequences that are alive at t are the first.
cdef struct Packed:
    Py_ssize_t T
    Py_ssize_t B
    Py_ssize_t N
    const int64_t *sizes
    const int64_t *offsets
    const uint8_t *resets      # [N] or NULL
    bint reverse
    Py_ssize_t first           # of the batch's sequences, where this is a part of it

# Step s of the recurrence visits this time step; backward goes through s downwards.
cdef inline Py_ssize_t time_of(const Packed *q, Py_ssize_t s) noexcept nogil:
    return q.T - 1 - s if q.reverse else s

# Whether the step after s is of the same sequences.
cdef inline bint goes_on(const Packed *q, Py_ssize_t s) noexcept nogil:
    return s + 1 < q.T and q.sizes[time_of(q, s + 1)] == q.sizes[time_of(q, s)]

cdef enum:
    WORK_FOR_POOL = 4000000  # multiply-adds from which threads pay: docs/performance.md

# How steps are divided: the rows of each direction into `parts`, or the hidden units.
cdef struct Plan:
    int threads
    int parts
    bint units

cdef bint for_pool(Py_ssize_t T, Py_ssize_t B, double weights) noexcept nogil
cdef Plan plan(Py_ssize_t T, Py_ssize_t B, int directions, double weights,
               Py_ssize_t H) noexcept nogil

# Where the members of a gang share the hidden units: those of number `worker` of so many.
cdef struct Share:
    int worker, workers
    K.rf_gang *gang
    int alone       # for so many rounds number 0 computes what all would share

cdef void meet(Share *share) noexcept nogil
cdef bint range_of(const Share *share, Py_ssize_t n, Py_ssize_t unit, Py_ssize_t *first,
                   Py_ssize_t *last) noexcept nogil

cdef int typenum(object x) except -1
cdef void *data(object a, str name, int num, tuple shape, bint write=*) except? NULL
cdef void *optional(object a, str name, int num, tuple shape, bint write=*) except? NULL
cdef void *matrix(object a, str name, int num, Py_ssize_t rows, Py_ssize_t columns,
                  bint write=*) except? NULL
cdef void *optional_matrix(object a, str name, int num, Py_ssize_t rows, Py_ssize_t columns,
                           bint write=*) except? NULL
cdef void *vector(object a, str name, int num, Py_ssize_t n, bint write=*) except? NULL
cdef void *optional_vector(object a, str name, int num, Py_ssize_t n, bint write=*) except? NULL
cdef object offsets_of(object batch_sizes, Py_ssize_t B, Py_ssize_t N)
cdef void pack(Packed *q, object batch_sizes, object offsets, object resets, Py_ssize_t B,
               Py_ssize_t N, bint reverse) except *

ctypedef void shift_part(void *part, const Packed *q) noexcept
ctypedef void share_task(void *s, Share *share) noexcept nogil

# How the steps of a call may be divided among threads; s: the arrays of the call, `size` bytes.
cdef struct Division:
    void *s
    size_t size
    const Packed *q
    share_task *task    # all steps, of the rows in s and the hidden units of a share
    shift_part *shift   # let a copy of s begin at a part's rows
    Py_ssize_t H        # hidden units that may be divided, else 0
    double weights      # that a step reads

cdef void divide(Division *d, bint fixed, object batch_sizes, object offsets) except *
cdef void copy_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                     const real_t *source, real_t *to) noexcept nogil
cdef void add_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                    const real_t *source, real_t *to) noexcept nogil
cdef void multiply_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                         const real_t *x, const real_t *y, real_t *out) noexcept nogil
cdef void multiply_add_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                             const real_t *x, const real_t *y, real_t *out) noexcept nogil
cdef void zero_units(Py_ssize_t rows, Py_ssize_t H, Py_ssize_t first, Py_ssize_t last,
                     real_t *out) noexcept nogil

# p + n rows of `size` bytes, or NULL.
cdef inline void *below(void *p, Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return <char *>p + n * size if p != NULL else NULL

cdef bint any_of(const uint8_t *flags, Py_ssize_t n) noexcept nogil
cdef void zero_flagged(const uint8_t *flags, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t first,
                       Py_ssize_t last, real_t *state) noexcept nogil
cdef void zero_reset_units(const Packed *q, Py_ssize_t t, Py_ssize_t n, Py_ssize_t first,
                           Py_ssize_t last, real_t *state) noexcept nogil
cdef Py_ssize_t put_off(const Packed *q, Py_ssize_t i, Py_ssize_t t, bint whole) noexcept nogil
cdef void zero_share(const Packed *q, Py_ssize_t t, Share *share, Py_ssize_t n, Py_ssize_t unit,
                     real_t *state) noexcept nogil
cdef void begin_step(const Packed *q, Py_ssize_t t, Share *share, Py_ssize_t n, Py_ssize_t unit,
                     real_t *h) noexcept nogil
cdef void fill_rows(Py_ssize_t N, Py_ssize_t n, const real_t *row, real_t *out) noexcept nogil
cdef void gather_rows(Py_ssize_t N, Py_ssize_t n, const int64_t *ids, const real_t *table,
                      real_t *out) noexcept nogil
cdef void scatter_rows(Py_ssize_t N, Py_ssize_t n, const int64_t *ids, const real_t *rows,
                       real_t *table) noexcept nogil
cdef void put_rows(Py_ssize_t N, Py_ssize_t n, const real_t *rows, real_t *out,
                   Py_ssize_t ld) noexcept nogil
cdef void *strided(object a, str name, int num, Py_ssize_t N, Py_ssize_t n,
                   Py_ssize_t *ld) except? NULL
cdef void *checked_ids(object ids, Py_ssize_t N, Py_ssize_t V) except? NULL
