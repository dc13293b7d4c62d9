"""What needs no recurrence: products over all time steps at once, sums of columns, layer norm.
Twins: rnnfast.reference.sequence and the sums of rnnfast.reference.arithmetic."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memcmp

from rnnfast cimport _kernels as K
from rnnfast cimport _seq

from rnnfast._memory cimport empty
from rnnfast._product cimport (
    gemm,
    gemm_weights,
    in_place,
    is_fixed,
    pack,
    packed_data,
    product_in_place,
)
from rnnfast._seq cimport data, matrix, optional_vector, vector
from rnnfast._types cimport EPS

from rnnfast._seq import scatter_add

from rnnfast import _product

cnp.import_array()
_product.ready()

# Our own product computes dW as its transpose, whose vectors run over the gates, where there are
# fewer inputs than this and enough rows to pay for turning dW twice. But with AVX-512 it does not
# copy da for inputs of up to 512 bytes (gemm_nc of csrc/kernels_tmpl.h): CPUs that look far ahead
# read it in place faster, from so many inputs on that they fill most of a vector
# (docs/performance.md).
cdef Py_ssize_t INPUTS_TURNED = 384
cdef Py_ssize_t BYTES_FILLED = 112
cdef Py_ssize_t BYTES_IN_PLACE = 512


cdef bint turns(Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t size) noexcept nogil:
    if (K.many_registers() and K.looks_ahead()
            and BYTES_FILLED <= inputs * size <= BYTES_IN_PLACE):
        return False
    return inputs < INPUTS_TURNED and rows >= (64 if inputs < 32 else 192)


# A product, and a part of it by rows or columns: which changes no chain.
cdef struct Product:
    int num
    bint ta, add
    bint by_rows
    Py_ssize_t m, n, k, lda, ldb, ldc
    char *a
    char *b         # row-major; of weights W [n, k], whose transpose is meant:
    bint weights
    char *packed    # what `pack` made of them, or NULL with BLAS
    char *c
    char *home      # [n, m]: where C' is before and after, while c is scratch; or NULL
    int tasks


cdef void product_task(void *arg, int task, int worker) noexcept nogil:
    cdef Product *s = <Product *>arg
    cdef Py_ssize_t size = sizeof(float) if s.num == cnp.NPY_FLOAT else sizeof(double)
    cdef Py_ssize_t m = s.m, n = s.n, unit = 1 if s.by_rows else 64, first, last, total
    cdef char *a = s.a
    cdef char *b = s.b
    cdef char *packed = s.packed
    cdef char *c = s.c
    cdef char *home = s.home
    if s.tasks > 1:
        total = ((m if s.by_rows else n) + unit - 1) // unit
        first, last = total * task // s.tasks * unit, total * (task + 1) // s.tasks * unit
        if s.by_rows:
            a += first * size * (1 if s.ta else s.lda)
            c += first * size * s.ldc
            home = <char *>_seq.below(home, first, size)
            m = last - first
        else:
            last = min(last, n)
            b += first * size
            if packed != NULL:
                packed += first * s.k * size
            c += first * size
            home = <char *>_seq.below(home, first * s.m, size)
            n = last - first
    if home != NULL:
        turn(s.num, n, m, home, s.m, c, s.ldc)
    if s.num == cnp.NPY_FLOAT:
        if s.weights:
            gemm_weights[float](m, n, s.k, <float *>a, s.lda, <float *>b, <float *>packed, s.add,
                                <float *>c, s.ldc)
        else:
            gemm[float](s.ta, m, n, s.k, <float *>a, s.lda, <float *>b, s.ldb, s.add, <float *>c,
                        s.ldc)
    else:
        if s.weights:
            gemm_weights[double](m, n, s.k, <double *>a, s.lda, <double *>b, <double *>packed,
                                 s.add, <double *>c, s.ldc)
        else:
            gemm[double](s.ta, m, n, s.k, <double *>a, s.lda, <double *>b, s.ldb, s.add,
                         <double *>c, s.ldc)
    if home != NULL:
        turn(s.num, m, n, c, s.ldc, home, s.m)


cdef void run_product(Product *s) noexcept nogil:
    """In several tasks where the products are our own and there is enough to do."""
    cdef K.rf_fpmode mode = K.enter()
    s.tasks = 1
    s.by_rows = s.m >= s.n
    if is_fixed() and <double>s.m * s.n * s.k >= _seq.WORK_FOR_POOL:
        s.tasks = min(K.num_threads(), s.m if s.by_rows else (s.n + 63) // 64)
    if s.tasks > 1:
        K.pool_run(s.tasks, s.tasks, product_task, s)
    else:
        product_task(s, 0, 0)
    K.leave(mode)


cdef void matmul(int num, bint ta, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, void *a,
                 Py_ssize_t lda, void *b, Py_ssize_t ldb, bint add, void *c, Py_ssize_t ldc,
                 void *home=NULL) noexcept nogil:
    """C = op(A) B, added to C where `add`; with `home` the transpose of what is there, [n, m], is
    what C holds before, and C's transpose goes there."""
    cdef Product s
    s.num, s.ta, s.add, s.m, s.n, s.k, s.lda, s.ldb, s.ldc = num, ta, add, m, n, k, lda, ldb, ldc
    s.a, s.b, s.packed, s.c, s.weights = <char *>a, <char *>b, NULL, <char *>c, False
    s.home = <char *>home
    run_product(&s)


