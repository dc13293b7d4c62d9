/* Fused multiply-add for CPUs without one: a * b + c with one rounding, the bits of the hardware
 * instruction over the whole range (overflow, denormals, signed zeros, infinities), under gradual
 * underflow and under FTZ + DAZ alike. No libm. */
#ifndef RF_SOFT_FMA_H
#define RF_SOFT_FMA_H
#include "../fn.h"

/* s = p + z as rounded, adjusted to "rounded to odd" (Boldo & Melquiond 2008): to the neighbour
 * whose last bit is 1 when inexact. A later rounding to fewer bits then still sees on which side of
 * a tie the exact sum lies. */
static __attribute__((noinline, unused)) double rf_to_odd(double p, double z, double s) {
    const double zz = s - p;
    const double err = (p - (s - zz)) + (z - zz); /* exact (Knuth); NaN when s is not finite */
    uint64_t u;
    memcpy(&u, &s, sizeof u);
    if ((err > 0.0 || err < 0.0) && !(u & 1u)) u += (err < 0.0) == (u >> 63) ? 1u : ~(uint64_t)0;
    memcpy(&s, &u, sizeof s);
    return s;
}

/* The float32 product is exact in float64, and only where the rounded sum is a tie of the final
 * rounding (all of its low bits zero; one bit more than float32 keeps) does its own error matter.
 * No float64 denormal occurs on the way, hence the conversions at both ends apply DAZ and FTZ as
 * the instruction would. */
RF_INLINE float rf_soft_fma_f32(float a, float b, float c) {
    const double p = (double)a * (double)b, z = (double)c;
    double s = p + z;
    uint64_t u;
    memcpy(&u, &s, sizeof u);
    if (__builtin_expect((u & 0xfffffffu) == 0, 0)) s = rf_to_odd(p, z, s);
    return (float)s;
}

#if defined(__SIZEOF_INT128__)
__extension__ typedef unsigned __int128 rf_u128;

/* x >> n for 0 <= n, rounded to odd: all that falls out is ored into the last bit. */
RF_INLINE rf_u128 rf_shift_odd(rf_u128 x, int n) {
    if (n == 0) return x;
    if (n > 127) return x != 0;
    return (x >> n) | ((x << (128 - n)) != 0);
}

/* x * 2^-n rounded to nearest, ties to even; x < 2^127 and the result fits. */
RF_INLINE uint64_t rf_shift_even(rf_u128 x, int n) {
    if (n <= 0) return (uint64_t)(x << -n);
    if (n > 127) return 0;
    const rf_u128 half = (rf_u128)1 << (n - 1), rest = x & (2 * half - 1);
    const uint64_t q = (uint64_t)(x >> n);
    return q + (rest > half || (rest == half && (q & 1u)));
}

/* Finite x != 0 as m * 2^e with 2^52 <= m < 2^53. */
RF_INLINE uint64_t rf_split_f64(double x, int *e) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    const uint64_t frac = u & 0xfffffffffffffu;
    const int biased = (int)((u >> 52) & 0x7ff);
    if (biased) {
        *e = biased - 1075;
        return frac | 0x10000000000000u;
    }
    const int up = __builtin_clzll(frac) - 11;
    *e = -1074 - up;
    return frac << up;
}

/* Are tiny results flushed to zero? Asked of the arithmetic itself; volatile, or the compiler
 * would answer for its own rounding mode. */
RF_INLINE int rf_flushing(void) {
    volatile double smallest = 0x1p-1022;
    return smallest * 0.5 == 0.0;
}

/* Exact sum in 128-bit integers, then one rounding. Out of line: it is large and it is called from
 * every v_fma of the float64 baseline build. */
static __attribute__((noinline, unused)) double rf_soft_fma_f64(double a, double b, double c) {
    const double inf = __builtin_inf();
    /* Zeros (under DAZ the comparison takes denormals for zero) and non-finite operands: here
     * plain arithmetic rounds at most once. A finite a * b must not meet an infinite c as inf, nor
     * a zero c as a zero that underflow made. */
    if (a == 0.0 || b == 0.0 || !(a < inf && a > -inf) || !(b < inf && b > -inf)) return a * b + c;
    if (c == 0.0) return a * b;
    if (!(c < inf && c > -inf)) return c + c;

    int ea, eb, ec;
    uint64_t ua, ub, uc;
    const uint64_t ma = rf_split_f64(a, &ea), mb = rf_split_f64(b, &eb), mc = rf_split_f64(c, &ec);
    memcpy(&ua, &a, sizeof ua);
    memcpy(&ub, &b, sizeof ub);
    memcpy(&uc, &c, sizeof uc);
    const uint64_t sign_p = (ua ^ ub) >> 63, sign_c = uc >> 63;

    /* Both terms with their leading bit at 124 or 125. The one with the smaller exponent moves
     * right and is rounded to odd; the other ends in 20 zero bits or more, so their sum is
     * rounded to odd as well, far below the bits that are kept. */
    rf_u128 p = (rf_u128)ma * mb << 20, z = (rf_u128)mc << 72;
    const int ep = ea + eb - 20, ez = ec - 72;
    const int e = ep > ez ? ep : ez;
    p = rf_shift_odd(p, e - ep);
    z = rf_shift_odd(z, e - ez);
    const int swap = sign_p != sign_c && p < z;
    const rf_u128 sum = sign_p == sign_c ? p + z : swap ? z - p : p - z;
    if (sum == 0) return 0.0;
    const uint64_t sign = swap ? sign_c : sign_p;

    const uint64_t hi = (uint64_t)(sum >> 64), lo = (uint64_t)sum;
    const int top = hi ? 127 - __builtin_clzll(hi) : 63 - __builtin_clzll(lo);
    const int exponent = e + top; /* 2^exponent <= |exact value| < 2^(exponent+1) */
    uint64_t bits;
    if (exponent > 1023) {
        bits = 0x7ff0000000000000u;
    } else if (exponent >= -1022) {
        /* A carry out of the significand moves into the exponent, up to infinity. */
        bits = ((uint64_t)(exponent + 1022) << 52) + rf_shift_even(sum, top - 52);
    } else {
        /* x86 flushes what is tiny after rounding to 53 bits with an unbounded exponent. */
        const int tiny = exponent < -1023 || rf_shift_even(sum, top - 52) < 0x20000000000000u;
        bits = tiny && rf_flushing() ? 0 : rf_shift_even(sum, -1074 - e);
    }
    bits |= sign << 63;
    double result;
    memcpy(&result, &bits, sizeof result);
    return result;
}
#else
/* 32-bit targets: no 128-bit integers, so libm's fma, which C11 defines as correctly rounded. */
RF_INLINE double rf_soft_fma_f64(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif
#endif
