"""Matrix products: BLAS, or our own in fixed order, as the engine says.

In fixed order every element of a result is one chain of fused multiply-adds, k ascending, that
starts at what C held: the bits depend neither on the number of rows, nor on how they are divided,
nor on the instruction set (docs/arithmetic.md).
"""

import importlib

cimport numpy as cnp

from rnnfast cimport _kernels as K
from rnnfast cimport _seq
from rnnfast._memory cimport empty
from rnnfast._types cimport real_t

cnp.import_array()

# From so many rows a step, or up to so many inputs, a step's kernel reads the inputs itself; with
# 16 registers and some rows, whose tiles are not the largest, up to more inputs:
# docs/performance.md has the break-even.
cdef Py_ssize_t SOME_ROWS = 4
cdef Py_ssize_t MANY_ROWS = 9
cdef Py_ssize_t INPUTS_INSIDE = 16
cdef Py_ssize_t INPUTS_OF_SOME_ROWS = 96
# From so many inputs on, weights are not packed for fewer than a third as many rows
# (docs/performance.md).
cdef Py_ssize_t INPUTS_IN_PLACE = 256
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
        K.gemm(m, n, k, a, 1 if ta else lda, lda if ta else 1, b, ldb, beta != 0, c, ldc)
    elif real_t is float:
        blas_f32(ta, False, m, n, k, a, lda, b, ldb, beta, c, ldc)
    else:
        blas_f64(ta, False, m, n, k, a, lda, b, ldb, beta, c, ldc)


cdef void gemm_weights(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *a, Py_ssize_t lda,
                       const real_t *w, const real_t *packed, real_t beta, real_t *c,
                       Py_ssize_t ldc) noexcept nogil:
    if packed != NULL:
        K.gemm(m, n, k, a, lda, 1, packed, 0, beta != 0, c, ldc)
    elif real_t is float:
        blas_f32(False, True, m, n, k, a, lda, w, k, beta, c, ldc)
    else:
        blas_f64(False, True, m, n, k, a, lda, w, k, beta, c, ldc)


cdef void gemm_columns(Py_ssize_t m, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n, Py_ssize_t k,
                       const real_t *a, const real_t *w, const real_t *packed,
                       real_t *c) noexcept nogil:
    gemm_weights(m, last - first, k, a, k, w + first * k if w != NULL else NULL,
                 packed + first * k if packed != NULL else NULL, <real_t>0, c + first, n)


cdef void gemm_units(bint back, Py_ssize_t m, Py_ssize_t first, Py_ssize_t last, Py_ssize_t k,
                     const real_t *a, Py_ssize_t lda, const real_t *w, const real_t *packed,
                     real_t beta, real_t *c, Py_ssize_t n) noexcept nogil:
    """Columns first to last of C [m, n] = A W + beta C; packed: what `panels` made of W [k, n], or
    NULL.

    With panels a step of BPTT begins with the weights that the one before it, which went the other
    way, has left in the caches."""
    cdef Py_ssize_t wide = 2 * PANEL, parts = (last - first + wide - 1) // wide, q, j
    if packed == NULL:
        gemm(False, m, last - first, k, a, lda, w + first, n, beta, c + first, n)
        return
    for q in range(parts):
        j = first + (parts - 1 - q if back else q) * wide
        K.gemm(m, min(last - j, wide), k, a, lda, 1, packed + j * k, 0, beta != 0, c + j, n)


cdef bint in_place(Py_ssize_t rows, Py_ssize_t inputs) noexcept nogil:
    """Whether `product_in_place` is to multiply so many rows with weights."""
    return fixed and inputs >= INPUTS_IN_PLACE and 3 * rows <= inputs


cdef void product_in_place(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *columns,
                           const real_t *w, const real_t *bias, real_t *turned, real_t *c,
                           Py_ssize_t ldc) noexcept nogil:
    """C = bias + x W' as the transpose of W x': W is read once, where it is, while packing it would
    cost more than to turn x and C. columns: x' [k, m]; w: [n, k]; bias: [n] or NULL; turned: n m of
    scratch; c: [m, n]."""
    cdef Py_ssize_t i, j
    cdef real_t first = 0
    for i in range(n):
        if bias != NULL:
            first = bias[i]
        for j in range(m):
            turned[i * m + j] = first
    K.gemm(n, m, k, w, k, 1, columns, m, True, turned, m)
    K.transpose(n, m, turned, m, c, ldc)


cdef bint inside_size(Py_ssize_t rows, Py_ssize_t inputs) noexcept nogil:
    """Whether a step is to multiply its inputs itself: true where many rows share its weights, and
    where there are so few inputs that storing and reading the sums costs more than the product."""
    if rows >= SOME_ROWS:
        return rows >= MANY_ROWS or inputs <= INPUTS_OF_SOME_ROWS or K.many_registers()
    return inputs <= INPUTS_INSIDE


cdef bint inside(object x, Py_ssize_t T):
    """`inside_size` for the rows of T steps; class indices are looked up before."""
    return fixed and x.ndim == 2 and inside_size(len(x) // max(T, 1), x.shape[1])


cdef Py_ssize_t packed_size(Py_ssize_t gates, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Room for what `K.pack` makes of W [gates n, k]."""
    cdef Py_ssize_t wide = PANEL if gates == 1 else TILE
    return (n + wide - 1) // wide * wide * k * gates


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
            K.panels(s.n, s.k, first, last, <float *>s.w, s.n, <float *>s.out)
    elif s.turned:
        K.pack(s.gates, s.n, s.k, first, last, <double *>s.w, s.k, <double *>s.out)
    else:
        K.panels(s.n, s.k, first, last, <double *>s.w, s.n, <double *>s.out)


cdef void pack_to(int num, bint turned, Py_ssize_t gates, Py_ssize_t n, Py_ssize_t k, const void *w,
                  void *out) noexcept nogil:
    """`K.pack` of w [gates n, k]; or, not `turned`, w [k, n] in panels of columns."""
    cdef Packing s
    s.gates, s.wide, s.turned, s.num = gates, PANEL if gates == 1 else TILE, turned, num
    s.n, s.k, s.w, s.out = n, k, <char *>w, <char *>out
    s.tasks = 1
    if gates * n * k >= MANY_WEIGHTS:
        s.tasks = min(K.num_threads(), (n + s.wide - 1) // s.wide)
    K.pool_run(s.tasks, s.tasks, pack_task, &s)


cdef object packed(object w, bint turned, Py_ssize_t gates):
    cdef int num = _seq.typenum(w)
    cdef Py_ssize_t rows = w.shape[0], columns = w.shape[1]
    cdef void *source = _seq.data(w, "weights", num, (rows, columns))
    cdef Py_ssize_t n = rows // gates if turned else columns, k = columns if turned else rows
    cdef cnp.ndarray out = empty(1, packed_size(gates, n, k), num)
    with nogil:
        pack_to(num, turned, gates, n, k, source, cnp.PyArray_DATA(out))
    return out


cdef object pack(object w, Py_ssize_t gates=1):
    """W [gates n, k] as `K.pack` has it: for `gemm_weights` (gates = 1) and the kernels of whole
    steps; None with BLAS or without W."""
    return packed(w, True, gates) if fixed and w is not None else None


cdef object panels(object w):
    """W [k,n] in panels of columns, for `gemm_units`; None with BLAS or without W. What steps of
    BPTT multiply with, again and again."""
    return packed(w, False, 1) if fixed and w is not None else None


cdef void *packed_data(object packed) noexcept:
    return NULL if packed is None else cnp.PyArray_DATA(<cnp.ndarray>packed)