cdef void turn(int num, Py_ssize_t m, Py_ssize_t n, void *a, Py_ssize_t lda, void *out,
               Py_ssize_t ldo) noexcept nogil:
    """out: [n, m] = the transpose of a: [m, n]."""
    if num == cnp.NPY_FLOAT:
        K.transpose(m, n, <float *>a, lda, <float *>out, ldo)
    else:
        K.transpose(m, n, <double *>a, lda, <double *>out, ldo)


cdef object plus(object x, object y):
    """x + y as a new array."""
    cdef int num = _seq.typenum(x)
    cdef tuple shape = x.shape
    data(y, "y", num, shape)
    out = y.copy()
    cdef void *px = data(x, "x", num, shape)
    cdef void *po = data(out, "y", num, shape)
    cdef Py_ssize_t n = x.size
    cdef K.rf_fpmode mode = K.enter()
    if num == cnp.NPY_FLOAT:
        K.add(n, <float *>px, <float *>po)
    else:
        K.add(n, <double *>px, <double *>po)
    K.leave(mode)
    return out


def total_bias(b_ih, b_hh):
    """b_ih + b_hh; either may be None, both: None."""
    if b_ih is None or b_hh is None:
        return b_hh if b_ih is None else b_ih
    return plus(b_ih, b_hh)


def lookup_table(w, bias):
    """bias + each column of w, as rows: what the products with one-hot rows give."""
    table = np.ascontiguousarray(w.T)
    if bias is None:
        return table
    return plus(np.ascontiguousarray(np.broadcast_to(bias, table.shape)), table)


cdef object multiply_in_place(int num, Py_ssize_t N, Py_ssize_t G, Py_ssize_t I, void *x, void *w,
                              void *bias, void *out):
    scratch = empty(I + G, N, num)
    cdef void *ps = matrix(scratch, "scratch", num, I + G, N)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        turn(num, N, I, x, I, ps, N)
        if num == cnp.NPY_FLOAT:
            product_in_place(N, G, I, <float *>ps, <float *>w, <float *>bias,
                             <float *>ps + I * N, <float *>out, G)
        else:
            product_in_place(N, G, I, <double *>ps, <double *>w, <double *>bias,
                             <double *>ps + I * N, <double *>out, G)
        K.leave(mode)


