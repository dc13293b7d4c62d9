/* Which instruction sets this CPU (and its operating system) has, and the floating-point mode. */
#include "rnnfast.h"
#include "cpu.h"

int rf_looks_ahead = 0;

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#if defined(__GNUC__) || defined(__clang__)
#include <cpuid.h>

static int first_cache(void) {
    static const unsigned leaves[] = {4, 0x8000001D}; /* Intel's, AMD's */
    for (int l = 0; l < 2; l++)
        for (unsigned n = 0, a, b, c, d; __get_cpuid_count(leaves[l], n, &a, &b, &c, &d) && (a & 31); n++)
            if ((a & 31) == 1 && (a >> 5 & 7) == 1) /* data, first level: ways, partitions, line, sets */
                return (int)(((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) * (c + 1));
    return 0;
}
#else
static int first_cache(void) { return 0; }
#endif
void rf_cpu_look(void) { rf_looks_ahead = first_cache() >= 48 << 10; }

int rf_cpu_has_fma(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("fma") != 0;
}
int rf_cpu_has_avx2(void) {
    return rf_cpu_has_fma() && __builtin_cpu_supports("avx2");
}
int rf_cpu_has_avx512(void) {
    return rf_cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

enum { FTZ_DAZ = 0x8040 };

rf_fpmode rf_ftz_enter(void) {
    unsigned before = _mm_getcsr();
    if ((before & FTZ_DAZ) != FTZ_DAZ) _mm_setcsr(before | FTZ_DAZ);
    return before;
}
rf_fpmode rf_ftz_keep(void) {
    unsigned before = _mm_getcsr();
    if (before & FTZ_DAZ) _mm_setcsr(before & ~(unsigned)FTZ_DAZ);
    return before;
}
/* Only the two mode bits go back: the exception flags raised meanwhile are the caller's to see,
 * as after any arithmetic. */
void rf_ftz_leave(rf_fpmode before) {
    unsigned now = _mm_getcsr();
    unsigned want = (now & ~(unsigned)FTZ_DAZ) | ((unsigned)before & FTZ_DAZ);
    if (now != want) _mm_setcsr(want);
}

rf_fpmode rf_fp_mode(void) { return _mm_getcsr(); }
void rf_fp_adopt(rf_fpmode mode) {
    const unsigned taken = FTZ_DAZ | _MM_ROUND_MASK, now = _mm_getcsr();
    const unsigned want = (now & ~taken) | ((unsigned)mode & taken);
    if (now != want) _mm_setcsr(want);
}

#elif defined(__aarch64__)

int rf_cpu_has_fma(void) { return 0; } /* the scalar build has it already */
int rf_cpu_has_avx2(void) { return 0; }
int rf_cpu_has_avx512(void) { return 0; }
void rf_cpu_look(void) {}

static const uint64_t FZ = (uint64_t)1 << 24;

static uint64_t get_fpcr(void) {
    uint64_t r;
    __asm__ volatile("mrs %0, fpcr" : "=r"(r));
    return r;
}
static void set_fpcr(uint64_t r) { __asm__ volatile("msr fpcr, %0" : : "r"(r)); }

rf_fpmode rf_ftz_enter(void) {
    uint64_t before = get_fpcr();
    if (!(before & FZ)) set_fpcr(before | FZ);
    return before;
}
rf_fpmode rf_ftz_keep(void) {
    uint64_t before = get_fpcr();
    if (before & FZ) set_fpcr(before & ~FZ);
    return before;
}
void rf_ftz_leave(rf_fpmode before) {
    uint64_t now = get_fpcr(), want = (now & ~FZ) | (before & FZ);
    if (now != want) set_fpcr(want);
}

rf_fpmode rf_fp_mode(void) { return get_fpcr(); }
void rf_fp_adopt(rf_fpmode mode) {
    const uint64_t taken = FZ | (uint64_t)3 << 22; /* and the rounding */
    uint64_t now = get_fpcr(), want = (now & ~taken) | (mode & taken);
    if (now != want) set_fpcr(want);
}

#else

int rf_cpu_has_fma(void) { return 0; }
int rf_cpu_has_avx2(void) { return 0; }
int rf_cpu_has_avx512(void) { return 0; }
void rf_cpu_look(void) {}
rf_fpmode rf_ftz_enter(void) { return 0; }
rf_fpmode rf_ftz_keep(void) { return 0; }
void rf_ftz_leave(rf_fpmode before) { (void)before; }
rf_fpmode rf_fp_mode(void) { return 0; }
void rf_fp_adopt(rf_fpmode mode) { (void)mode; }

#endif
