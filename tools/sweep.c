/* Every float32 through exp, tanh, sigmoid and log1p, on every instruction set this CPU runs, in
 * both denormal modes:
 *
 *   - all instruction sets give the same bits;
 *   - the largest error in ULP against our own float64 function is within bounds;
 *   - exp, tanh and sigmoid never decrease, tanh is odd, NaN stays NaN and nothing else becomes one.
 *
 * Then 2^28 random float64 arguments through each: the same bits, and the largest error against the
 * C library's long double function (meaningful where long double is wider than double).
 *
 * cc -O3 -std=c11 -ffp-contract=off -fno-math-errno -Icsrc tools/sweep.c csrc/ *.c -lm -o sweep
 * ./sweep [--hardware] [function ...]      exit status 1 when one of these does not hold
 *
 * --hardware leaves out the baseline with its software fma, which takes ten times as long as the
 * others together.
 */
#include "rnnfast.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The float64 function is itself checked below, to 2^-28 of a float32 ULP; the C library's would
 * take longer than all the rest. */

enum { BLOCK = 1 << 16 };
static int first = 0; /* 1: without the software fma */
typedef void kernel(ptrdiff_t n, const float *x, float *y);
typedef void kernel64(ptrdiff_t n, const double *x, double *y);

static long double exp_long(long double x) { return expl(x); }
static long double tanh_long(long double x) { return tanhl(x); }
static long double sigmoid_long(long double x) { return 1.0L / (1.0L + expl(-x)); }
static long double log1p_long(long double x) { return log1pl(x); }

static kernel *find(const rf_table_f32 *table, int f) {
    switch (f) {
    case 0: return table->exp;
    case 1: return table->tanh;
    case 2: return table->sigmoid;
    default: return table->log1p;
    }
}

static kernel64 *find64(const rf_table_f64 *table, int f) {
    switch (f) {
    case 0: return table->exp;
    case 1: return table->tanh;
    case 2: return table->sigmoid;
    default: return table->log1p;
    }
}

static const struct {
    const char *name;
    long double (*exact_long)(long double);
    int monotone, odd;
    uint32_t last[2]; /* largest positive and negative argument (infinity; nothing) */
    double from, to;  /* where float64 is sampled: the results are normal numbers */
    int has_tail;     /* results below an ULP of 1 are judged apart: TAIL_BOUND */
} functions[] = {
    {"exp", exp_long, 1, 0, {0x7f800000u, 0xff800000u}, -708.39, 709.78, 0},
    {"tanh", tanh_long, 1, 1, {0x7f800000u, 0xff800000u}, -20.0, 20.0, 0},
    {"sigmoid", sigmoid_long, 1, 0, {0x7f800000u, 0xff800000u}, -708.39, 40.0, 1},
    {"log1p", log1p_long, 0, 0, {0x3f800000u, 0x80000000u}, 0.0, 1.0, 0},
};
/* ULP, wherever the exact result is a normal number. */
static const double BOUND = 2.0, TAIL_BOUND = 3.0;

typedef struct {
    double ulp, at;
} worst;

static void note(worst *w, double ulp, double x) {
    if (ulp > w->ulp) w->ulp = ulp, w->at = x;
}

static void print_worst(const char *what, const worst *w) {
    printf("  %-28s %.4f ULP at %.17g (%a)\n", what, w->ulp, w->at, w->at);
}

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

/* The distance of neighbouring float32 numbers in the binade of a normal x. */
static double ulp32(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    u = (u & 0x7ff0000000000000u) - ((uint64_t)23 << 52);
    memcpy(&x, &u, sizeof x);
    return x;
}

/* What a kernel makes of a block, in one denormal mode. */
static void run(kernel *k, int flush, const float *x, float *y) {
    rf_fpmode before = flush ? rf_ftz_enter() : rf_ftz_keep();
    k(BLOCK, x, y);
    rf_ftz_leave(before);
}

