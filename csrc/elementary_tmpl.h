/* exp, tanh, sigmoid, log1p and log, once for both dtypes and all ISAs: included after a vec_*.h
 * header. rnnfast/reference/elementary.py is the same in NumPy, step by step (labels E, S, T, L),
 * and gives the same bits; docs/arithmetic.md has the accuracy, tools/minimax.py the coefficients.
 *
 * The first three split x = n ln2 + r with |r| <= ln2/2 and need y = e^r - 1 = r + r^2 P(r). Between
 * two changes of n, y as computed never decreases: r moves by a unit in the last place of x or more,
 * and r^2 P(r) is smaller than r and has errors smaller still. Every operation after y is monotone
 * in its rounded result. So the functions are monotone if they are so across each change of n (and
 * across the split of tanh), and there are few enough of those to test every one.
 *
 * sigmoid and tanh take several vectors step by step: each of them is a chain of 45 to 55 cycles, and the
 * 64 operations that Zen 3 can choose from are no more than two and a half such chains one after the other. */

/* The vectors of an array; what is not in a register is slow, so there are few. */
#ifndef RF_MOST_VECTORS
#define RF_MOST_VECTORS 4
#define RF_EACH_OF(n) RF_UNROLL for (int v = 0; v < (n); v++)
#endif

#if RF_REAL_IS_F32
#define RF_K(f32, f64) (f32)
#else
#define RF_K(f32, f64) (f64)
#endif

#define RF_LOG2E RF_K(0x1.715476p+0f, 0x1.71547652b82fep+0)
#define RF_LN2_HI RF_K(0x1.62e430p-1f, 0x1.62e42fefa39efp-1)
#define RF_LN2_LO RF_K(-0x1.05c610p-29f, 0x1.abc9e3b39803fp-56)

/* m P(s r) for powers of two m and |s|: the coefficients take the factors, which rounds nothing.
 * Pairs first, then Horner in r2 = r^2: the operations of Horner in r, half its latency. */
RF_INLINE v_t FN(exp_poly)(v_t r, v_t r2, REAL m, REAL s) {
#define RF_PAIR(m, c0, c1) v_fma(v_set1((m) * (c1) * s), r, v_set1((m) * (c0)))
    const REAL s2 = s * s;
#if RF_REAL_IS_F32
    v_t p = v_set1(m * s2 * s2 * 0x1.6abe02p-10f);
    p = v_fma(p, r2, RF_PAIR(m * s2, 0x1.555858p-5f, 0x1.123d86p-7f));
    p = v_fma(p, r2, RF_PAIR(m, 0x1.fffffcp-2f, 0x1.55548cp-3f));
#else
    const REAL s4 = s2 * s2;
    v_t p = RF_PAIR(m * s4 * s4, 0x1.28af18d2c86e2p-22, 0x1.adfb1d7992c7ep-26);
    p = v_fma(p, r2, RF_PAIR(m * s4 * s2, 0x1.a0199865e36f0p-16, 0x1.71deea9a79f84p-19));
    p = v_fma(p, r2, RF_PAIR(m * s4, 0x1.6c16c184b535dp-10, 0x1.a01a013d6b6a4p-13));
    p = v_fma(p, r2, RF_PAIR(m * s2, 0x1.5555555550607p-5, 0x1.1111111124d4fp-7));
    p = v_fma(p, r2, RF_PAIR(m, 0x1.000000000000ap-1, 0x1.5555555555503p-3));
#endif
    return p;
#undef RF_PAIR
}

/* e^x. Overflow gives infinity, underflow is gradual (or 0 under FTZ). NaN passes v_min and v_max
 * because it is their second argument. */
RF_INLINE v_t FN(exp)(v_t x) {
    const v_t magic = v_set1(V_POW2_MAGIC);
    /* E1: beyond these bounds the result is 0 or infinity, and stays so at them. */
    const v_t a = v_min(v_set1(RF_K(90.0f, 710.0)),
                        v_max(v_set1(RF_K(-105.0f, -746.0)), x));
    /* E2: n = rint(x / ln2), by adding 1.5 * 2^(p-1). */
    const v_t n = v_sub(v_fma(a, v_set1(RF_LOG2E), magic), magic);
    /* E3: r = x - n ln2. The first step is exact: the difference fits the significand. */
    v_t r = v_fnma(n, v_set1(RF_LN2_HI), a);
    r = v_fnma(n, v_set1(RF_LN2_LO), r);
    /* E4: y = e^r - 1. */
    const v_t r2 = v_mul(r, r);
    const v_t y = v_fma(r2, FN(exp_poly)(r, r2, RF_K(1.0f, 1.0), RF_K(1.0f, 1.0)), r);
    /* E5: 2^n (1 + y). */
    return v_scale(v_add(v_set1(RF_K(1.0f, 1.0)), y), n);
}

/* 1 / (1 + e^-x) = 2^n / (2^n + e^-r), which needs no overflow of e^-x to reach 0: 2^n becomes 0
 * where it leaves the range of normal numbers. */
