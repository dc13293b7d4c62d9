/* v_scale for the ISAs without a scaling instruction: y * 2^n in two steps, because 2^n itself
 * leaves the exponent range where y * 2^n does not. The first product is exact for 1/2 < y < 2 and
 * |n| <= 2 * (largest exponent), so only the second rounds, as the instruction does. */
RF_INLINE v_t FN(v_scale)(v_t y, v_t n) {
    const v_t magic = v_set1(V_POW2_MAGIC);
    const v_t t = v_fma(n, v_set1((REAL)0.5), magic);
    const v_t first = v_sub(t, magic);
    return v_mul(v_mul(y, v_pow2_magic(t)), v_pow2(v_sub(n, first)));
}
