/* Which tables exist and which this CPU can run. */
#include "cpu.h"
#include "rnnfast.h"
#include "tables.h"

static _Thread_local _Alignas(64) union {
    float f32[RF_SCRATCH / sizeof(float)];
    double f64[RF_SCRATCH / sizeof(double)];
} scratch;

void *rf_scratch(void) { return &scratch; }

static int always(void) { return 1; }

static const struct {
    int (*runs)(void);
    const rf_table_f32 *f32;
    const rf_table_f64 *f64;
} isas[] = {
    {always, &rf_table_f32_scalar, &rf_table_f64_scalar},
#if RF_X86_REGIONS
    {rf_cpu_has_fma, &rf_table_f32_fma, &rf_table_f64_fma},
    {rf_cpu_has_avx2, &rf_table_f32_avx2, &rf_table_f64_avx2},
    {rf_cpu_has_avx512, &rf_table_f32_avx512, &rf_table_f64_avx512},
#endif
};
enum { COUNT = sizeof isas / sizeof isas[0] };

int rf_isa_count(void) { return COUNT; }
const char *rf_isa_name(int k) { return isas[k].f32->isa; }
int rf_isa_runs(int k) { return isas[k].runs(); }
const rf_table_f32 *rf_isa_f32(int k) { return isas[k].f32; }
const rf_table_f64 *rf_isa_f64(int k) { return isas[k].f64; }
int rf_isa_best(void) {
    int k = COUNT - 1;
    while (!isas[k].runs()) k--;
    return k;
}

static const char *const kernels[] = {
#define KERNEL(result, name, arguments) #name,
#include "kernels.inc"
#undef KERNEL
};

int rf_kernel_count(void) { return (int)(sizeof kernels / sizeof kernels[0]); }
const char *rf_kernel_name(int k) { return kernels[k]; }
