#ifndef RNNFAST_CPU_H
#define RNNFAST_CPU_H

int rf_cpu_has_fma(void);
int rf_cpu_has_avx2(void);
int rf_cpu_has_avx512(void);
/* Bytes of a core's first data cache, 0 where the CPU does not say. */
int rf_cpu_first_cache(void);

/* The ISAs other than scalar are compiled where the compiler can open a target region: GCC and
 * Clang on x86. */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define RF_X86_REGIONS 1
#else
#define RF_X86_REGIONS 0
#endif

#endif