def input_product(x, w, bias):
    """F1: bias + W x for all steps at once; for ids, bias + their columns of W.

    x: [N, I] of w's dtype, or int64 [N] in [0, I); w: [G, I]; bias: [G] or None. -> [N, G]
    """
    cdef int num = _seq.typenum(w)
    cdef Py_ssize_t N = len(x), G = w.shape[0], I = w.shape[1]
    cdef void *pw = matrix(w, "w_ih", num, G, I)
    cdef void *pb = optional_vector(bias, "bias", num, G)
    cdef void *px
    a = empty(N, G, num)
    cdef void *pa = matrix(a, "a", num, N, G)
    if x.ndim == 1:
        px = _seq.checked_ids(x, N, I)
        table = lookup_table(w, bias)
        pw = matrix(table, "table", num, I, G)
        with nogil:
            if num == cnp.NPY_FLOAT:
                _seq.gather_rows[float](N, G, <int64_t *>px, <float *>pw, <float *>pa)
            else:
                _seq.gather_rows[double](N, G, <int64_t *>px, <double *>pw, <double *>pa)
        return a
    px = matrix(x, "x", num, N, I)
    if in_place(N, I) and K.num_threads() == 1:
        multiply_in_place(num, N, G, I, px, pw, pb, pa)
        return a
    packed = pack(w)
    cdef void *pp = packed_data(packed)
    cdef Product s
    with nogil:
        if num == cnp.NPY_FLOAT:
            _seq.fill_rows[float](N, G, <float *>pb, <float *>pa)
        else:
            _seq.fill_rows[double](N, G, <double *>pb, <double *>pa)
        s.num, s.ta, s.add, s.m, s.n, s.k, s.lda, s.ldc = num, False, True, N, G, I, I, G
        s.a, s.b, s.packed, s.c, s.weights = <char *>px, <char *>pw, <char *>pp, <char *>pa, True
        s.home = NULL
        run_product(&s)
    return a


def input_product_backward(x, w, da, dw, need_dx, out=None):
    """dW += da^T x, and dx = da W; for ids the rows of da are added to their columns of dW.

    out: where to write dx, or None.
    """
    cdef int num = _seq.typenum(w)
    cdef Py_ssize_t N = len(x), G = w.shape[0], I = w.shape[1]
    cdef void *pw = matrix(w, "w_ih", num, G, I)
    cdef void *pda = matrix(da, "da", num, N, G)
    cdef void *pdx
    matrix(dw, "dw", num, G, I, True)
    if x.ndim == 1:
        columns = np.ascontiguousarray(dw.T)
        scatter_add(x, da, columns)
        dw[...] = columns.T
        return None
    weight_product(da, x, dw)
    if not need_dx:
        return None
    dx = empty(N, I, num) if out is None else out
    pdx = matrix(dx, "out", num, N, I, True)
    with nogil:
        matmul(num, False, N, I, G, pda, G, pw, I, False, pdx, I)
    return dx


def weight_product(da, x, dw, Py_ssize_t column=0):
    """dW += da[:, column:column+n]^T x for dw: [n, I], da: [N, >= column+n], x: [N, I]."""
    cdef int num = _seq.typenum(dw)
    cdef Py_ssize_t N = da.shape[0], width = da.shape[1], n = dw.shape[0], I = dw.shape[1]
    if column < 0 or column + n > width:
        raise ValueError(f"dw: {n} rows from column {column} do not fit in da of {width} columns")
    cdef char *pda = <char *>matrix(da, "da", num, N, width)
    cdef void *px = matrix(x, "x", num, N, I)
    cdef void *pdw = matrix(dw, "dw", num, n, I, True)
    cdef Py_ssize_t size = dw.itemsize
    cdef void *pt = NULL
    if is_fixed() and turns(N, I, size):
        transposed = empty(I, n, num)
        pt = matrix(transposed, "transposed", num, I, n)
    with nogil:
        if pt != NULL:
            matmul(num, True, I, n, N, px, I, pda + column * size, width, True, pt, n, pdw)
        else:
            matmul(num, True, n, I, N, pda + column * size, width, px, I, True, pdw, I)


