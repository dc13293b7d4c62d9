from rnnfast._types cimport real_t

ctypedef void (*gemm_f32)(bint, bint, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *,
                          Py_ssize_t, const float *, Py_ssize_t, float, float *,
                          Py_ssize_t) noexcept nogil
ctypedef void (*gemm_f64)(bint, bint, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
                          Py_ssize_t, const double *, Py_ssize_t, double, double *,
                          Py_ssize_t) noexcept nogil

cdef void use_blas(gemm_f32 f32, gemm_f64 f64) noexcept

# C[m,n] = op(A) B + beta C, row-major, beta 0 or 1; op transposes where ta says so.
cdef void gemm(bint ta, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *a, Py_ssize_t lda,
               const real_t *b, Py_ssize_t ldb, real_t beta, real_t *c,
               Py_ssize_t ldc) noexcept nogil

# C[m,n] = A W^T + beta C for weights W [n,k]; packed: what `pack` made of W, or NULL.
cdef void gemm_weights(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *a, Py_ssize_t lda,
                       const real_t *w, const real_t *packed, real_t beta, real_t *c,
                       Py_ssize_t ldc) noexcept nogil

# Columns first to last, multiples of PANEL or n, of C [m,n] = A W^T, A and C contiguous.
cdef void gemm_columns(Py_ssize_t m, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n, Py_ssize_t k,
                       const real_t *a, const real_t *w, const real_t *packed,
                       real_t *c) noexcept nogil

cdef enum:
    PANEL = 64  # RF_PANEL and RF_TILE of csrc/kernels_tmpl.h
    TILE = 16

# The same with W [k,n] in place of W^T, for columns first to last, multiples of PANEL or n; packed:
# what `panels` made of W, or NULL; with it from the last columns to the first where `back`.
cdef void gemm_units(bint back, Py_ssize_t m, Py_ssize_t first, Py_ssize_t last, Py_ssize_t k,
                     const real_t *a, Py_ssize_t lda, const real_t *w, const real_t *packed,
                     real_t beta, real_t *c, Py_ssize_t n) noexcept nogil

cdef bint is_fixed() noexcept nogil
cdef bint in_place(Py_ssize_t rows, Py_ssize_t inputs) noexcept nogil
cdef void product_in_place(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const real_t *columns,
                           const real_t *w, const real_t *bias, real_t *turned, real_t *c,
                           Py_ssize_t ldc) noexcept nogil
cdef bint inside_size(Py_ssize_t rows, Py_ssize_t inputs) noexcept nogil
cdef bint inside(object x, Py_ssize_t T)
cdef object pack(object w, Py_ssize_t gates=*)
cdef Py_ssize_t packed_size(Py_ssize_t gates, Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef void pack_to(int num, bint turned, Py_ssize_t gates, Py_ssize_t n, Py_ssize_t k, const void *w,
                  void *out) noexcept nogil
cdef object panels(object w)
cdef void *packed_data(object packed) noexcept
