/* The verbs, float64, one lane, any CPU. What each verb means: vec_f32_scalar.h. */
#include "../fn.h"

#if !defined(RF_HW_FMA) && (defined(__FMA__) || defined(__aarch64__))
#define RF_HW_FMA 1
#endif
#ifndef RF_HW_FMA
#include "soft_fma.h"
#endif

#define REAL double
#define RF_T f64
#define RF_REAL_IS_F32 0
#define VL 1
#define v_t double
#define vm_t uint64_t

#define v_load(p) (*(p))
#define v_store(p, v) (*(p) = (v))
#define v_loadn(p, n) ((void)(p), (void)(n), 0.0)
#define v_storen(p, n, v) ((void)(p), (void)(n), (void)(v))
#define v_set1(s) (s)
#define v_zero() 0.0
#define v_first(v) (v)

RF_INLINE uint64_t FN(bits)(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
RF_INLINE double FN(from_bits)(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_div(a, b) ((a) / (b))
#ifdef RF_HW_FMA
#define v_fma(a, b, c) __builtin_fma((a), (b), (c))
#else
#define v_fma(a, b, c) rf_soft_fma_f64((a), (b), (c))
#endif
#define v_fnma(a, b, c) v_fma(v_neg(a), (b), (c))
#define v_fms(a, b, c) v_fma((a), (b), v_neg(c))
/* The instructions by name: a compiler may turn the conditional expression into a bit move, which
 * would let denormals through under DAZ; and a plain square root into a call that sets errno. */
#ifdef __SSE2__
#define v_max(a, b) _mm_cvtsd_f64(_mm_max_sd(_mm_set_sd(a), _mm_set_sd(b)))
#define v_min(a, b) _mm_cvtsd_f64(_mm_min_sd(_mm_set_sd(a), _mm_set_sd(b)))
#define v_sqrt(a) _mm_cvtsd_f64(_mm_sqrt_sd(_mm_set_sd(a), _mm_set_sd(a)))
#else
RF_INLINE double FN(max)(double a, double b) { return a > b ? a : b; }
RF_INLINE double FN(min)(double a, double b) { return a < b ? a : b; }
#define v_max(a, b) FN(max)((a), (b))
#define v_min(a, b) FN(min)((a), (b))
#define v_sqrt(a) __builtin_sqrt(a)
#endif

#define v_abs(a) __builtin_fabs(a)
#define v_neg(a) (-(a))
#define v_copysign(mag, sgn) __builtin_copysign((mag), (sgn))
#define v_withsign(mag, sgn) __builtin_copysign((mag), (sgn))

#define v_lt(a, b) ((uint64_t)0 - (uint64_t)((a) < (b)))
#define v_le(a, b) ((uint64_t)0 - (uint64_t)((a) <= (b)))
#define v_isnan(a) FN(isnan)(a)
RF_INLINE uint64_t FN(isnan)(double a) { return (uint64_t)0 - (uint64_t)(a != a); }
#define v_select(m, a, b) FN(select)((m), (a), (b))
RF_INLINE double FN(select)(uint64_t m, double a, double b) {
    return FN(from_bits)((FN(bits)(a) & m) | (FN(bits)(b) & ~m));
}

/* Adding and taking away 2^52 rounds; from there on every float64 is an integer. */
#define v_rint(a) FN(rint)(a)
RF_INLINE double FN(rint)(double a) {
    const double mag = v_abs(a), rounded = (mag + 0x1p+52) - 0x1p+52;
    return v_withsign(v_select(v_lt(mag, 0x1p+52), rounded, mag), a);
}

#define V_POW2_MAGIC (0x1.8p+52 + 1023.0)
#define v_pow2_magic(t) FN(from_bits)(FN(bits)(t) << 52)
#define v_pow2(n) v_pow2_magic(v_add((n), v_set1(V_POW2_MAGIC)))
#define v_scale(y, n) FN(v_scale)((y), (n))
#define v_ilog2(a) v_sub(FN(from_bits)((FN(bits)(a) >> 52) | 0x4330000000000000u), 0x1p+52 + 1023.0)
#define v_mantissa(a) FN(from_bits)((FN(bits)(a) & 0x000fffffffffffffu) | 0x3ff0000000000000u)

#include "scale.h"
#define v_transpose(t) ((void)(t))
