"""Row-major matrix products over scipy.linalg.cython_blas: the one place where row-major meets
Fortran order."""

from libc.string cimport memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from rnnfast cimport _kernels as K
from rnnfast cimport _product

cdef Py_ssize_t GEMV_SIZE = 1 << 18  # elements of B, as in reference.arithmetic


cdef void gemm(bint ta, bint tb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
               const real_t *a, Py_ssize_t lda, const real_t *b, Py_ssize_t ldb,
               real_t beta, real_t *c, Py_ssize_t ldc) noexcept nogil:
    """C[m,n] = op(A) op(B) + beta C, row-major; op transposes where ta, tb say so.

    Fortran sees each row-major matrix transposed, so C^T = op(B)^T op(A)^T is asked for. A matrix
    with one row or one column is passed as not transposed (both readings are the same memory), a
    rule that ``reference.arithmetic`` shares: OpenBLAS may sum the two in different orders. One row
    and a large B are gemv's: gemm would first copy B, at 1 x 1024 x 4096 for three times as long.
    Denormals are kept inside: its worker threads would not see another mode.
    """
    cdef int m_ = <int>m, n_ = <int>n, k_ = <int>k
    cdef int lda_ = <int>lda, ldb_ = <int>ldb, ldc_ = <int>ldc
    cdef char op_a = b"T" if ta else b"N"
    cdef char op_b = b"T" if tb else b"N"
    cdef real_t one = 1
    cdef Py_ssize_t i, j
    cdef K.rf_fpmode mode
    if m == 0 or n == 0:
        return
    if k == 0:
        for i in range(m):
            for j in range(n):
                c[i * ldc + j] = beta * c[i * ldc + j] if beta != 0 else 0
        return
    if ta and (k == 1 or (m == 1 and lda == 1)):
        op_a, lda_ = b"N", k_
    if tb and (n == 1 or (k == 1 and ldb == 1)):
        op_b, ldb_ = b"N", n_
    if m == 1 and n > 1 and n * k >= GEMV_SIZE:
        row(op_b, n_, k_, a, lda_ if op_a == b"T" else 1, b, ldb_, beta, c)
        return
    mode = K.gradual()
    if real_t is float:
        sgemm(&op_b, &op_a, &n_, &m_, &k_, &one, <float *>b, &ldb_, <float *>a, &lda_, &beta, c,
              &ldc_)
    else:
        dgemm(&op_b, &op_a, &n_, &m_, &k_, &one, <double *>b, &ldb_, <double *>a, &lda_, &beta, c,
              &ldc_)
    K.leave(mode)


cdef void row(char op, int n, int k, const real_t *a, int step, const real_t *b, int ldb,
              real_t beta, real_t *c) noexcept nogil:
    """c[n] = a op(B) + beta c, beta 0 or 1; a: k elements, `step` apart; B: rows ldb apart."""
    cdef int rows = k if op == b"T" else n, columns = n if op == b"T" else k, one = 1
    cdef real_t alpha = 1, keep = 1
    cdef K.rf_fpmode mode = K.gradual()
    if beta == 0:
        memset(c, 0, n * sizeof(real_t))
    if real_t is float:
        sgemv(&op, &rows, &columns, &alpha, <float *>b, &ldb, <float *>a, &step, &keep, c, &one)
    else:
        dgemv(&op, &rows, &columns, &alpha, <double *>b, &ldb, <double *>a, &step, &keep, c, &one)
    K.leave(mode)


_product.use_blas(gemm[float], gemm[double])


def matmul(double[:, ::1] a, double[:, ::1] b, double[:, ::1] c, bint ta=False, bint tb=False,
           double beta=0.0):
    """gemm on float64 arrays, for the tests of the wrapper itself."""
    cdef Py_ssize_t m = a.shape[1] if ta else a.shape[0]
    cdef Py_ssize_t k = a.shape[0] if ta else a.shape[1]
    cdef Py_ssize_t n = b.shape[0] if tb else b.shape[1]
    if (b.shape[1] if tb else b.shape[0]) != k or c.shape[0] != m or c.shape[1] != n:
        raise ValueError("shapes do not match")
    gemm[double](ta, tb, m, n, k, &a[0, 0] if a.size else NULL, a.shape[1],
                 &b[0, 0] if b.size else NULL, b.shape[1], beta,
                 &c[0, 0] if c.size else NULL, c.shape[1])