RF_UNFOLD void FN(sigmoids)(const int count, v_t *x) {
    const v_t magic = v_set1(V_POW2_MAGIC), one = v_set1(RF_K(1.0f, 1.0));
    v_t a[RF_MOST_VECTORS], t[RF_MOST_VECTORS], n[RF_MOST_VECTORS], scale[RF_MOST_VECTORS];
    v_t r[RF_MOST_VECTORS], r2[RF_MOST_VECTORS], y[RF_MOST_VECTORS];
    /* S1: beyond these bounds the result is 0 or 1, and stays so at them. */
    RF_EACH_OF(count)
        a[v] = v_min(v_set1(RF_K(88.0f, 709.0)), v_max(v_set1(RF_K(-88.0f, -709.0)), x[v]));
    /* S2: n = rint(x / ln2), 2^n. */
    RF_EACH_OF(count) t[v] = v_fma(a[v], v_set1(RF_LOG2E), magic);
    RF_EACH_OF(count) n[v] = v_sub(t[v], magic), scale[v] = v_pow2_magic(t[v]);
    /* S3: r = x - n ln2. */
    RF_EACH_OF(count) r[v] = v_fnma(n[v], v_set1(RF_LN2_HI), a[v]);
    RF_EACH_OF(count) r[v] = v_fnma(n[v], v_set1(RF_LN2_LO), r[v]);
    /* S4: y = e^-r - 1 = r^2 P(-r) - r. */
    RF_EACH_OF(count) r2[v] = v_mul(r[v], r[v]);
    RF_EACH_OF(count) y[v] = FN(exp_poly)(r[v], r2[v], RF_K(1.0f, 1.0), RF_K(-1.0f, -1.0));
    RF_EACH_OF(count) y[v] = v_fms(r2[v], y[v], r[v]);
    /* S5: 1 + 2^n is exact but in the tail, and waits for nothing: only one addition follows y. (The
     * other way round, (1 + y) + 2^n, the tail gains and the middle loses: 2.02 ULP in float64.) */
    RF_EACH_OF(count) x[v] = v_div(scale[v], v_add(v_add(one, scale[v]), y[v]));
}
RF_INLINE v_t FN(sigmoid)(v_t x) {
    FN(sigmoids)(1, &x);
    return x;
}

/* |x| < 0.55: x + x t Q(t), t = x^2. Else 1 - 2 / (1 + e^2|x|): there the result is above 1/2, so the
 * error of the quotient counts half or less. */
RF_UNFOLD void FN(tanhs)(const int count, v_t *x) {
    const v_t magic = v_set1(V_POW2_MAGIC), half = v_set1(RF_K(0.5f, 0.5)), one = v_set1(RF_K(1.0f, 1.0));
    v_t a[RF_MOST_VECTORS], b[RF_MOST_VECTORS], u[RF_MOST_VECTORS], n[RF_MOST_VECTORS];
    v_t scale[RF_MOST_VECTORS], r[RF_MOST_VECTORS], r2[RF_MOST_VECTORS], h[RF_MOST_VECTORS];
    v_t d[RF_MOST_VECTORS], large[RF_MOST_VECTORS], t[RF_MOST_VECTORS], q[RF_MOST_VECTORS];
    /* T1: tanh is odd; at the bound it is 1 in both dtypes. */
    RF_EACH_OF(count) a[v] = v_abs(x[v]);
    RF_EACH_OF(count) b[v] = v_min(v_set1(RF_K(20.0f, 20.0)), a[v]);
    /* T2: n = rint(2 a / ln2), 2^n. */
    RF_EACH_OF(count) u[v] = v_fma(b[v], v_set1(2 * RF_LOG2E), magic);
    RF_EACH_OF(count) n[v] = v_sub(u[v], magic), scale[v] = v_pow2_magic(u[v]);
    /* T3: r = a - n ln2 / 2. */
    RF_EACH_OF(count) r[v] = v_fnma(n[v], v_set1(RF_LN2_HI / 2), b[v]);
    RF_EACH_OF(count) r[v] = v_fnma(n[v], v_set1(RF_LN2_LO / 2), r[v]);
    /* T4: h = (e^2r - 1) / 2 = r + 2 r^2 P(2r). */
    RF_EACH_OF(count) r2[v] = v_mul(r[v], r[v]);
    RF_EACH_OF(count) h[v] = FN(exp_poly)(r[v], r2[v], RF_K(2.0f, 2.0), RF_K(2.0f, 2.0));
    RF_EACH_OF(count) h[v] = v_fma(r2[v], h[v], r[v]);
    /* T5: (1 + e^2a) / 2 = (1 + 2^n) / 2 + 2^n h; the first sum is exact up to 2^p. */
    RF_EACH_OF(count) d[v] = v_fma(scale[v], h[v], v_fma(half, scale[v], half));
    RF_EACH_OF(count) large[v] = v_div(one, d[v]);
    /* T6: the odd polynomial. */
    RF_EACH_OF(count) t[v] = v_mul(a[v], a[v]);
#if RF_REAL_IS_F32
    RF_EACH_OF(count) q[v] = v_fma(v_set1(0x1.0d5182p-6f), t[v], v_set1(-0x1.af7d38p-5f));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(0x1.10cefcp-3f));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(-0x1.555452p-2f));
