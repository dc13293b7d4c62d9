/* Fused multiply-adds on registers alone: what no layer can be faster than. bench/grid.py compiles
 * it for the CPU at hand. */

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
