/* Every float32 through exp, tanh, sigmoid and log1p, on every instruction set this CPU runs, in
 * both denormal modes:
 *
 *   - all instruction sets give the same bits;
 *   - the largest error in ULP against the C library's float64 function;
 *   - exp, tanh and sigmoid never decrease, tanh is odd, NaN stays NaN and nothing else becomes one.
 *
 * cc -O3 -std=c11 -ffp-contract=off -fno-math-errno -Icsrc tools/sweep.c csrc/ *.c -lm -o sweep
 * ./sweep [function ...]      exit status 1 when one of these does not hold
 */
#include "rnnfast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 1 << 16 };
typedef void kernel(ptrdiff_t n, const float *x, float *y);

static double exp_exact(double x) { return exp(x); }
static double tanh_exact(double x) { return tanh(x); }
static double sigmoid_exact(double x) { return 1.0 / (1.0 + exp(-x)); }
static double log1p_exact(double x) { return log1p(x); }

static kernel *find(const rf_table_f32 *table, int f) {
    switch (f) {
    case 0: return table->exp;
    case 1: return table->tanh;
    case 2: return table->sigmoid;
    default: return table->log1p;
    }
}

static const struct {
    const char *name;
    double (*exact)(double);
    int monotone, odd;
    uint32_t last[2]; /* largest positive and negative argument (infinity; nothing) */
} functions[] = {
    {"exp", exp_exact, 1, 0, {0x7f800000u, 0xff800000u}},
    {"tanh", tanh_exact, 1, 1, {0x7f800000u, 0xff800000u}},
    {"sigmoid", sigmoid_exact, 1, 0, {0x7f800000u, 0xff800000u}},
    {"log1p", log1p_exact, 0, 0, {0x3f800000u, 0x80000000u}},
};
static const double BOUND = 2.0; /* ULP, wherever the exact result is a normal number */

static float from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint32_t to_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* What a kernel makes of a block, in one denormal mode. */
static void run(kernel *k, int flush, const float *x, float *y) {
    rf_fpmode before = flush ? rf_ftz_enter() : rf_ftz_keep();
    k(BLOCK, x, y);
    rf_ftz_leave(before);
}

static int sweep(int f) {
    static float x[BLOCK], y[2][BLOCK], other[BLOCK];
    const int best = rf_isa_best();
    double worst = 0, worst_at = 0, worst_tail = 0;
    long long differ = 0, falls = 0, not_odd = 0, bad_nan = 0;

    for (uint32_t sign = 0; sign < 2; sign++) {
        float previous[2] = {0, 0};
        int started = 0;
        for (uint32_t start = 0; start < 0x80000000u; start += BLOCK) {
            for (uint32_t i = 0; i < BLOCK; i++) x[i] = from_bits(sign << 31 | (start + i));
            for (int flush = 0; flush < 2; flush++) {
                run(find(rf_isa_f32(best), f), flush, x, y[flush]);
                for (int k = 0; k < rf_isa_count(); k++) {
                    if (k == best || !rf_isa_runs(k)) continue;
                    run(find(rf_isa_f32(k), f), flush, x, other);
                    for (int i = 0; i < BLOCK; i++)
                        differ += to_bits(other[i]) != to_bits(y[flush][i]) &&
                                  !(isnan(other[i]) && isnan(y[flush][i]));
                }
            }
            for (int i = 0; i < BLOCK; i++) {
                if (isnan(x[i])) {
                    bad_nan += !isnan(y[0][i]) || !isnan(y[1][i]);
                    continue;
                }
                if (to_bits(x[i]) > functions[f].last[sign]) continue;
                bad_nan += isnan(y[0][i]) || isnan(y[1][i]);
                const double exact = functions[f].exact((double)x[i]);
                const double error = fabs((double)y[0][i] - exact);
                int e;
                frexp(exact, &e);
                if (e > 128) {
                    bad_nan += isfinite(y[0][i]) && error > ldexp(BOUND, 128 - 24);
                } else if (fabs(exact) < 0x1p-126) {
                    if (error > worst_tail) worst_tail = error;
                } else if (ldexp(error, 24 - e) > worst) {
                    worst = ldexp(error, 24 - e);
                    worst_at = (double)x[i];
                }
                /* Upwards for positive arguments, downwards for negative ones. */
                for (int flush = 0; flush < 2 && functions[f].monotone; flush++) {
                    const float v = y[flush][i];
                    falls += started && (sign ? v > previous[flush] : v < previous[flush]);
                    previous[flush] = v;
                }
                started = 1;
            }
            if (functions[f].odd && !sign) {
                for (int flush = 0; flush < 2; flush++) {
                    static float negative[BLOCK];
                    for (int i = 0; i < BLOCK; i++) negative[i] = -x[i];
                    run(find(rf_isa_f32(best), f), flush, negative, other);
                    for (int i = 0; i < BLOCK; i++)
                        not_odd += !isnan(x[i]) &&
                                   to_bits(other[i]) != (to_bits(y[flush][i]) ^ 0x80000000u);
                }
            }
        }
    }
    printf("%-8s worst %.4f ULP at x = %.9g (%a); where the result is below 2^-126: %.3g absolute\n"
           "         differing bits %lld, decreases %lld, not odd %lld, wrong NaN %lld\n",
           functions[f].name, worst, worst_at, worst_at, worst_tail, differ, falls, not_odd, bad_nan);
    fflush(stdout);
    return worst > BOUND || differ || falls || not_odd || bad_nan;
}

int main(int argc, char **argv) {
    int failed = 0;
    printf("instruction sets:");
    for (int k = 0; k < rf_isa_count(); k++)
        if (rf_isa_runs(k)) printf(" %s", rf_isa_name(k));
    printf("\n");
    for (int f = 0; f < (int)(sizeof functions / sizeof functions[0]); f++) {
        int wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], functions[f].name);
        if (wanted) failed |= sweep(f);
    }
    return failed;
}