static int sweep(int f) {
    static float x[BLOCK], y[2][BLOCK], other[BLOCK];
    static double wide[BLOCK];
    const int best = rf_isa_best();
    worst all = {0, 0}, tail = {0, 0};
    double below_normal = 0;
    long long differ = 0, falls = 0, not_odd = 0, bad_nan = 0;

    for (uint32_t sign = 0; sign < 2; sign++) {
        float previous[2] = {0, 0};
        int started = 0;
        for (uint32_t start = 0; start < 0x80000000u; start += BLOCK) {
            for (uint32_t i = 0; i < BLOCK; i++) x[i] = from_bits(sign << 31 | (start + i));
            for (int flush = 0; flush < 2; flush++) {
                run(find(rf_isa_f32(best), f), flush, x, y[flush]);
                for (int k = first; k < rf_isa_count(); k++) {
                    if (k == best || !rf_isa_runs(k)) continue;
                    run(find(rf_isa_f32(k), f), flush, x, other);
                    for (int i = 0; i < BLOCK; i++)
                        differ += to_bits(other[i]) != to_bits(y[flush][i]) &&
                                  !(isnan(other[i]) && isnan(y[flush][i]));
                }
            }
            for (int i = 0; i < BLOCK; i++) wide[i] = (double)x[i];
            const rf_fpmode before = rf_ftz_keep();
            find64(rf_isa_f64(best), f)(BLOCK, wide, wide);
            rf_ftz_leave(before);
            for (int i = 0; i < BLOCK; i++) {
                if (isnan(x[i])) {
                    bad_nan += !isnan(y[0][i]) || !isnan(y[1][i]);
                    continue;
                }
                if (to_bits(x[i]) > functions[f].last[sign]) continue;
                bad_nan += isnan(y[0][i]) || isnan(y[1][i]);
                const double exact = wide[i], error = fabs((double)y[0][i] - exact);
                if (fabs(exact) >= 0x1p+128) {
                    bad_nan += isfinite(y[0][i]) && fabs(exact) > 0x1p+128 * (1 + 0x1p-22);
                } else if (fabs(exact) < 0x1p-126) {
                    if (error > below_normal) below_normal = error;
                } else {
                    note(functions[f].has_tail && exact < 0x1p-23 ? &tail : &all,
                         error / ulp32(exact), (double)x[i]);
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
    printf("%s, every float32\n", functions[f].name);
    print_worst("worst", &all);
    if (functions[f].has_tail) print_worst("worst below 2^-23", &tail);
    printf("  %-28s %.3g absolute\n", "worst below 2^-126", below_normal);
    printf("  differing bits %lld, decreases %lld, not odd %lld, wrong NaN %lld\n", differ, falls,
           not_odd, bad_nan);
    fflush(stdout);
    return all.ulp > BOUND || tail.ulp > TAIL_BOUND || differ || falls || not_odd || bad_nan;
}

/* SplitMix64 (Steele, Lea & Flood 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Half of the arguments uniform over the interval, half with a uniform exponent from 2^-60 up. */
static int sample64(int f) {
    static double x[BLOCK], y[BLOCK], other[BLOCK];
    const double from = functions[f].from, to = functions[f].to;
    const int best = rf_isa_best();
    uint64_t state = 1;
    worst all = {0, 0}, tail = {0, 0};
    long long differ = 0;
    for (int block = 0; block < 1 << 12; block++) {
        for (int i = 0; i < BLOCK; i++) {
            const double u = ldexp((double)(next_random(&state) >> 11), -53);
            const uint64_t r = next_random(&state);
            if (i & 1) {
                x[i] = from + u * (to - from);
            } else {
                x[i] = ldexp(1.0 + u, (int)(r >> 8 & 0xff) % 70 - 60);
                if (r & 1) x[i] = -x[i];
                if (!(x[i] >= from && x[i] <= to)) x[i] = from + u * (to - from);
            }
        }
        const rf_fpmode before = rf_ftz_keep();
        find64(rf_isa_f64(best), f)(BLOCK, x, y);
        for (int k = first; k < rf_isa_count(); k++) {
            if (k == best || !rf_isa_runs(k)) continue;
            find64(rf_isa_f64(k), f)(BLOCK, x, other);
            differ += memcmp(y, other, sizeof y) != 0;
        }
        rf_ftz_leave(before);
        for (int i = 0; i < BLOCK; i++) {
            const long double exact = functions[f].exact_long((long double)x[i]);
            int e;
            frexpl(exact, &e);
            note(functions[f].has_tail && exact < 0x1p-52L ? &tail : &all,
                 (double)ldexpl(fabsl((long double)y[i] - exact), 53 - e), x[i]);
        }
    }
    printf("%s, 2^28 float64\n", functions[f].name);
    print_worst("worst", &all);
    if (functions[f].has_tail) print_worst("worst below 2^-52", &tail);
    printf("  differing blocks %lld\n", differ);
    fflush(stdout);
    return (LDBL_MANT_DIG >= 64 && (all.ulp > BOUND || tail.ulp > TAIL_BOUND)) || differ;
}

int main(int argc, char **argv) {
    int failed = 0;
    if (argc > 1 && !strcmp(argv[1], "--hardware")) {
        first = rf_isa_best() > 0;
        argc--, argv++;
    }
    printf("instruction sets:");
    for (int k = first; k < rf_isa_count(); k++)
        if (rf_isa_runs(k)) printf(" %s", rf_isa_name(k));
    printf("\n");
    for (int f = 0; f < (int)(sizeof functions / sizeof functions[0]); f++) {
        int wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], functions[f].name);
        if (wanted) failed |= sweep(f) | sample64(f);
    }
    return failed;
}
