/* The two limits of a layer: fused multiply-adds on registers alone, and reading from a cache.
 * bench/grid.py compiles this for the CPU at hand. */

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif

typedef float vec __attribute__((vector_size(BYTES)));

/* 12 chains: more than latency times throughput of the CPUs there are, and with two factors no more
 * than 14 of 16 registers. */
enum { CHAINS = 12 };

/* `rounds` fma on each chain; the number of floating-point operations. */
double rf_peak(long rounds, float factor, float addend, float *result) {
    const vec m = (vec){0} + factor, a = (vec){0} + addend;
    vec x[CHAINS];
    for (int k = 0; k < CHAINS; k++) x[k] = a * (float)k;
    for (long n = 0; n < rounds; n++)
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) x[k] = x[k] * m + a;
    vec sum = x[0];
    for (int k = 1; k < CHAINS; k++) sum += x[k];
    *result = sum[0];
    return 2.0 * (double)rounds * CHAINS * (double)(BYTES / sizeof(float));
}

/* The sum of n floats (a multiple of 256), `rounds` times: nothing but loads and additions. */
double rf_read(long rounds, const float *x, long n, float *result) {
    vec sum[8] = {{0}};
    for (long k = 0; k < rounds; k++)
        for (const float *p = x; p < x + n; p += 8 * BYTES / sizeof(float))
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++) {
                vec y;
                __builtin_memcpy(&y, p + v * (int)(BYTES / sizeof(float)), BYTES);
                sum[v] += y;
            }
    for (int v = 1; v < 8; v++) sum[0] += sum[v];
    *result = sum[0][0];
    return (double)rounds * (double)n * sizeof(float);
}
