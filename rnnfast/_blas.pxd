from rnnfast._types cimport real_t

cdef void gemm(bint ta, bint tb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
               const real_t *a, Py_ssize_t lda, const real_t *b, Py_ssize_t ldb,
               real_t beta, real_t *c, Py_ssize_t ldc) noexcept nogil
