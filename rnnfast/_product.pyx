"""Matrix products: BLAS, or our own in fixed order, as the engine says.

In fixed order every element of a result is one chain of fused multiply-adds, k ascending, that
starts at what C held: the bits depend neither on the number of rows, nor on how they are divided,
nor on the instruction set (docs/arithmetic.md).
"""

import importlib

cimport numpy as cnp
from libc.string cimport memcpy, memset

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport empty
from rnnfast._types cimport real_t

cnp.import_array()

cdef enum:  # RF_PANEL and RF_TILE of csrc/kernels_tmpl.h
    PANEL = 64
    TILE = 16

# From so many rows a step, or up to so many inputs, a step's kernel reads the inputs itself:
# docs/performance.md has the break-even.
cdef Py_ssize_t ROWS_INSIDE = 4
cdef Py_ssize_t INPUTS_INSIDE = 16
cdef bint fixed = False
cdef bint used = False
cdef gemm_f32 blas_f32 = NULL
cdef gemm_f64 blas_f64 = NULL


cdef void use_blas(gemm_f32 f32, gemm_f64 f64) noexcept:
    global blas_f32, blas_f64
    blas_f32, blas_f64 = f32, f64


def ready():
    """Called by every module that multiplies, when it is imported: from then on one of the two
    kinds of product must be at hand."""
    global used
    used = True
    if not fixed and blas_f32 == NULL:
        importlib.import_module("rnnfast._blas")


def set_fixed_order(bint on):
    """True: our own products; False: BLAS, loaded as soon as something multiplies."""
    global fixed
    if not on and used and blas_f32 == NULL:
        importlib.import_module("rnnfast._blas")
    fixed = on


def get_fixed_order():
    """Whether products are our own."""
    return fixed


cdef bint is_fixed() noexcept nogil:
    return fixed


cdef void gemm(bint ta, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *a, Py_ssize_t lda,
               const real_t *b, Py_ssize_t ldb, real_t beta, real_t *c,
               Py_ssize_t ldc) noexcept nogil:
    if fixed:
        K.gemm(m, n, k, a, 1 if ta else lda, lda if ta else 1, b, ldb, PANEL, beta != 0, c, ldc)
    elif real_t is float:
        blas_f32(ta, False, m, n, k, a, lda, b, ldb, beta, c, ldc)
    else:
        blas_f64(ta, False, m, n, k, a, lda, b, ldb, beta, c, ldc)


cdef void gemm_weights(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *a, Py_ssize_t lda,
                       const real_t *w, const real_t *packed, real_t beta, real_t *c,
                       Py_ssize_t ldc) noexcept nogil:
    if packed != NULL:
        K.gemm(m, n, k, a, lda, 1, packed, PANEL, PANEL * k, beta != 0, c, ldc)
    elif real_t is float:
        blas_f32(False, True, m, n, k, a, lda, w, k, beta, c, ldc)
    else:
        blas_f64(False, True, m, n, k, a, lda, w, k, beta, c, ldc)


cdef bint inside_size(Py_ssize_t rows, Py_ssize_t inputs) noexcept nogil:
    """Whether a step is to multiply its inputs itself: true where many rows share its weights, and
    where there are so few inputs that storing and reading the sums costs more than the product."""
    return rows >= ROWS_INSIDE or inputs <= INPUTS_INSIDE


cdef bint inside(object x, Py_ssize_t T):
    """`inside_size` for the rows of T steps; class indices are looked up before."""
    return fixed and x.ndim == 2 and inside_size(len(x) // max(T, 1), x.shape[1])


# Weights from so many on are packed on several threads: 50 us of one.
cdef Py_ssize_t MANY_WEIGHTS = 1 << 16


cdef struct Packing:
    int num
    bint turned     # W's transpose is what is packed
    Py_ssize_t gates, n, k, wide
    char *w
    char *out
    int tasks


cdef void pack_task(void *arg, int task, int worker) noexcept nogil:
    cdef Packing *s = <Packing *>arg
    cdef Py_ssize_t units = (s.n + s.wide - 1) // s.wide
    cdef Py_ssize_t first = units * task // s.tasks * s.wide
    cdef Py_ssize_t last = min(units * (task + 1) // s.tasks * s.wide, s.n)
    if s.num == cnp.NPY_FLOAT:
        if s.turned:
            K.pack(s.gates, s.n, s.k, first, last, <float *>s.w, s.k, <float *>s.out)
        else:
            copy_panels(s.n, s.k, first, last, <float *>s.w, <float *>s.out)
    elif s.turned:
        K.pack(s.gates, s.n, s.k, first, last, <double *>s.w, s.k, <double *>s.out)
    else:
        copy_panels(s.n, s.k, first, last, <double *>s.w, <double *>s.out)


cdef void copy_panels(Py_ssize_t n, Py_ssize_t k, Py_ssize_t first, Py_ssize_t last,
                      const real_t *w, real_t *out) noexcept nogil:
    """Columns first to last of w [k,n] in panels, zeros past n."""
    cdef Py_ssize_t q, j, p, count
    cdef real_t *row
    for q in range(first // PANEL, (last + PANEL - 1) // PANEL):
        j = q * PANEL
        count = min(n - j, PANEL)
        for p in range(k):
            row = out + j * k + p * PANEL
            memcpy(row, w + p * n + j, count * sizeof(real_t))
            if count < PANEL:
                memset(row + count, 0, (PANEL - count) * sizeof(real_t))


cdef object packed(object w, bint turned, Py_ssize_t gates):
    cdef Packing s
    s.gates, s.wide, s.turned, s.num = gates, PANEL if gates == 1 else TILE, turned, _seq.typenum(w)
    cdef Py_ssize_t rows = w.shape[0], columns = w.shape[1], G = gates
    s.w = <char *>_seq.data(w, "weights", s.num, (rows, columns))
    s.n, s.k = (rows // G, columns) if turned else (columns, rows)
    cdef cnp.ndarray out = empty((s.n + s.wide - 1) // s.wide * s.wide, s.k * G, s.num)
    s.out = <char *>cnp.PyArray_DATA(out)
    s.tasks = 1
    if rows * columns >= MANY_WEIGHTS:
        s.tasks = min(K.num_threads(), (s.n + s.wide - 1) // s.wide)
    with nogil:
        K.pool_run(s.tasks, s.tasks, pack_task, &s)
    return out


cdef object pack(object w, Py_ssize_t gates=1):
    """W [gates n, k] as `K.pack` has it: for `gemm_weights` (gates = 1) and the kernels of whole
    steps; None with BLAS or without W."""
    return packed(w, True, gates) if fixed and w is not None else None


cdef object panels(object w):
    """W [k,n] in panels of columns, for `gemm_weights` with W in place of its transpose; None with
    BLAS. What steps of BPTT multiply with, again and again."""
    return packed(w, False, 1) if fixed and w is not None else None


cdef void *packed_data(object packed) noexcept:
    return NULL if packed is None else cnp.PyArray_DATA(<cnp.ndarray>packed)
