/* The verbs, float32, 16 lanes, AVX-512 F+BW+DQ+VL. What each verb means: vec_f32_scalar.h. */
#include "../fn.h"

#define REAL float
#define RF_T f32
#define RF_REAL_IS_F32 1
#define VL 16
#define v_t __m512
#define vm_t __mmask16

#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps((p), (v))
#define v_loadn(p, n) _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1u), (p))
#define v_storen(p, n, v) _mm512_mask_storeu_ps((p), (__mmask16)((1u << (n)) - 1u), (v))
#define v_set1(s) _mm512_set1_ps(s)
#define v_zero() _mm512_setzero_ps()
#define v_first(v) _mm512_cvtss_f32(v)

/* Halves: VL / 2 elements twice; *p in the lower, *q in the upper half; the lower halves of a and b. */
#define v_twice(p) _mm512_broadcast_f32x8(_mm256_loadu_ps(p))
#define v_set2(p, q) _mm512_mask_broadcastss_ps(_mm512_set1_ps(*(p)), 0xff00, _mm_load_ss(q))
#define v_join(a, b) _mm512_insertf32x8((a), _mm512_castps512_ps256(b), 1)
#define v_store_lower(p, v) _mm256_storeu_ps((p), _mm512_castps512_ps256(v))
#define v_store_upper(p, v) _mm256_storeu_ps((p), _mm512_extractf32x8_ps((v), 1))
#define v_halves(p, q) _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(q), 1)

/* Pairs of elements: p[0] p[1] p[0] p[1] ...; each element of the lower half twice; those of both halves in
 * turn, and back; of a and b in turn, in each quarter of the vectors the first or the last two. v_upper: the
 * upper half in the lower one's place. */
typedef double rf_pair __attribute__((may_alias, aligned(4)));
#define v_pair(p) _mm512_castpd_ps(_mm512_set1_pd(*(const rf_pair *)(p)))
#define v_doubled(v)                                                                     \
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), (v))
#define v_in_turn(v)                                                                     \
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15), (v))
#define v_apart(v)                                                                       \
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), (v))
#define v_first_pairs(a, b) _mm512_unpacklo_ps((a), (b))
#define v_upper(v) _mm512_shuffle_f32x4((v), (v), 0xee)
#define v_last_pairs(a, b) _mm512_unpackhi_ps((a), (b))

#define v_add(a, b) _mm512_add_ps((a), (b))
#define v_sub(a, b) _mm512_sub_ps((a), (b))
#define v_mul(a, b) _mm512_mul_ps((a), (b))
#define v_div(a, b) _mm512_div_ps((a), (b))
#define v_sqrt(a) _mm512_sqrt_ps(a)
#define v_fma(a, b, c) _mm512_fmadd_ps((a), (b), (c))
#define v_fnma(a, b, c) _mm512_fnmadd_ps((a), (b), (c))
#define v_fms(a, b, c) _mm512_fmsub_ps((a), (b), (c))
#define v_max(a, b) _mm512_max_ps((a), (b))
#define v_min(a, b) _mm512_min_ps((a), (b))
#define v_rint(a) _mm512_roundscale_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#define v_abs(a) _mm512_abs_ps(a)
#define v_neg(a) _mm512_xor_ps((a), _mm512_set1_ps(-0.0f))
/* Truth tables over (mag, sgn, sign bit): sign bit ? sgn : mag, and mag | (sgn & sign bit). */
#define RF_TERN_F32_(mag, sgn, table)                                                    \
    _mm512_castsi512_ps(_mm512_ternarylogic_epi32(                                       \
        _mm512_castps_si512(mag), _mm512_castps_si512(sgn),                              \
        _mm512_castps_si512(_mm512_set1_ps(-0.0f)), (table)))
#define v_copysign(mag, sgn) RF_TERN_F32_((mag), (sgn), 0xD8)
#define v_withsign(mag, sgn) RF_TERN_F32_((mag), (sgn), 0xF8)

#define v_lt(a, b) _mm512_cmp_ps_mask((a), (b), _CMP_LT_OQ)
#define v_le(a, b) _mm512_cmp_ps_mask((a), (b), _CMP_LE_OQ)
#define v_isnan(a) _mm512_cmp_ps_mask((a), (a), _CMP_UNORD_Q)
#define v_select(m, a, b) _mm512_mask_blend_ps((m), (b), (a))

#define V_POW2_MAGIC (0x1.8p+23f + 127.0f)
#define v_pow2_magic(t) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23))
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) _mm512_scalef_ps((y), (n))
#define v_ilog2(a)                                                                       \
    v_sub(_mm512_castsi512_ps(_mm512_or_si512(                                           \
              _mm512_srli_epi32(_mm512_castps_si512(a), 23),                             \
              _mm512_set1_epi32(0x4B000000))),                                           \
          v_set1(0x1p+23f + 127.0f))
#define v_mantissa(a)                                                                    \
    _mm512_or_ps(_mm512_and_ps((a), _mm512_castsi512_ps(_mm512_set1_epi32(0x007fffff))), \
                 _mm512_set1_ps(1.0f))

/* 16 x 16: pairs of rows, pairs of pairs, then quarters of the vectors, twice. */
RF_INLINE void FN(transpose)(__m512 *t) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            const __m512d p = _mm512_castps_pd(a[i + k]), q = _mm512_castps_pd(a[i + k + 2]);
            b[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q));
            b[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
        }
    for (int i = 0; i < 16; i += 8)
        for (int k = 0; k < 4; k++) {
            a[i + k] = _mm512_shuffle_f32x4(b[i + k], b[i + k + 4], 0x88);
            a[i + k + 4] = _mm512_shuffle_f32x4(b[i + k], b[i + k + 4], 0xdd);
        }
    for (int k = 0; k < 8; k++) {
        t[k] = _mm512_shuffle_f32x4(a[k], a[k + 8], 0x88);
        t[k + 8] = _mm512_shuffle_f32x4(a[k], a[k + 8], 0xdd);
    }
}
#define v_transpose(t) FN(transpose)(t)