#else
    RF_EACH_OF(count) q[v] = v_fma(v_set1(0x1.ac027be90d197p-15), t[v], v_set1(-0x1.b90a553113e50p-13));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(0x1.2fa2a47ed2a8ap-11));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(-0x1.7cf3c2f9be0cdp-10));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(0x1.d6c61e56ece0cp-9));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(-0x1.226ddd4e132bcp-7));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(0x1.664f45c3217ebp-6));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(-0x1.ba1ba1ad73698p-5));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(0x1.11111111029b0p-3));
    RF_EACH_OF(count) q[v] = v_fma(q[v], t[v], v_set1(-0x1.555555555549ep-2));
#endif
    RF_EACH_OF(count) q[v] = v_fma(v_mul(a[v], t[v]), q[v], a[v]);
    /* T7: NaN takes the branch that carries it on. */
    RF_EACH_OF(count) large[v] = v_sub(one, large[v]);
    RF_EACH_OF(count)
        x[v] = v_withsign(v_select(v_lt(a[v], v_set1(RF_K(0.55f, 0.55))), q[v], large[v]), x[v]);
}
RF_INLINE v_t FN(tanh)(v_t x) {
    FN(tanhs)(1, &x);
    return x;
}

/* log(1 + f) - f for sqrt(1/2) - 1 <= f <= 1: with s = f / (2 + f) and z = s^2,
 * log(1 + f) = 2 atanh(s) = 2 s + s R(z), and 2 s = f - s f turns the sum into f - f^2/2 + s (f^2/2 + R). */
RF_INLINE v_t FN(log1p_tail)(v_t f) {
    /* L1 */
    const v_t s = v_div(f, v_add(v_set1(RF_K(2.0f, 2.0)), f));
    const v_t z = v_mul(s, s);
#if RF_REAL_IS_F32
    v_t q = v_fma(v_set1(0x1.1eca3ep-2f), z, v_set1(0x1.1ec03cp-2f));
    q = v_fma(q, z, v_set1(0x1.99d1ccp-2f));
    q = v_fma(q, z, v_set1(0x1.555502p-1f));
#else
    v_t q = v_fma(v_set1(0x1.5e3952ee323a0p-3), z, v_set1(0x1.546d5c9a3da0ap-4));
    q = v_fma(q, z, v_set1(0x1.f00382230fb1ap-4));
    q = v_fma(q, z, v_set1(0x1.106682d1fa6b6p-3));
    q = v_fma(q, z, v_set1(0x1.3b1de237729dcp-3));
    q = v_fma(q, z, v_set1(0x1.745cb40340190p-3));
    q = v_fma(q, z, v_set1(0x1.c71c741c605aap-3));
    q = v_fma(q, z, v_set1(0x1.249249208c76ep-2));
    q = v_fma(q, z, v_set1(0x1.99999999a074ep-2));
    q = v_fma(q, z, v_set1(0x1.5555555555535p-1));
#endif
    /* L2 */
    const v_t half_f2 = v_mul(v_mul(v_set1(RF_K(0.5f, 0.5)), f), f);
    return v_fms(s, v_fma(q, z, half_f2), half_f2);
}

/* log(1 + e) for 0 <= e <= 1. */
RF_INLINE v_t FN(log1p)(v_t e) { return v_add(e, FN(log1p_tail)(e)); }

/* log(s) for s >= 1. */
RF_INLINE REAL FN(log_pos)(REAL x) {
    const v_t s = v_set1(x), one = v_set1(RF_K(1.0f, 1.0));
    /* L3: s = 2^k m, sqrt(1/2) <= m < sqrt(2). */
    v_t k = v_ilog2(s), m = v_mantissa(s);
    const vm_t low = v_lt(m, v_set1(RF_K(0x1.6a09e6p+0f, 0x1.6a09e667f3bcdp+0)));
    k = v_select(low, k, v_add(k, one));
    m = v_select(low, m, v_mul(v_set1(RF_K(0.5f, 0.5)), m));
    /* L4: k ln2 + log m, the small terms first. */
    const v_t f = v_sub(m, one);
    const v_t tail = v_fma(k, v_set1(RF_LN2_LO), FN(log1p_tail)(f));
    const v_t log = v_fma(k, v_set1(RF_LN2_HI), v_add(f, tail));
    /* L5: infinity and NaN are their own logarithms. */
    return v_first(v_select(v_lt(s, v_set1((REAL)__builtin_inff())), log, s));
}

#undef RF_K
#undef RF_LOG2E
#undef RF_LN2_HI
#undef RF_LN2_LO
