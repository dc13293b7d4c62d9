/* The verbs, float64, 4 lanes, AVX2 + FMA. What each verb means: vec_f32_scalar.h. */
#include "../fn.h"

#define REAL double
#define RF_T f64
#define RF_REAL_IS_F32 0
#define VL 4
#define v_t __m256d
#define vm_t __m256d

#define v_load(p) _mm256_loadu_pd(p)
#define v_store(p, v) _mm256_storeu_pd((p), (v))
#define RF_FIRST_F64_(n)                                                                 \
    _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)(n)), _mm256_setr_epi64x(0, 1, 2, 3))
#define v_loadn(p, n) _mm256_maskload_pd((p), RF_FIRST_F64_(n))
#define v_storen(p, n, v) FN(v_storen)((p), (n), (v))
#define v_set1(s) _mm256_set1_pd(s)
#define v_zero() _mm256_setzero_pd()
#define v_first(v) _mm256_cvtsd_f64(v)

#define v_add(a, b) _mm256_add_pd((a), (b))
#define v_sub(a, b) _mm256_sub_pd((a), (b))
#define v_mul(a, b) _mm256_mul_pd((a), (b))
#define v_div(a, b) _mm256_div_pd((a), (b))
#define v_sqrt(a) _mm256_sqrt_pd(a)
#define v_fma(a, b, c) _mm256_fmadd_pd((a), (b), (c))
#define v_fnma(a, b, c) _mm256_fnmadd_pd((a), (b), (c))
#define v_fms(a, b, c) _mm256_fmsub_pd((a), (b), (c))
#define v_max(a, b) _mm256_max_pd((a), (b))
#define v_min(a, b) _mm256_min_pd((a), (b))
#define v_rint(a) _mm256_round_pd((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#define v_abs(a) _mm256_andnot_pd(_mm256_set1_pd(-0.0), (a))
#define v_neg(a) _mm256_xor_pd((a), _mm256_set1_pd(-0.0))
#define v_copysign(mag, sgn) v_withsign(v_abs(mag), (sgn))
#define v_withsign(mag, sgn) _mm256_or_pd((mag), _mm256_and_pd((sgn), _mm256_set1_pd(-0.0)))

#define v_lt(a, b) _mm256_cmp_pd((a), (b), _CMP_LT_OQ)
#define v_le(a, b) _mm256_cmp_pd((a), (b), _CMP_LE_OQ)
#define v_isnan(a) _mm256_cmp_pd((a), (a), _CMP_UNORD_Q)
#define v_select(m, a, b) _mm256_blendv_pd((b), (a), (m))

#define V_POW2_MAGIC (0x1.8p+52 + 1023.0)
#define v_pow2_magic(t) _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52))
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) FN(v_scale)((y), (n))
#define v_ilog2(a)                                                                       \
    v_sub(_mm256_castsi256_pd(_mm256_or_si256(                                           \
              _mm256_srli_epi64(_mm256_castpd_si256(a), 52),                             \
              _mm256_set1_epi64x(0x4330000000000000LL))),                                \
          v_set1(0x1p+52 + 1023.0))
#define v_mantissa(a)                                                                    \
    _mm256_or_pd(_mm256_and_pd((a), _mm256_castsi256_pd(                                 \
                                        _mm256_set1_epi64x(0x000fffffffffffffLL))),      \
                 _mm256_set1_pd(1.0))

RF_INLINE void FN(v_storen)(double *p, ptrdiff_t n, __m256d v) {
    __m128d left = _mm256_castpd256_pd128(v);
    if (n & 2) {
        _mm_storeu_pd(p, left);
        left = _mm256_extractf128_pd(v, 1), p += 2;
    }
    if (n & 1) _mm_store_sd(p, left);
}

#include "scale.h"

/* 4 x 4: pairs of rows, then halves of the vectors. */
RF_INLINE void FN(transpose)(__m256d *t) {
    __m256d a[4];
    for (int i = 0; i < 4; i += 2) {
        a[i] = _mm256_unpacklo_pd(t[i], t[i + 1]);
        a[i + 1] = _mm256_unpackhi_pd(t[i], t[i + 1]);
    }
    for (int k = 0; k < 2; k++) {
        t[k] = _mm256_permute2f128_pd(a[k], a[k + 2], 0x20);
        t[k + 2] = _mm256_permute2f128_pd(a[k], a[k + 2], 0x31);
    }
}
#define v_transpose(t) FN(transpose)(t)
