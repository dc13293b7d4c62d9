/* What the rest of the package sees of csrc/: option structs, the table of kernels of each dtype,
 * the choice of instruction set, and the floating-point mode. */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>
#include <stdint.h>

/* An activation. alpha, beta: RF_HARD_SIGMOID is min(max(alpha x + beta, 0), 1). Every derivative
 * is a function of the output, so nothing else need be stored. */
enum { RF_SIGMOID, RF_TANH, RF_RELU, RF_HARD_SIGMOID, RF_IDENTITY };
typedef struct {
    int kind;
    double alpha, beta;
} rf_act;

typedef struct {
    rf_act gate;
    int coupled;     /* f = 1 - i, and the stacked gates are i g o */
    double clip;     /* c is clamped to [-clip, clip]; <= 0: not at all */
} rf_lstm;

typedef struct {
    const char *isa;
#define KERNEL(result, name, arguments) result (*name) arguments;
#define REAL float
#include "kernels.inc"
#undef REAL
#undef KERNEL
} rf_table_f32;

typedef struct {
    const char *isa;
#define KERNEL(result, name, arguments) result (*name) arguments;
#define REAL double
#include "kernels.inc"
#undef REAL
#undef KERNEL
} rf_table_f64;

/* ISAs from the plainest to the widest. rf_isa_count() of them were compiled in;
 * rf_isa_runs(k) says whether this CPU can run number k. */
int rf_isa_count(void);
const char *rf_isa_name(int k);
int rf_isa_runs(int k);
const rf_table_f32 *rf_isa_f32(int k);
const rf_table_f64 *rf_isa_f64(int k);
int rf_isa_best(void);

int rf_kernel_count(void);
const char *rf_kernel_name(int k);

/* RF_SCRATCH bytes of the calling thread's own, aligned to 64, where a product copies blocks of its
 * operands: not on the stack, which may be as small as 128 KiB. */
enum { RF_SCRATCH = 386 << 10 };
void *rf_scratch(void);

#define rf_fetch(p) __builtin_prefetch(p) /* a line that is read soon */

/* Flush-to-zero and denormals-are-zero for the calling thread; leave() puts back what enter() or
 * keep() found. keep() is for calls into other libraries: gradual underflow inside. */
typedef uint64_t rf_fpmode;
rf_fpmode rf_ftz_enter(void);
rf_fpmode rf_ftz_keep(void);
void rf_ftz_leave(rf_fpmode before);

/* The calling thread's mode, denormals and rounding; and its adoption by another thread. */
rf_fpmode rf_fp_mode(void);
void rf_fp_adopt(rf_fpmode mode);

#endif