# Sums of columns of so many elements are divided: 50 us of one thread.
cdef Py_ssize_t MANY_SUMMANDS = 1 << 18


cdef struct Sums:
    int num
    Py_ssize_t N, n
    char *a
    char *out
    int tasks


cdef void sums_task(void *arg, int task, int worker) noexcept nogil:
    cdef Sums *s = <Sums *>arg
    cdef Py_ssize_t units = (s.n + 63) // 64
    cdef Py_ssize_t first = units * task // s.tasks * 64
    cdef Py_ssize_t n = min(units * (task + 1) // s.tasks * 64, s.n) - first
    if s.num == cnp.NPY_FLOAT:
        K.column_sum(s.N, n, <float *>s.a + first, s.n, <float *>s.out + first)
    else:
        K.column_sum(s.N, n, <double *>s.a + first, s.n, <double *>s.out + first)


def column_sum(a, out):
    """out[j] += sum_i a[i, j], i ascending; a: [N, n]; out: [n]."""
    cdef int num = _seq.typenum(out)
    cdef Py_ssize_t N = a.shape[0], n = a.shape[1]
    cdef Sums s
    cdef K.rf_fpmode mode
    s.num, s.N, s.n = num, N, n
    s.a = <char *>matrix(a, "a", num, N, n)
    s.out = <char *>vector(out, "out", num, n, True)
    s.tasks = min(K.num_threads(), (n + 63) // 64) if N * n >= MANY_SUMMANDS else 1
    with nogil:
        mode = K.enter()
        K.pool_run(s.tasks, s.tasks, sums_task, &s)
        K.leave(mode)


def bias_sums(da, grads):
    """`column_sum` into grads["b_ih"] and grads["b_hh"], where they are: once, if they held the
    same, as they do in every layer that is trained with both."""
    cdef int num = _seq.typenum(da)
    cdef bint one = "b_ih" in grads, two = "b_hh" in grads, same = False
    cdef void *p = vector(grads["b_ih"], "b_ih", num, da.shape[1], True) if one else NULL
    cdef void *q = vector(grads["b_hh"], "b_hh", num, da.shape[1], True) if two else NULL
    if one:
        same = two and memcmp(p, q, grads["b_ih"].nbytes) == 0
        column_sum(da, grads["b_ih"])
    if same:
        grads["b_hh"][...] = grads["b_ih"]
    elif two:
        column_sum(da, grads["b_hh"])


def column_dot(a, x, out, Py_ssize_t column=0):
    """out[j] += sum_i a[i, column + j] x[i, j], i ascending; x: [N, n]; out: [n]."""
    cdef int num = _seq.typenum(out)
    cdef Py_ssize_t N = a.shape[0], width = a.shape[1], n = x.shape[1]
    if column < 0 or column + n > width:
        raise ValueError(f"a: {n} columns from {column} do not fit in {width}")
    cdef char *pa = <char *>matrix(a, "a", num, N, width)
    cdef void *px = matrix(x, "x", num, N, n)
    cdef void *po = vector(out, "out", num, n, True)
    cdef K.rf_fpmode mode
    cdef Py_ssize_t skip = column * <Py_ssize_t>out.itemsize
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.column_dot(N, n, <float *>(pa + skip), width, <float *>px, n, <float *>po)
        else:
            K.column_dot(N, n, <double *>(pa + skip), width, <double *>px, n, <double *>po)
        K.leave(mode)


def layer_norm_forward(x, gain, bias=None, y=None):
    """Twin of `rnnfast.reference.sequence.layer_norm_forward`."""
    cdef int num = _seq.typenum(x)
    cdef Py_ssize_t N = x.shape[0], n = x.shape[1]
    cdef bint accumulate = y is not None
    cdef void *px = matrix(x, "x", num, N, n)
    cdef void *pg = vector(gain, "gain", num, n)
    cdef void *pb = optional_vector(bias, "bias", num, n)
    xhat = np.empty((N, n), x.dtype)
    rstd = np.empty(N, x.dtype)
    y = y.copy() if accumulate else np.empty((N, n), x.dtype)
    cdef void *ph = matrix(xhat, "xhat", num, N, n)
    cdef void *pr = vector(rstd, "rstd", num, N)
    cdef void *py = matrix(y, "y", num, N, n)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.layer_norm_forward(N, n, <float>EPS, <float *>px, <float *>pg, <float *>pb,
                                 <float *>ph, <float *>pr, <float *>py, accumulate)
        else:
            K.layer_norm_forward(N, n, EPS, <double *>px, <double *>pg, <double *>pb,
                                 <double *>ph, <double *>pr, <double *>py, accumulate)
        K.leave(mode)
    return y, xhat, rstd


def layer_norm_backward(dy, gain, xhat, rstd):
    """Twin of `rnnfast.reference.sequence.layer_norm_backward`."""
    cdef int num = _seq.typenum(dy)
    cdef Py_ssize_t N = dy.shape[0], n = dy.shape[1]
    cdef void *pd = matrix(dy, "dy", num, N, n)
    cdef void *pg = vector(gain, "gain", num, n)
    cdef void *ph = matrix(xhat, "xhat", num, N, n)
    cdef void *pr = vector(rstd, "rstd", num, N)
    dx = np.empty((N, n), dy.dtype)
    cdef void *po = matrix(dx, "dx", num, N, n)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.layer_norm_backward(N, n, <float *>pd, <float *>pg, <float *>ph, <float *>pr,
                                  <float *>po)
        else:
            K.layer_norm_backward(N, n, <double *>pd, <double *>pg, <double *>ph, <double *>pr,
                                  <double *>po)
        K.leave(mode)
    return dx


def linear_forward(x, weight, bias=None):
    """Twin of `rnnfast.reference.linear.linear_forward`: y = x W^T + b."""
    return input_product(x, weight, bias)


def linear_backward(x, weight, dy, grads, need_dx=True):
    """Twin of `rnnfast.reference.linear.linear_backward`."""
    if "bias" in grads:
        column_sum(dy, grads["bias"])
    return input_product_backward(x, weight, dy, grads["weight"], need_dx)


def activation_forward(name, x):
    """Twin of `rnnfast.reference.linear.activation_forward`."""
    cdef int num = _seq.typenum(x)
    cdef Py_ssize_t n = x.size
    cdef tuple shape = x.shape
    cdef K.rf_act f = K.activation(name)
    cdef void *px = data(x, "x", num, shape)
    y = np.empty(shape, x.dtype)
    cdef void *py = data(y, "y", num, shape)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.rnn_forward(1, n, f, <float *>px, <float *>py, <float *>NULL, n)
        else:
            K.rnn_forward(1, n, f, <double *>px, <double *>py, <double *>NULL, n)
        K.leave(mode)
    return y


def activation_backward(name, y, dy):
    """Twin of `rnnfast.reference.linear.activation_backward`."""
    cdef int num = _seq.typenum(y)
    cdef Py_ssize_t n = y.size
    cdef tuple shape = y.shape
    cdef K.rf_act f = K.activation(name)
    cdef void *py = data(y, "y", num, shape)
    cdef void *pd = data(dy, "dy", num, shape)
    dx = np.empty(shape, y.dtype)
    cdef void *px = data(dx, "dx", num, shape)
    cdef K.rf_fpmode mode
    with nogil:
        mode = K.enter()
        if num == cnp.NPY_FLOAT:
            K.rnn_backward(1, n, 0, n, False, 0, 0, <float *>NULL, 0, <float *>NULL, f,
                           <float *>py, <float *>pd, <float *>NULL, n, <float *>px)
        else:
            K.rnn_backward(1, n, 0, n, False, 0, 0, <double *>NULL, 0, <double *>NULL, f,
                           <double *>py, <double *>pd, <double *>NULL, n, <double *>px)
        K.leave(mode)
    return dx
