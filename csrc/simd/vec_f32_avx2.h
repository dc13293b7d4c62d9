/* The verbs, float32, 8 lanes, AVX2 + FMA. What each verb means: vec_f32_scalar.h. */
#include "../fn.h"

#define REAL float
#define RF_T f32
#define RF_REAL_IS_F32 1
#define VL 8
#define v_t __m256
#define vm_t __m256

#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps((p), (v))
#define RF_FIRST_F32_(n)                                                                 \
    _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define v_loadn(p, n) _mm256_maskload_ps((p), RF_FIRST_F32_(n))
#define v_storen(p, n, v) FN(v_storen)((p), (n), (v))
#define v_set1(s) _mm256_set1_ps(s)
#define v_zero() _mm256_setzero_ps()
#define v_first(v) _mm256_cvtss_f32(v)

#define v_add(a, b) _mm256_add_ps((a), (b))
#define v_sub(a, b) _mm256_sub_ps((a), (b))
#define v_mul(a, b) _mm256_mul_ps((a), (b))
#define v_div(a, b) _mm256_div_ps((a), (b))
#define v_sqrt(a) _mm256_sqrt_ps(a)
#define v_fma(a, b, c) _mm256_fmadd_ps((a), (b), (c))
#define v_fnma(a, b, c) _mm256_fnmadd_ps((a), (b), (c))
#define v_fms(a, b, c) _mm256_fmsub_ps((a), (b), (c))
#define v_max(a, b) _mm256_max_ps((a), (b))
#define v_min(a, b) _mm256_min_ps((a), (b))
#define v_rint(a) _mm256_round_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#define v_abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (a))
#define v_neg(a) _mm256_xor_ps((a), _mm256_set1_ps(-0.0f))
#define v_copysign(mag, sgn) v_withsign(v_abs(mag), (sgn))
#define v_withsign(mag, sgn) _mm256_or_ps((mag), _mm256_and_ps((sgn), _mm256_set1_ps(-0.0f)))

#define v_lt(a, b) _mm256_cmp_ps((a), (b), _CMP_LT_OQ)
#define v_le(a, b) _mm256_cmp_ps((a), (b), _CMP_LE_OQ)
#define v_isnan(a) _mm256_cmp_ps((a), (a), _CMP_UNORD_Q)
#define v_select(m, a, b) _mm256_blendv_ps((b), (a), (m))

#define V_POW2_MAGIC (0x1.8p+23f + 127.0f)
#define v_pow2_magic(t) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23))
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) FN(v_scale)((y), (n))
#define v_ilog2(a)                                                                       \
    v_sub(_mm256_castsi256_ps(_mm256_or_si256(                                           \
              _mm256_srli_epi32(_mm256_castps_si256(a), 23),                             \
              _mm256_set1_epi32(0x4B000000))),                                           \
          v_set1(0x1p+23f + 127.0f))
#define v_mantissa(a)                                                                    \
    _mm256_or_ps(_mm256_and_ps((a), _mm256_castsi256_ps(_mm256_set1_epi32(0x007fffff))), \
                 _mm256_set1_ps(1.0f))

/* Piece by piece: AMD's CPUs take a masked store apart into a score of operations. */
RF_INLINE void FN(v_storen)(float *p, ptrdiff_t n, __m256 v) {
    __m128 left = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(p, left);
        left = _mm256_extractf128_ps(v, 1), p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, left);
        left = _mm_movehl_ps(left, left), p += 2;
    }
    if (n & 1) _mm_store_ss(p, left);
}

#include "scale.h"

/* 8 x 8: pairs of rows, pairs of pairs, then halves of the vectors. */
RF_INLINE void FN(transpose)(__m256 *t) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm256_shuffle_ps(a[i + k], a[i + k + 2], 0x44);
            b[i + 2 * k + 1] = _mm256_shuffle_ps(a[i + k], a[i + k + 2], 0xee);
        }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
        t[k + 4] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
    }
}
#define v_transpose(t) FN(transpose)(t)
