/* The verbs, float64, 8 lanes, AVX-512 F+BW+DQ+VL. What each verb means: vec_f32_scalar.h. */
#include "../fn.h"

#define REAL double
#define RF_T f64
#define RF_REAL_IS_F32 0
#define VL 8
#define v_t __m512d
#define vm_t __mmask8

#define v_load(p) _mm512_loadu_pd(p)
#define v_store(p, v) _mm512_storeu_pd((p), (v))
#define v_loadn(p, n) _mm512_maskz_loadu_pd((__mmask8)((1u << (n)) - 1u), (p))
#define v_storen(p, n, v) _mm512_mask_storeu_pd((p), (__mmask8)((1u << (n)) - 1u), (v))
#define v_set1(s) _mm512_set1_pd(s)
#define v_zero() _mm512_setzero_pd()
#define v_first(v) _mm512_cvtsd_f64(v)

/* Halves, as in vec_f32_avx512.h. */
#define v_twice(p) _mm512_broadcast_f64x4(_mm256_loadu_pd(p))
#define v_set2(p, q) _mm512_mask_broadcastsd_pd(_mm512_set1_pd(*(p)), 0xf0, _mm_load_sd(q))
#define v_join(a, b) _mm512_insertf64x4((a), _mm512_castpd512_pd256(b), 1)
#define v_store_lower(p, v) _mm256_storeu_pd((p), _mm512_castpd512_pd256(v))
#define v_store_upper(p, v) _mm256_storeu_pd((p), _mm512_extractf64x4_pd((v), 1))
#define v_halves(p, q) _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(p)), _mm256_loadu_pd(q), 1)

#define v_add(a, b) _mm512_add_pd((a), (b))
#define v_sub(a, b) _mm512_sub_pd((a), (b))
#define v_mul(a, b) _mm512_mul_pd((a), (b))
#define v_div(a, b) _mm512_div_pd((a), (b))
#define v_sqrt(a) _mm512_sqrt_pd(a)
#define v_fma(a, b, c) _mm512_fmadd_pd((a), (b), (c))
#define v_fnma(a, b, c) _mm512_fnmadd_pd((a), (b), (c))
#define v_fms(a, b, c) _mm512_fmsub_pd((a), (b), (c))
#define v_max(a, b) _mm512_max_pd((a), (b))
#define v_min(a, b) _mm512_min_pd((a), (b))
#define v_rint(a) _mm512_roundscale_pd((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#define v_abs(a) _mm512_abs_pd(a)
#define v_neg(a) _mm512_xor_pd((a), _mm512_set1_pd(-0.0))
/* Truth tables over (mag, sgn, sign bit): sign bit ? sgn : mag, and mag | (sgn & sign bit). */
#define RF_TERN_F64_(mag, sgn, table)                                                    \
    _mm512_castsi512_pd(_mm512_ternarylogic_epi64(                                       \
        _mm512_castpd_si512(mag), _mm512_castpd_si512(sgn),                              \
        _mm512_castpd_si512(_mm512_set1_pd(-0.0)), (table)))
#define v_copysign(mag, sgn) RF_TERN_F64_((mag), (sgn), 0xD8)
#define v_withsign(mag, sgn) RF_TERN_F64_((mag), (sgn), 0xF8)

#define v_lt(a, b) _mm512_cmp_pd_mask((a), (b), _CMP_LT_OQ)
#define v_le(a, b) _mm512_cmp_pd_mask((a), (b), _CMP_LE_OQ)
#define v_isnan(a) _mm512_cmp_pd_mask((a), (a), _CMP_UNORD_Q)
#define v_select(m, a, b) _mm512_mask_blend_pd((m), (b), (a))

#define V_POW2_MAGIC (0x1.8p+52 + 1023.0)
#define v_pow2_magic(t) _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52))
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) _mm512_scalef_pd((y), (n))
#define v_ilog2(a)                                                                       \
    v_sub(_mm512_castsi512_pd(_mm512_or_si512(                                           \
              _mm512_srli_epi64(_mm512_castpd_si512(a), 52),                             \
              _mm512_set1_epi64(0x4330000000000000LL))),                                 \
          v_set1(0x1p+52 + 1023.0))
#define v_mantissa(a)                                                                    \
    _mm512_or_pd(_mm512_and_pd((a), _mm512_castsi512_pd(                                 \
                                        _mm512_set1_epi64(0x000fffffffffffffLL))),       \
                 _mm512_set1_pd(1.0))

/* 8 x 8: pairs of rows, then quarters of the vectors, twice. */
RF_INLINE void FN(transpose)(__m512d *t) {
    __m512d a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_pd(t[i], t[i + 1]);
        a[i + 1] = _mm512_unpackhi_pd(t[i], t[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + k] = _mm512_shuffle_f64x2(a[i + k], a[i + k + 2], 0x88);
            b[i + k + 2] = _mm512_shuffle_f64x2(a[i + k], a[i + k + 2], 0xdd);
        }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_f64x2(b[k], b[k + 4], 0x88);
        t[k + 4] = _mm512_shuffle_f64x2(b[k], b[k + 4], 0xdd);
    }
}
#define v_transpose(t) FN(transpose)(t)
