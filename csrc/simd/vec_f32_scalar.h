/* The verbs, float32, one lane, any CPU. This header says what each verb means; the wide ones give
 * the same bits in every lane.
 *
 *   v_load v_store            VL lanes, any alignment
 *   v_loadn v_storen          the first n lanes, 0 <= n < VL; other lanes load as 0, and memory
 *                             past the n-th element is not touched
 *   v_set1 v_zero v_first     all lanes equal; zeros; lane 0
 *   v_add .. v_sqrt v_fma     one IEEE rounding each; v_fma = a*b+c, v_fnma = c-a*b, v_fms = a*b-c
 *   v_max v_min               (a > b) ? a : b and (a < b) ? a : b: a NaN on either side gives b
 *   v_rint                    nearest integer, ties to even, sign of zero kept
 *   v_abs v_neg v_copysign    bit moves, as v_select is; v_withsign: v_copysign for mag >= 0
 *   v_lt v_le v_isnan         masks; false where a NaN is compared
 *   v_pow2(n)                 2^n for an integer n in the exponent range of normal numbers;
 *                             one below it gives 0, one above it infinity
 *   v_pow2_magic(t)           v_pow2(n) for t = n + V_POW2_MAGIC: adding the magic number rounds to
 *                             the nearest integer and leaves the biased exponent in the low bits
 *   v_scale(y, n)             y * 2^n rounded once, for 1/2 < |y| < 2, |n| <= twice the exponent range
 *   v_ilog2 v_mantissa        exponent (as REAL) and significand in [1, 2) of a positive normal
 *
 * Under FTZ + DAZ arithmetic takes denormals for zeros of the same sign and returns such zeros for
 * tiny results; so do v_max, v_min and v_rint, while bit moves pass denormals on. */
#include "../fn.h"

#if !defined(RF_HW_FMA) && (defined(__FMA__) || defined(__aarch64__))
#define RF_HW_FMA 1
#endif
#ifndef RF_HW_FMA
#include "soft_fma.h"
#endif

#define REAL float
#define RF_T f32
#define RF_REAL_IS_F32 1
#define VL 1
#define v_t float
#define vm_t uint32_t

#define v_load(p) (*(p))
#define v_store(p, v) (*(p) = (v))
#define v_loadn(p, n) ((void)(p), (void)(n), 0.0f)
#define v_storen(p, n, v) ((void)(p), (void)(n), (void)(v))
#define v_set1(s) (s)
#define v_zero() 0.0f
#define v_first(v) (v)

RF_INLINE uint32_t FN(bits)(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
RF_INLINE float FN(from_bits)(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_div(a, b) ((a) / (b))
#ifdef RF_HW_FMA
#define v_fma(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define v_fma(a, b, c) rf_soft_fma_f32((a), (b), (c))
#endif
#define v_fnma(a, b, c) v_fma(v_neg(a), (b), (c))
#define v_fms(a, b, c) v_fma((a), (b), v_neg(c))
/* The instructions by name: a compiler may turn the conditional expression into a bit move, which
 * would let denormals through under DAZ; and a plain square root into a call that sets errno. */
#ifdef __SSE2__
#define v_max(a, b) _mm_cvtss_f32(_mm_max_ss(_mm_set_ss(a), _mm_set_ss(b)))
#define v_min(a, b) _mm_cvtss_f32(_mm_min_ss(_mm_set_ss(a), _mm_set_ss(b)))
#define v_sqrt(a) _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a)))
#else
RF_INLINE float FN(max)(float a, float b) { return a > b ? a : b; }
RF_INLINE float FN(min)(float a, float b) { return a < b ? a : b; }
#define v_max(a, b) FN(max)((a), (b))
#define v_min(a, b) FN(min)((a), (b))
#define v_sqrt(a) __builtin_sqrtf(a)
#endif

#define v_abs(a) __builtin_fabsf(a)
#define v_neg(a) (-(a))
#define v_copysign(mag, sgn) __builtin_copysignf((mag), (sgn))
#define v_withsign(mag, sgn) __builtin_copysignf((mag), (sgn))

#define v_lt(a, b) (0u - (uint32_t)((a) < (b)))
#define v_le(a, b) (0u - (uint32_t)((a) <= (b)))
#define v_isnan(a) FN(isnan)(a)
RF_INLINE uint32_t FN(isnan)(float a) { return 0u - (uint32_t)(a != a); }
#define v_select(m, a, b) FN(select)((m), (a), (b))
RF_INLINE float FN(select)(uint32_t m, float a, float b) {
    return FN(from_bits)((FN(bits)(a) & m) | (FN(bits)(b) & ~m));
}

/* Adding and taking away 2^23 rounds; from there on every float32 is an integer. */
#define v_rint(a) FN(rint)(a)
RF_INLINE float FN(rint)(float a) {
    const float mag = v_abs(a), rounded = (mag + 0x1p+23f) - 0x1p+23f;
    return v_withsign(v_select(v_lt(mag, 0x1p+23f), rounded, mag), a);
}

#define V_POW2_MAGIC (0x1.8p+23f + 127.0f)
#define v_pow2_magic(t) FN(from_bits)(FN(bits)(t) << 23)
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) FN(v_scale)((y), (n))
#define v_ilog2(a) v_sub(FN(from_bits)((FN(bits)(a) >> 23) | 0x4B000000u), 0x1p+23f + 127.0f)
#define v_mantissa(a) FN(from_bits)((FN(bits)(a) & 0x007fffffu) | 0x3f800000u)

#include "scale.h"
/* t[l][p] to t[p][l] for VL vectors. */
#define v_transpose(t) ((void)(t))
