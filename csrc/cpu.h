#ifndef RNNFAST_CPU_H
#define RNNFAST_CPU_H

int rf_cpu_has_fma(void);
int rf_cpu_has_avx2(void);
int rf_cpu_has_avx512(void);

/* Whether a core has so many operations under way that it mostly reads what it needs in time by itself:
 * told by a first data cache of 48 kB or more (Intel's since Ice Lake, AMD's since Zen 5). 0 until
 * rf_cpu_look has been called. */
extern int rf_looks_ahead;
void rf_cpu_look(void);

/* The ISAs other than scalar are compiled where the compiler can open a target region: GCC and
 * Clang on x86. */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define RF_X86_REGIONS 1
#else
#define RF_X86_REGIONS 0
#endif

#endif
