/* The bodies of all kernels, once. Included per dtype and per ISA after a simd/vec_*.h; written in
 * its verbs only, so every instantiation does the same operations on each element in the same
 * order and gives the same bits. Labels (F1.., B1..) as in docs/math.md and reference/. */

/* RF_UNFOLD: a function whose first arguments are constants after inlining. Under a sanitizer, which
 * instruments every access, it is compiled once for all of them instead, or a file takes minutes. */
#ifndef RF_UNROLL
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RF_UNFOLD static __attribute__((noinline, unused))
#define RF_UNROLL
#define RF_TWICE
#else
#define RF_UNFOLD RF_INLINE
#if defined(__clang__)
#define RF_UNROLL _Pragma("unroll")
#define RF_TWICE _Pragma("unroll 2")
#else
#define RF_UNROLL _Pragma("GCC unroll 16")
#define RF_TWICE _Pragma("GCC unroll 2") /* the loops along a chain: pointers move half as often */
#endif
#endif
#endif

#include "elementary_tmpl.h"

#define KN(name) FN(k_##name)

/* Row reductions use LANES interleaved partial sums on every ISA, whatever its vector length:
 * lane l sums elements l, l + LANES, ...; then halves are added until one is left. */
#ifndef RF_LANES
#define RF_LANES 16
#endif
enum { FN(accs) = RF_LANES / VL };

/* Columns of a packed matrix lie in panels of so many, the units of a step's weights in tiles with
 * all gates, in both dtypes. RF_SHARED: too few registers for all gates of more than a few rows
 * (step_tmpl.h). Then columns are read 16 at a time, so 16 make a panel and a tile has a panel for each
 * gate: in wider ones 16 columns of all k would meet in a part of the first cache's sets. */
#ifndef RF_TILE
#define RF_SHARED (VL > 1 && RF_REGISTERS == 16)
#define RF_PANEL (RF_SHARED ? 16 : 64)
#define RF_TILE 16
#if defined(__clang__)
#define RF_ONCE __attribute__((noinline))
#else
#define RF_ONCE __attribute__((noinline, noclone))
#endif
#endif

/* Elements of a cache line, and prefetches into the first and the second cache: for tiles of more than
 * a few rows, which have instructions to spare. */
#define RF_PAIRS (VL == 16)
#if RF_REGISTERS != 32
#define v_halves(p, q) v_load(p) /* not used */
#define v_store_lower(p, v) v_store((p), (v))
#define v_store_upper(p, v) v_store((p), (v))
#endif
#define RF_LINE ((ptrdiff_t)(64 / sizeof(REAL)))
#define RF_FEW_ROWS (VL == 1 ? 6 : RF_REGISTERS == 32 ? 3 : 2)
#ifndef RF_FETCH_NEAR
#define RF_FETCH_NEAR(p) __builtin_prefetch((p), 0, 3)
#define RF_FETCH_FAR(p) __builtin_prefetch((p), 0, 2)
#endif

/* EACH runs its body for j = 0, VL, 2 VL, ... with LD/ST of whole vectors, then once more for a
 * tail of w < VL elements. `full` is a compile-time constant in both copies. */
#ifndef EACH
#define EACH(n, ...)                                   \
    do {                                               \
        ptrdiff_t j = 0;                               \
        for (; j + VL <= (n); j += VL) {               \
            enum { full = 1 };                         \
            const ptrdiff_t w = VL;                    \
            (void)w;                                   \
            __VA_ARGS__                                \
        }                                              \
        if (j < (n)) {                                 \
            enum { full = 0 };                         \
            const ptrdiff_t w = (n) - j;               \
            __VA_ARGS__                                \
        }                                              \
    } while (0)
/* The same, but `pairs`, a constant, with two vectors at a time first: NV of them, of which the last has w
 * elements. */
#define EACH_FEW(pairs, n, ...)                        \
    do {                                               \
        ptrdiff_t j = 0;                               \
        for (; (pairs) && j + 2 * VL <= (n); j += 2 * VL) { \
            enum { NV = 2, full = 1 };                 \
            const ptrdiff_t w = VL;                    \
            (void)w;                                   \
            __VA_ARGS__                                \
        }                                              \
        for (; j + VL <= (n); j += VL) {               \
            enum { NV = 1, full = 1 };                 \
            const ptrdiff_t w = VL;                    \
            (void)w;                                   \
            __VA_ARGS__                                \
        }                                              \
        if (j < (n)) {                                 \
            enum { NV = 1, full = 0 };                 \
            const ptrdiff_t w = (n) - j;               \
            __VA_ARGS__                                \
        }                                              \
    } while (0)
/* EACH_FEW for B rows, `next` the expression that goes to the next one; where a row is one vector, two
 * rows at a time. The v-th vector of an array whose rows lie ld apart is LDV(p, ld). */
#define EACH_ROW(pairs, B, n, next, ...)                               \
    do {                                                               \
        ptrdiff_t left = (B);                                          \
        for (; (pairs) && (n) == VL && left >= 2; left -= 2, next, next) { \
            enum { NV = 2, full = 1, across = 1 };                     \
            const ptrdiff_t j = 0, w = VL;                             \
            (void)w;                                                   \
            __VA_ARGS__                                                \
        }                                                              \
        for (; left > 0; left--, next) {                               \
            enum { across = 0 };                                       \
            EACH_FEW(pairs, n, __VA_ARGS__);                           \
        }                                                              \
    } while (0)
/* EACH for B rows; where a row is half a vector of AVX-512, two rows at a time: with LDR and STR instead
 * of LD and ST. */
#define EACH_HALF(B, n, next, ...)                                     \
    do {                                                               \
        ptrdiff_t left = (B);                                          \
        for (; RF_REGISTERS == 32 && 2 * (n) == VL && left >= 2; left -= 2, next, next) { \
            enum { full = 1, halves = 1 };                             \
            const ptrdiff_t j = 0, w = VL;                             \
            (void)w;                                                   \
            __VA_ARGS__                                                \
        }                                                              \
        for (; left > 0; left--, next) {                               \
            enum { halves = 0 };                                       \
            EACH(n, __VA_ARGS__);                                      \
        }                                                              \
    } while (0)
#define LDR(p, ld) (halves ? v_halves((p), (p) + (ld)) : LD(p))
#define STR(p, ld, v)                                                  \
    do {                                                               \
        if (halves) {                                                  \
            const v_t two = (v);                                       \
            v_store_lower(p, two);                                     \
            v_store_upper((p) + (ld), two);                            \
        } else {                                                       \
            ST(p, v);                                                  \
        }                                                              \
    } while (0)
#define AT(p, ld) ((p) + v * (across ? (ld) : VL) + j)
#define LDV(p, ld) (full ? v_load(AT(p, ld)) : v_loadn(AT(p, ld), w))
#define STV(p, ld, x)                          \
    do {                                       \
        if (full) v_store(AT(p, ld), (x));     \
        else v_storen(AT(p, ld), w, (x));      \
    } while (0)
#define LD(p) (full ? v_load((p) + j) : v_loadn((p) + j, w))
#define ST(p, v)                               \
    do {                                       \
        if (full) v_store((p) + j, (v));       \
        else v_storen((p) + j, w, (v));        \
    } while (0)
#endif

/* m rows as blocks of nearly the same number, the larger first; a division only once. */
RF_INLINE ptrdiff_t FN(block_rows)(ptrdiff_t least, ptrdiff_t larger, ptrdiff_t block) {
    return least + (block < larger);
}

/* ---- activations: value and derivative, the derivative from the value ----------------------- */

RF_INLINE v_t FN(clip01)(v_t x) { return v_min(v_set1(1), v_max(v_zero(), x)); }

RF_INLINE v_t FN(relu)(v_t x) { return v_max(v_zero(), x); } /* NaN stays NaN */

/* Of up to RF_MOST_VECTORS vectors. */
RF_UNFOLD void FN(acts)(rf_act f, const int count, v_t *x) {
    switch (f.kind) {
    case RF_SIGMOID: FN(sigmoids)(count, x); break;
    case RF_TANH: FN(tanhs)(count, x); break;
    case RF_RELU: RF_EACH_OF(count) x[v] = FN(relu)(x[v]); break;
    case RF_IDENTITY: break;
    default:
        RF_EACH_OF(count)
            x[v] = FN(clip01)(v_fma(v_set1((REAL)f.alpha), x[v], v_set1((REAL)f.beta)));
    }
}
RF_INLINE v_t FN(act)(rf_act f, v_t x) {
    FN(acts)(f, 1, &x);
    return x;
}

RF_INLINE v_t FN(d_sigmoid)(v_t y) { return v_fnma(y, y, y); }
RF_INLINE v_t FN(d_tanh)(v_t y) { return v_fnma(y, y, v_set1(1)); }

RF_INLINE v_t FN(d_act)(rf_act f, v_t y) {
    const v_t zero = v_zero(), one = v_set1(1);
    switch (f.kind) {
    case RF_SIGMOID: return FN(d_sigmoid)(y);
    case RF_TANH: return FN(d_tanh)(y);
    case RF_RELU: return v_select(v_lt(zero, y), one, zero);
    case RF_IDENTITY: return one;
    default:
        return v_select(v_lt(zero, y), v_select(v_lt(y, one), v_set1((REAL)f.alpha), zero), zero);
    }
}

/* ---- element-wise --------------------------------------------------------------------------- */

#define RF_UNARY(name, function)                                          \
    static void KN(name)(ptrdiff_t n, const REAL *x, REAL *y) {           \
        EACH(n, { ST(y, function(LD(x))); });                             \
    }
#define RF_UNARY_FEW(name, function)                                      \
    static void KN(name)(ptrdiff_t n, const REAL *x, REAL *y) {           \
        EACH_FEW(1, n, {                                                  \
            v_t z[NV];                                                    \
            RF_EACH_OF(NV) z[v] = LD(x + v * VL);                         \
            function(NV, z);                                              \
            RF_EACH_OF(NV) ST(y + v * VL, z[v]);                          \
        });                                                               \
    }
RF_UNARY(exp, FN(exp))
RF_UNARY_FEW(tanh, FN(tanhs))
RF_UNARY_FEW(sigmoid, FN(sigmoids))
RF_UNARY(relu, FN(relu))
RF_UNARY(log1p, FN(log1p))
#undef RF_UNARY_FEW
#undef RF_UNARY

static void KN(tanh_backward)(ptrdiff_t n, const REAL *y, const REAL *dy, REAL *dx) {
    EACH(n, { ST(dx, v_mul(LD(dy), FN(d_tanh)(LD(y)))); });
}
static void KN(sigmoid_backward)(ptrdiff_t n, const REAL *y, const REAL *dy, REAL *dx) {
    EACH(n, { ST(dx, v_mul(LD(dy), FN(d_sigmoid)(LD(y)))); });
}
static void KN(relu_backward)(ptrdiff_t n, const REAL *y, const REAL *dy, REAL *dx) {
    EACH(n, { ST(dx, v_select(v_lt(v_zero(), LD(y)), LD(dy), v_zero())); });
}

static void KN(add)(ptrdiff_t n, const REAL *x, REAL *y) {
    EACH(n, { ST(y, v_add(LD(y), LD(x))); });
}
static void KN(multiply)(ptrdiff_t n, const REAL *x, const REAL *y, REAL *out) {
    EACH(n, { ST(out, v_mul(LD(x), LD(y))); });
}
static void KN(multiply_add)(ptrdiff_t n, const REAL *x, const REAL *y, REAL *out) {
    EACH(n, { ST(out, v_fma(LD(x), LD(y), LD(out))); });
}
static void KN(axpy)(ptrdiff_t n, REAL alpha, const REAL *x, REAL *y) {
    const v_t a = v_set1(alpha);
    EACH(n, { ST(y, v_fma(a, LD(x), LD(y))); });
}
static void KN(scale)(ptrdiff_t n, REAL alpha, REAL *x) {
    const v_t a = v_set1(alpha);
    EACH(n, { ST(x, v_mul(a, LD(x))); });
}

RF_INLINE v_t FN(clamp)(v_t limit, v_t x) {
    return v_min(limit, v_max(v_neg(limit), x));
}
static void KN(clamp)(ptrdiff_t n, REAL limit, REAL *x) {
    const v_t l = v_set1(limit);
    EACH(n, { ST(x, FN(clamp)(l, LD(x))); });
}

static double KN(max_abs)(ptrdiff_t n, const REAL *x) {
    v_t most = v_zero(), nan = v_zero();
    REAL lanes[VL], bad[VL], top = 0;
    EACH(n, {
        const v_t v = v_abs(LD(x));
        nan = v_select(v_isnan(v), v, nan);
        most = v_max(v, most);
    });
    v_store(lanes, most);
    v_store(bad, nan);
    for (int l = 0; l < VL; l++) {
        if (bad[l] != bad[l]) return (double)bad[l];
        if (lanes[l] > top) top = lanes[l];
    }
    return (double)top;
}

/* Plain C in float64 for both dtypes: the order is the sixteen sums written here, which the
 * compiler may vectorise but not change. */
static double KN(sum_squares)(ptrdiff_t n, double alpha, const REAL *x) {
    double acc[RF_LANES] = {0};
    ptrdiff_t j = 0;
    for (; j + RF_LANES <= n; j += RF_LANES)
        for (int l = 0; l < RF_LANES; l++) {
            double v = alpha * (double)x[j + l];
            acc[l] += v * v;
        }
    for (int l = 0; j + l < n; l++) {
        double v = alpha * (double)x[j + l];
        acc[l] += v * v;
    }
    for (int half = RF_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) acc[l] += acc[l + half];
    return acc[0];
}

static void KN(column_sum)(ptrdiff_t N, ptrdiff_t H, const REAL *a, ptrdiff_t lda, REAL *out) {
    ptrdiff_t left = H;
    for (; left >= 8 * VL; left -= 8 * VL, a += 8 * VL, out += 8 * VL) { /* as many sums at a time */
        v_t s[8];
RF_UNROLL
        for (int v = 0; v < 8; v++) s[v] = v_load(out + v * VL);
        for (ptrdiff_t i = 0; i < N; i++)
RF_UNROLL
            for (int v = 0; v < 8; v++) s[v] = v_add(s[v], v_load(a + i * lda + v * VL));
RF_UNROLL
        for (int v = 0; v < 8; v++) v_store(out + v * VL, s[v]);
    }
    EACH(left, {
        v_t s = LD(out);
        for (ptrdiff_t i = 0; i < N; i++) s = v_add(s, LD(a + i * lda));
        ST(out, s);
    });
}
static void KN(column_dot)(ptrdiff_t N, ptrdiff_t H, const REAL *a, ptrdiff_t lda, const REAL *b,
                           ptrdiff_t ldb, REAL *out) {
    EACH(H, {
        v_t s = LD(out);
        for (ptrdiff_t i = 0; i < N; i++) s = v_fma(LD(a + i * lda), LD(b + i * ldb), s);
        ST(out, s);
    });
}

/* ---- RNN ------------------------------------------------------------------------------------ */

/* What is asked for most is compiled with its activations as constants and two vectors at a time, the
 * others share one body with one. */
RF_UNFOLD void FN(rnn_units_of)(const int pairs, ptrdiff_t B, ptrdiff_t H, const rf_act act, const REAL *a,
                                ptrdiff_t lda, REAL *h, ptrdiff_t ldh, REAL *y, ptrdiff_t ldy) {
    for (ptrdiff_t b = 0; b < B; b++, a += lda, h += ldh, y += y ? ldy : 0)
        EACH_FEW(pairs, H, {
            v_t z[NV];
            RF_EACH_OF(NV) z[v] = LD(a + v * VL);
            FN(acts)(act, NV, z); /* F3 */
            RF_EACH_OF(NV) ST(h + v * VL, z[v]);
            if (y) RF_EACH_OF(NV) ST(y + v * VL, z[v]);
        });
}
static void FN(rnn_units)(ptrdiff_t B, ptrdiff_t H, rf_act act, const REAL *a, ptrdiff_t lda, REAL *h,
                          ptrdiff_t ldh, REAL *y, ptrdiff_t ldy) {
    const rf_act tanh = {RF_TANH, 0, 0};
    if (act.kind == RF_TANH) FN(rnn_units_of)(1, B, H, tanh, a, lda, h, ldh, y, ldy);
    else FN(rnn_units_of)(0, B, H, act, a, lda, h, ldh, y, ldy);
}
static void KN(rnn_forward)(ptrdiff_t B, ptrdiff_t H, rf_act act, const REAL *a, REAL *h, REAL *y,
                            ptrdiff_t ldy) {
    FN(rnn_units)(B, H, act, a, H, h, H, y, ldy);
}
/* B1, B2 of a block of units, d what comes from the future: rows ldd apart, of the others but dy H. */
static void FN(rnn_backward_rows)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, rf_act act, const REAL *h,
                                  const REAL *d, ptrdiff_t ldd, const REAL *dy, ptrdiff_t ldy,
                                  REAL *da) {
    if (units == H && ldd == H && (!dy || ldy == H)) units *= B, B = 1;
    EACH_HALF(B, units, (h += H, d += ldd, da += H, dy += dy ? ldy : 0), {
        v_t e = LDR(d, ldd); /* B1 */
        if (dy) e = v_add(e, LDR(dy, ldy));
        STR(da, H, v_mul(e, FN(d_act)(act, LDR(h, H)))); /* B2 */
    });
}

/* ---- LSTM ----------------------------------------------------------------------------------- */

/* F3, F4 of NV vectors of units. z: i f g o (coupled: i g o) in, gates out, each NV vectors; c: c_{t-1}
 * in, c_t out; peep: peephole gates likewise, or NULL. Gates that wait for nothing are together. */
RF_UNFOLD void FN(lstm_vectors)(const int NV, const rf_lstm opt, const v_t *peep, v_t *z, v_t *c) {
    v_t *const i = z, *const f = z + NV, *const g = z + (opt.coupled ? 1 : 2) * NV, *const o = g + NV;
    if (peep) {
        RF_EACH_OF(NV) i[v] = v_fma(peep[v], c[v], i[v]);
        if (!opt.coupled) RF_EACH_OF(NV) f[v] = v_fma(peep[NV + v], c[v], f[v]);
    }
    if (!opt.coupled && 2 * NV <= RF_MOST_VECTORS) { /* F3 */
        FN(acts)(opt.gate, 2 * NV, i);
    } else {
        FN(acts)(opt.gate, NV, i);
        if (!opt.coupled) FN(acts)(opt.gate, NV, f);
    }
    FN(tanhs)(NV, g);
    if (!peep) FN(acts)(opt.gate, NV, o);
    RF_EACH_OF(NV) /* F4 */
        c[v] = v_fma(opt.coupled ? v_sub(v_set1(1), i[v]) : f[v], c[v], v_mul(i[v], g[v]));
    if (opt.clip > 0) RF_EACH_OF(NV) c[v] = FN(clamp)(v_set1((REAL)opt.clip), c[v]);
    if (peep) {
        RF_EACH_OF(NV) o[v] = v_fma(peep[2 * NV + v], c[v], o[v]);
        FN(acts)(opt.gate, NV, o);
    }
}

/* F3, F4 of a block of units. a: pre-activations, rows lda and gates ldg apart; gates: where i f g o
 * go, rows ldr and gates ldo apart, may be a; peephole gates and rows of c lie ldh apart. */
RF_UNFOLD void FN(lstm_gates_rows)(const int pairs, ptrdiff_t B, ptrdiff_t H, const rf_lstm opt,
                                   const REAL *a, ptrdiff_t lda, ptrdiff_t ldg, const REAL *peep,
                                   REAL *c, ptrdiff_t ldh, REAL *gates, ptrdiff_t ldr,
                                   ptrdiff_t ldo) {
    const ptrdiff_t G = opt.coupled ? 3 : 4;
    EACH_ROW(pairs, B, H, (a += lda, c += ldh, gates += ldr), {
        v_t z[4 * NV];
        v_t p[3 * NV];
        v_t cn[NV];
        RF_EACH_OF(NV) cn[v] = LDV(c, ldh);
RF_UNROLL
        for (int g = 0; g < G; g++) RF_EACH_OF(NV) z[g * NV + v] = LDV(a + g * ldg, lda);
        if (peep)
RF_UNROLL
            for (int g = 0; g < 3; g++) RF_EACH_OF(NV) p[g * NV + v] = LDV(peep + g * ldh, 0);
        FN(lstm_vectors)(NV, opt, peep ? p : NULL, z, cn);
        RF_EACH_OF(NV) STV(c, ldh, cn[v]);
RF_UNROLL
        for (int g = 0; g < G; g++) RF_EACH_OF(NV) STV(gates + g * ldo, ldr, z[g * NV + v]);
    });
}

/* F5 from o, whose rows lie ldr apart. A loop of its own: behind the gates of the same row it would
 * wait for c, and the CPU looks no further ahead than the next row. */
RF_UNFOLD void FN(lstm_output_rows)(ptrdiff_t B, ptrdiff_t H, const REAL *o, ptrdiff_t ldr,
                                    const REAL *c, REAL *tanh_c, REAL *h, ptrdiff_t ldh, REAL *y,
                                    ptrdiff_t ldy) {
    EACH_ROW(1, B, H, (o += ldr, c += ldh, h += ldh, tanh_c += tanh_c ? ldh : 0, y += y ? ldy : 0), {
        v_t t[NV];
        RF_EACH_OF(NV) t[v] = LDV(c, ldh);
        FN(tanhs)(NV, t);
        if (tanh_c) RF_EACH_OF(NV) STV(tanh_c, ldh, t[v]);
        RF_EACH_OF(NV) t[v] = v_mul(LDV(o, ldr), t[v]);
        RF_EACH_OF(NV) STV(h, ldh, t[v]);
        if (y) RF_EACH_OF(NV) STV(y, ldy, t[v]);
    });
}

RF_INLINE int FN(lstm_is_plain)(const rf_lstm *opt, const REAL *peep) {
    return opt->gate.kind == RF_SIGMOID && !opt->coupled && !(opt->clip > 0) && !peep;
}

/* h NULL: without F5. */
static void FN(lstm_units)(ptrdiff_t B, ptrdiff_t H, const rf_lstm *opt, const REAL *a,
                           ptrdiff_t lda, ptrdiff_t ldg, const REAL *peephole, REAL *c,
                           REAL *gates, ptrdiff_t ldr, ptrdiff_t ldo, REAL *tanh_c, REAL *h,
                           ptrdiff_t ldh, REAL *y, ptrdiff_t ldy) {
    const rf_lstm plain = {{RF_SIGMOID, 0, 0}, 0, 0};
    if (FN(lstm_is_plain)(opt, peephole))
        FN(lstm_gates_rows)(1, B, H, plain, a, lda, ldg, NULL, c, ldh, gates, ldr, ldo);
    else
        FN(lstm_gates_rows)(0, B, H, *opt, a, lda, ldg, peephole, c, ldh, gates, ldr, ldo);
    if (h)
        FN(lstm_output_rows)(B, H, gates + (opt->coupled ? 2 : 3) * ldo, ldr, c, tanh_c, h, ldh, y,
                             ldy);
}

static void KN(lstm_forward)(ptrdiff_t B, ptrdiff_t H, const rf_lstm *opt, REAL *a,
                             const REAL *peephole, REAL *c, REAL *tanh_c, REAL *h, REAL *y,
                             ptrdiff_t ldy) {
    const ptrdiff_t width = (opt->coupled ? 3 : 4) * H;
    for (ptrdiff_t b = 0; b < B; b++, a += width, c += H) {
        FN(lstm_units)(1, H, opt, a, width, H, peephole, c, a, width, H, tanh_c, h, H, y, ldy);
        h += H;
        if (tanh_c) tanh_c += H;
        if (y) y += ldy;
    }
}

RF_UNFOLD void FN(lstm_backward_rows)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, const rf_lstm opt,
                                      const REAL *gates, const REAL *peep, const REAL *c_prev,
                                      const REAL *tanh_c, const REAL *c, const REAL *dh,
                                      ptrdiff_t ldd, const REAL *dy, ptrdiff_t ldy,
                                      const REAL *dcn, REAL *dc, REAL *da) {
    const ptrdiff_t G = opt.coupled ? 3 : 4, ldg = G * H; /* i f g o, or i g o */
    const ptrdiff_t to_g = (G - 2) * H, to_o = (G - 1) * H;
    const v_t limit = v_set1((REAL)opt.clip), zero = v_zero();
    EACH_HALF(B, units, (gates += ldg, c_prev += H, tanh_c += H, dh += ldd, dc += H, da += ldg,
                         c += c ? H : 0, dy += dy ? ldy : 0, dcn += dcn ? H : 0), {
        v_t d = LDR(dh, ldd); /* B1 */
        if (dy) d = v_add(d, LDR(dy, ldy));
        const v_t i = LDR(gates, ldg);
        const v_t f = opt.coupled ? v_sub(v_set1(1), i) : LDR(gates + H, ldg);
        const v_t g = LDR(gates + to_g, ldg);
        const v_t o = LDR(gates + to_o, ldg);
        const v_t tc = LDR(tanh_c, H);
        const v_t cp = LDR(c_prev, H);
        const v_t zo = v_mul(v_mul(d, tc), FN(d_act)(opt.gate, o)); /* B2 */
        v_t e = LDR(dc, H);                                           /* B3 */
        if (dcn) e = v_add(e, LDR(dcn, H));
        else e = v_fma(v_mul(d, o), FN(d_tanh)(tc), e);
        if (peep) e = v_fma(zo, LDR(peep + 2 * H, 0), e);
        if (opt.clip > 0) e = v_select(v_lt(v_abs(LDR(c, H)), limit), e, zero);
        v_t zi; /* B4 */
        v_t zf;
        if (opt.coupled) {
            zi = v_mul(v_mul(e, v_sub(g, cp)), FN(d_act)(opt.gate, i));
            zf = zero;
        } else {
            zi = v_mul(v_mul(e, g), FN(d_act)(opt.gate, i));
            zf = v_mul(v_mul(e, cp), FN(d_act)(opt.gate, f));
            STR(da + H, ldg, zf);
        }
        const v_t zg = v_mul(v_mul(e, i), FN(d_tanh)(g));
        STR(da, ldg, zi);
        STR(da + to_g, ldg, zg);
        STR(da + to_o, ldg, zo);
        e = v_mul(e, f); /* B5 */
        if (peep) {
            e = v_fma(zi, LDR(peep, 0), e);
            if (!opt.coupled) e = v_fma(zf, LDR(peep + H, 0), e);
        }
        STR(dc, H, e);
    });
}

/* B1 to B5 of a block of units; d as in rnn_backward_rows. */
static void FN(lstm_backward_units)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, const rf_lstm *opt,
                                    const REAL *gates, const REAL *peep, const REAL *c_prev,
                                    const REAL *tanh_c, const REAL *c, const REAL *d, ptrdiff_t ldd,
                                    const REAL *dy, ptrdiff_t ldy, REAL *dc, REAL *da) {
    const rf_lstm plain = {{RF_SIGMOID, 0, 0}, 0, 0};
    if (FN(lstm_is_plain)(opt, peep))
        FN(lstm_backward_rows)(B, H, units, plain, gates, NULL, c_prev, tanh_c, NULL, d, ldd, dy, ldy,
                               NULL, dc, da);
    else
        FN(lstm_backward_rows)(B, H, units, *opt, gates, peep, c_prev, tanh_c, c, d, ldd, dy, ldy, NULL,
                               dc, da);
}

/* ---- GRU ------------------------------------------------------------------------------------ */

/* F5 of both variants: h = n + z (h - n) */
RF_INLINE v_t FN(gru_mix)(v_t z, v_t h, v_t n) { return v_fma(z, v_sub(h, n), n); }

/* Two vectors of gates at a time: 27 cycles for 16 units on Zen 5, where one at a time takes 32; with
 * AVX2 on Zen 3 they were 2 % slower. */
#ifndef RF_GRU_PAIRS
#define RF_GRU_PAIRS (RF_REGISTERS == 32)
#endif

/* F3, F4 of a block of units. a: a_r a_z u_n, rows lda and gates ldg apart; an: W_n x + b_in, rows lda
 * apart too; gates: where r z n go, rows ldr and gates ldo apart, may be a; u, h, out: rows ldh
 * apart; out may be h. */
RF_UNFOLD void FN(gru_forward_rows)(ptrdiff_t B, ptrdiff_t H, const rf_act gate, const REAL *a,
                                    ptrdiff_t lda, ptrdiff_t ldg, const REAL *an, REAL *gates,
                                    ptrdiff_t ldr, ptrdiff_t ldo, REAL *u, const REAL *h, REAL *out,
                                    ptrdiff_t ldh, REAL *y, ptrdiff_t ldy) {
    REAL *p = gates;
    EACH_ROW(RF_GRU_PAIRS, B, H, (a += lda, an += lda, p += ldr, u += u ? ldh : 0), {
        v_t un[NV];
        v_t rz[2 * NV];
        RF_EACH_OF(NV) un[v] = LDV(a + 2 * ldg, lda);
        RF_EACH_OF(NV) rz[v] = LDV(a, lda), rz[NV + v] = LDV(a + ldg, lda);
        if (RF_GRU_PAIRS) { /* F3 */
            FN(acts)(gate, 2 * NV, rz);
        } else {
            FN(acts)(gate, NV, rz);
            FN(acts)(gate, NV, rz + NV);
        }
        if (u) RF_EACH_OF(NV) STV(u, ldh, un[v]);
        RF_EACH_OF(NV) STV(p, ldr, rz[v]);
        RF_EACH_OF(NV) STV(p + ldo, ldr, rz[NV + v]);
        RF_EACH_OF(NV) STV(p + 2 * ldo, ldr, v_fma(rz[v], un[v], LDV(an, lda)));
    });
    /* As in the LSTM: what waits for r is a loop of its own. */
    EACH_ROW(RF_GRU_PAIRS, B, H, (gates += ldr, h += ldh, out += ldh, y += y ? ldy : 0), {
        v_t n[NV];
        RF_EACH_OF(NV) n[v] = LDV(gates + 2 * ldo, ldr);
        FN(tanhs)(NV, n); /* F4 */
        RF_EACH_OF(NV) STV(gates + 2 * ldo, ldr, n[v]);
        RF_EACH_OF(NV) n[v] = FN(gru_mix)(LDV(gates + ldo, ldr), LDV(h, ldh), n[v]); /* F5 */
        RF_EACH_OF(NV) STV(out, ldh, n[v]);
        if (y) RF_EACH_OF(NV) STV(y, ldy, n[v]);
    });
}
static void FN(gru_units)(ptrdiff_t B, ptrdiff_t H, rf_act gate, const REAL *a, ptrdiff_t lda,
                          ptrdiff_t ldg, const REAL *an, REAL *gates, ptrdiff_t ldr, ptrdiff_t ldo,
                          REAL *u, const REAL *h, REAL *out, ptrdiff_t ldh, REAL *y,
                          ptrdiff_t ldy) {
    const rf_act sigmoid = {RF_SIGMOID, 0, 0};
#define RF_GRU(gate) \
    FN(gru_forward_rows)(B, H, gate, a, lda, ldg, an, gates, ldr, ldo, u, h, out, ldh, y, ldy)
    if (gate.kind == RF_SIGMOID) RF_GRU(sigmoid);
    else RF_GRU(gate);
#undef RF_GRU
}
static void KN(gru_forward)(ptrdiff_t B, ptrdiff_t H, rf_act gate, REAL *a, const REAL *ax, REAL *u,
                            REAL *h, REAL *y, ptrdiff_t ldy) {
    for (ptrdiff_t b = 0; b < B; b++, a += 3 * H, ax += 3 * H, h += H) {
        FN(gru_units)(1, H, gate, a, 3 * H, H, ax + 2 * H, a, 3 * H, H, u, h, h, H, y, ldy);
        if (u) u += H;
        if (y) y += ldy;
    }
}

/* B1 to B4 of a block of units; d as in rnn_backward_rows, may be dh. */
static void FN(gru_backward_rows)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, rf_act gate,
                                  const REAL *gates, const REAL *u, const REAL *h_prev, const REAL *d0,
                                  ptrdiff_t ldd, REAL *dh, const REAL *dy, ptrdiff_t ldy, REAL *dax,
                                  REAL *dah) {
    const v_t one = v_set1(1);
    const ptrdiff_t ldg = 3 * H;
    EACH_HALF(B, units, (gates += ldg, u += H, h_prev += H, d0 += ldd, dh += H, dax += ldg, dah += ldg,
                         dy += dy ? ldy : 0), {
        v_t d = LDR(d0, ldd); /* B1 */
        if (dy) d = v_add(d, LDR(dy, ldy));
        const v_t r = LDR(gates, ldg);
        const v_t z = LDR(gates + H, ldg);
        const v_t n = LDR(gates + 2 * H, ldg);
        const v_t an = v_mul(v_mul(d, v_sub(one, z)), FN(d_tanh)(n)); /* B2 */
        const v_t az = v_mul(v_mul(d, v_sub(LDR(h_prev, H), n)), FN(d_act)(gate, z));
        const v_t ar = v_mul(v_mul(an, LDR(u, H)), FN(d_act)(gate, r)); /* B3 */
        STR(dax, ldg, ar);
        STR(dax + H, ldg, az);
        STR(dax + 2 * H, ldg, an);
        STR(dah, ldg, ar);
        STR(dah + H, ldg, az);
        STR(dah + 2 * H, ldg, v_mul(an, r));
        STR(dh, H, v_mul(d, z)); /* B4 */
    });
}

/* F3 of a block of units. a: a_r a_z, rows lda and gates ldg apart; h, rh: rows ldh apart; r or NULL and
 * z: rows ldr apart, may be a. */
static void FN(gru_before_gates_rows)(ptrdiff_t B, ptrdiff_t H, rf_act gate, const REAL *a,
                                      ptrdiff_t lda, ptrdiff_t ldg, const REAL *h, REAL *r, REAL *z,
                                      ptrdiff_t ldr, REAL *rh, ptrdiff_t ldh) {
    for (ptrdiff_t b = 0; b < B; b++, a += lda, z += ldr, h += ldh, rh += ldh) {
        EACH(H, {
            const v_t rn = FN(act)(gate, LD(a));
            const v_t zn = FN(act)(gate, LD(a + ldg));
            if (r) ST(r, rn);
            ST(z, zn);
            ST(rh, v_mul(rn, LD(h)));
        });
        if (r) r += ldr;
    }
}
static void KN(gru_before_gates)(ptrdiff_t B, ptrdiff_t H, rf_act gate, REAL *a, const REAL *h,
                                 REAL *rh) {
    FN(gru_before_gates_rows)(B, H, gate, a, 3 * H, H, h, a, a + H, 3 * H, rh, H);
}
/* F4, F5 of a block of units. a: a_n, rows lda apart; z, n or NULL: rows ldr apart; h, out: rows ldh
 * apart; out may be h. */
static void FN(gru_before_output_rows)(ptrdiff_t B, ptrdiff_t H, const REAL *a, ptrdiff_t lda,
                                       const REAL *z, REAL *n, ptrdiff_t ldr, const REAL *h,
                                       REAL *out, ptrdiff_t ldh, REAL *y, ptrdiff_t ldy) {
    for (ptrdiff_t b = 0; b < B; b++, a += lda, z += ldr, h += ldh, out += ldh) {
        EACH(H, {
            const v_t nn = FN(tanh)(LD(a)); /* F4 */
            const v_t hn = FN(gru_mix)(LD(z), LD(h), nn); /* F5 */
            if (n) ST(n, nn);
            ST(out, hn);
            if (y) ST(y, hn);
        });
        if (n) n += ldr;
        if (y) y += ldy;
    }
}
static void KN(gru_before_output)(ptrdiff_t B, ptrdiff_t H, REAL *a, REAL *h, REAL *y,
                                  ptrdiff_t ldy) {
    FN(gru_before_output_rows)(B, H, a + 2 * H, 3 * H, a + H, a + 2 * H, 3 * H, h, h, H, y, ldy);
}
/* B1, B2, B4 of a block of units; d as in rnn_backward_rows, may be dh. */
static void FN(gru_before_output_backward)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, rf_act gate,
                                           const REAL *gates, const REAL *h_prev, const REAL *d0,
                                           ptrdiff_t ldd, REAL *dh, const REAL *dy, ptrdiff_t ldy,
                                           REAL *da) {
    const v_t one = v_set1(1);
    for (ptrdiff_t b = 0; b < B; b++) {
        const REAL *gz = gates + H, *gn = gates + 2 * H;
        REAL *az = da + H, *an = da + 2 * H;
        EACH(units, {
            v_t d = LD(d0); /* B1 */
            if (dy) d = v_add(d, LD(dy));
            const v_t z = LD(gz);
            const v_t n = LD(gn);
            ST(an, v_mul(v_mul(d, v_sub(one, z)), FN(d_tanh)(n))); /* B2 */
            ST(az, v_mul(v_mul(d, v_sub(LD(h_prev), n)), FN(d_act)(gate, z)));
            ST(dh, v_mul(d, z)); /* B4 */
        });
        gates += 3 * H, h_prev += H, d0 += ldd, dh += H, da += 3 * H;
        if (dy) dy += ldy;
    }
}
/* B3, B4 of a block of units, from d = dE/d(r h) as in rnn_backward_rows. */
static void FN(gru_before_gates_backward)(ptrdiff_t B, ptrdiff_t H, ptrdiff_t units, rf_act gate,
                                          const REAL *gates, const REAL *h_prev, const REAL *d,
                                          ptrdiff_t ldd, REAL *dh, REAL *da) {
    for (ptrdiff_t b = 0; b < B; b++, gates += 3 * H, h_prev += H, d += ldd, dh += H, da += 3 * H)
        EACH(units, {
            const v_t r = LD(gates);
            const v_t q = LD(d);
            ST(da, v_mul(v_mul(q, LD(h_prev)), FN(d_act)(gate, r))); /* B3 */
            ST(dh, v_fma(q, r, LD(dh)));
        });
}

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct {
    v_t a[FN(accs)];
} FN(lanes);

RF_INLINE FN(lanes) FN(lanes_zero)(void) {
    FN(lanes) s;
    for (int k = 0; k < FN(accs); k++) s.a[k] = v_zero();
    return s;
}
RF_INLINE REAL FN(lanes_sum)(const FN(lanes) * s) {
    REAL t[RF_LANES];
    for (int k = 0; k < FN(accs); k++) v_store(t + k * VL, s->a[k]);
    for (int half = RF_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) t[l] = t[l] + t[l + half];
    return t[0];
}

/* Runs its body for every vector of a row, with s.a[k] the accumulator of its lanes. A partial
 * vector's missing lanes load as 0; EXTRA must map them to 0 again before they are added. */
#ifndef EACH_LANE
#define EACH_LANE(n, ...)                                              \
    do {                                                               \
        ptrdiff_t j = 0;                                               \
        for (; j + RF_LANES <= (n);)                                   \
            for (int k = 0; k < FN(accs); k++, j += VL) {              \
                enum { full = 1 };                                     \
                const ptrdiff_t w = VL;                                \
                (void)w;                                               \
                __VA_ARGS__                                            \
            }                                                          \
        for (int k = 0; j < (n); k++, j += VL) {                       \
            if (j + VL <= (n)) {                                       \
                enum { full = 1 };                                     \
                const ptrdiff_t w = VL;                                \
                (void)w;                                               \
                __VA_ARGS__                                            \
            } else {                                                   \
                enum { full = 0 };                                     \
                const ptrdiff_t w = (n) - j;                           \
                __VA_ARGS__                                            \
            }                                                          \
        }                                                              \
    } while (0)
#endif

/* Zeros in the lanes past w: for values that are not 0 where their inputs are padding. */
RF_INLINE v_t FN(keep)(v_t v, ptrdiff_t w) {
    REAL t[VL];
    v_store(t, v);
    for (ptrdiff_t l = w; l < VL; l++) t[l] = 0;
    return v_load(t);
}

RF_INLINE REAL FN(row_max)(ptrdiff_t n, const REAL *x) {
    REAL lanes[VL], most = x[0];
    v_t m = v_set1(x[0]);
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) m = v_max(v_load(x + j), m);
    v_store(lanes, m);
    for (int l = 0; l < VL; l++) most = lanes[l] > most ? lanes[l] : most;
    for (; j < n; j++) most = x[j] > most ? x[j] : most;
    return most;
}

/* e = exp(z - max), returns their sum; e NULL: the sum alone. e may be z. */
RF_INLINE REAL FN(row_exp)(ptrdiff_t n, const REAL *z, REAL most, REAL *e) {
    const v_t m = v_set1(most);
    FN(lanes) s = FN(lanes_zero)();
    EACH_LANE(n, {
        v_t v = FN(exp)(v_sub(LD(z), m));
        if (e) ST(e, v);
        if (!full) v = FN(keep)(v, w);
        s.a[k] = v_add(s.a[k], v);
    });
    return FN(lanes_sum)(&s);
}

static void KN(layer_norm_forward)(ptrdiff_t B, ptrdiff_t n, REAL eps, const REAL *x,
                                   const REAL *gain, const REAL *bias, REAL *xhat, REAL *rstd,
                                   REAL *y, int accumulate) {
    const REAL size = (REAL)n;
    for (ptrdiff_t b = 0; b < B; b++, x += n, xhat += n, y += n) {
        FN(lanes) s = FN(lanes_zero)(), q = FN(lanes_zero)();
        EACH_LANE(n, { s.a[k] = v_add(s.a[k], LD(x)); });
        const v_t mean = v_set1(FN(lanes_sum)(&s) / size); /* N1 */
        EACH_LANE(n, {
            v_t v = v_sub(LD(x), mean);
            if (!full) v = FN(keep)(v, w);
            q.a[k] = v_fma(v, v, q.a[k]);
        });
        REAL lane[VL];
        v_store(lane, v_div(v_set1(1), v_sqrt(v_set1(FN(lanes_sum)(&q) / size + eps)))); /* N2 */
        rstd[b] = lane[0];
        const v_t scale = v_set1(lane[0]);
        EACH(n, {
            const v_t v = v_mul(v_sub(LD(x), mean), scale); /* N3 */
            const v_t first = accumulate ? (bias ? v_add(LD(y), LD(bias)) : LD(y))
                                         : (bias ? LD(bias) : v_zero());
            ST(xhat, v);
            ST(y, v_fma(LD(gain), v, first)); /* N4 */
        });
    }
}
static void KN(layer_norm_backward)(ptrdiff_t B, ptrdiff_t n, const REAL *dy, const REAL *gain,
                                    const REAL *xhat, const REAL *rstd, REAL *dx) {
    const REAL size = (REAL)n;
    for (ptrdiff_t b = 0; b < B; b++, dy += n, xhat += n, dx += n) {
        FN(lanes) s = FN(lanes_zero)(), q = FN(lanes_zero)();
        EACH_LANE(n, {
            const v_t g = v_mul(LD(dy), LD(gain));
            s.a[k] = v_add(s.a[k], g);
            q.a[k] = v_fma(g, LD(xhat), q.a[k]);
        });
        const v_t mean = v_set1(FN(lanes_sum)(&s) / size); /* NB1 */
        const v_t dot = v_set1(FN(lanes_sum)(&q) / size);  /* NB2 */
        const v_t scale = v_set1(rstd[b]);
        EACH(n, {
            const v_t g = v_mul(LD(dy), LD(gain));
            ST(dx, v_mul(scale, v_fnma(LD(xhat), dot, v_sub(g, mean)))); /* NB3 */
        });
    }
}

static void KN(softmax)(ptrdiff_t N, ptrdiff_t V, const REAL *z, REAL *p) {
    if (V == 0) return;
    for (ptrdiff_t i = 0; i < N; i++, z += V, p += V) {
        const REAL s = FN(row_exp)(V, z, FN(row_max)(V, z), p);
        const v_t sum = v_set1(s);
        EACH(V, { ST(p, v_div(LD(p), sum)); });
    }
}

static double KN(softmax_cross_entropy)(ptrdiff_t N, ptrdiff_t V, const REAL *z, const int64_t *y,
                                        REAL eps, const REAL *scale, const double *weight,
                                        REAL *loss, REAL *dz) {
    double total = 0;
    for (ptrdiff_t i = 0; i < N; i++, z += V, dz += dz ? V : 0) {
        if (y[i] < 0) {
            loss[i] = 0;
            if (dz) memset(dz, 0, (size_t)V * sizeof *dz);
            continue;
        }
        const REAL most = FN(row_max)(V, z);   /* S1 */
        const REAL zy = z[y[i]] - most;
        REAL all = 0;
        if (eps > 0) {
            const v_t m = v_set1(most);
            FN(lanes) t = FN(lanes_zero)();
            EACH_LANE(V, {
                v_t v = v_sub(LD(z), m);
                if (!full) v = FN(keep)(v, w);
                t.a[k] = v_add(t.a[k], v);
            });
            all = FN(lanes_sum)(&t);
        }
        const REAL s = FN(row_exp)(V, z, most, dz); /* S2 */
        const REAL lse = FN(log_pos)(s);
        loss[i] = lse - zy;                         /* S3 */
        if (eps > 0) loss[i] = ((REAL)1 - eps) * loss[i] + eps * (lse - all / (REAL)V);
        total += (weight ? weight[i] : 1.0) * (double)loss[i];
        if (dz) {
            const v_t r = v_set1(scale[i] / s); /* S4 */
            const v_t off = v_set1(eps > 0 ? eps / (REAL)V * scale[i] : 0);
            EACH(V, { ST(dz, v_fms(LD(dz), r, off)); });
            dz[y[i]] = dz[y[i]] - ((REAL)1 - eps) * scale[i]; /* S5 */
        }
    }
    return total;
}

static double KN(sigmoid_cross_entropy)(ptrdiff_t N, ptrdiff_t V, const REAL *z, const REAL *t,
                                        REAL scale, REAL *loss, REAL *dz) {
    const v_t zero = v_zero(), factor = v_set1(scale);
    double total = 0;
    for (ptrdiff_t i = 0; i < N; i++, z += V, t += V, dz += dz ? V : 0) {
        FN(lanes) s = FN(lanes_zero)();
        EACH_LANE(V, {
            const v_t x = LD(z);
            const v_t y = LD(t);
            const v_t soft = FN(log1p)(FN(exp)(v_neg(v_abs(x))));
            v_t l = v_add(v_fnma(x, y, v_max(zero, x)), soft); /* E1 */
            if (!full) l = FN(keep)(l, w);
            s.a[k] = v_add(s.a[k], l);
            if (dz) ST(dz, v_mul(v_sub(FN(sigmoid)(x), y), factor)); /* E2 */
        });
        loss[i] = FN(lanes_sum)(&s);
        total += (double)loss[i];
    }
    return total;
}

static double KN(quadratic_error)(ptrdiff_t N, ptrdiff_t V, const REAL *y, const REAL *t,
                                  REAL scale, REAL *loss, REAL *dy) {
    const v_t factor = v_set1(scale);
    double total = 0;
    for (ptrdiff_t i = 0; i < N; i++, y += V, t += V, dy += dy ? V : 0) {
        FN(lanes) s = FN(lanes_zero)();
        EACH_LANE(V, {
            const v_t e = v_sub(LD(y), LD(t)); /* Q1 */
            s.a[k] = v_fma(e, e, s.a[k]);
            if (dy) ST(dy, v_mul(e, factor)); /* Q2 */
        });
        loss[i] = (REAL)0.5 * FN(lanes_sum)(&s);
        total += (double)loss[i];
    }
    return total;
}

/* ---- a step with layer norm ------------------------------------------------------------------ */

/* Means need whole rows, so the product comes first and what follows goes row by row, each row in the
 * first cache from its first sum to its output. */

static void KN(lstm_norm_forward)(ptrdiff_t B, ptrdiff_t H, const rf_lstm *opt, REAL eps, REAL *ah,
                                  const REAL *gain_hh, const REAL *gain_c, const REAL *bias_c,
                                  REAL *a, const REAL *peephole, REAL *c, REAL *cn, REAL *hhat,
                                  REAL *h_rstd, REAL *chat, REAL *c_rstd, REAL *tanh_c, REAL *h,
                                  REAL *y, ptrdiff_t ldy) {
    const ptrdiff_t G = opt->coupled ? 3 : 4, W = G * H;
    REAL unused;
    for (ptrdiff_t b = 0; b < B; b++, ah += W, a += W, c += H, cn += H, h += H) {
        KN(layer_norm_forward)(1, W, eps, ah, gain_hh, NULL, hhat ? hhat + b * W : ah,
                               h_rstd ? h_rstd + b : &unused, a, 1); /* F2 */
        FN(lstm_units)(1, H, opt, a, W, H, peephole, c, a, W, H, NULL, NULL, H, NULL, 0);
        KN(layer_norm_forward)(1, H, eps, c, gain_c, bias_c, chat ? chat + b * H : cn,
                               c_rstd ? c_rstd + b : &unused, cn, 0);
        FN(lstm_output_rows)(1, H, a + W - H, W, cn, tanh_c, h, H, y, ldy);
        if (tanh_c) tanh_c += H;
        if (y) y += ldy;
    }
}
static void KN(lstm_norm_backward)(ptrdiff_t B, ptrdiff_t H, const rf_lstm *opt, const REAL *gates,
                                   const REAL *peephole, const REAL *c_prev, const REAL *tanh_c,
                                   const REAL *c, const REAL *gain_hh, const REAL *hhat,
                                   const REAL *h_rstd, const REAL *gain_c, const REAL *chat,
                                   const REAL *c_rstd, const REAL *dh, const REAL *dy,
                                   ptrdiff_t ldy, REAL *dcn, REAL *dce, REAL *dc, REAL *da,
                                   REAL *dah) {
    const ptrdiff_t G = opt->coupled ? 3 : 4, W = G * H;
    for (ptrdiff_t b = 0; b < B; b++) {
        const REAL *o = gates + W - H;
        EACH(H, {
            v_t d = LD(dh);
            if (dy) d = v_add(d, LD(dy));
            ST(dcn, v_mul(v_mul(d, LD(o)), FN(d_tanh)(LD(tanh_c))));
        });
        KN(layer_norm_backward)(1, H, dcn, gain_c, chat, c_rstd + b, dce);
        FN(lstm_backward_rows)(1, H, H, *opt, gates, peephole, c_prev, tanh_c, c, dh, H, dy, ldy,
                               dce, dc, da);
        KN(layer_norm_backward)(1, W, da, gain_hh, hhat, h_rstd + b, dah);
        gates += W, c_prev += H, tanh_c += H, hhat += W, chat += H, dh += H;
        dcn += H, dce += H, dc += H, da += W, dah += W;
        if (c) c += H;
        if (dy) dy += ldy;
    }
}

static void KN(gru_norm_forward)(ptrdiff_t B, ptrdiff_t H, rf_act gate, REAL eps, REAL *ah,
                                 const REAL *gain_hh, const REAL *ax, const REAL *bias_n, REAL *a,
                                 REAL *hhat, REAL *h_rstd, REAL *u, const REAL *h, REAL *out,
                                 REAL *y, ptrdiff_t ldy) {
    REAL unused;
    for (ptrdiff_t b = 0; b < B; b++, ah += 3 * H, ax += 3 * H, a += 3 * H, h += H, out += H) {
        memcpy(a, ax, (size_t)(2 * H) * sizeof *a);
        if (bias_n) memcpy(a + 2 * H, bias_n, (size_t)H * sizeof *a);
        else memset(a + 2 * H, 0, (size_t)H * sizeof *a);
        KN(layer_norm_forward)(1, 3 * H, eps, ah, gain_hh, NULL, hhat ? hhat + b * 3 * H : ah,
                               h_rstd ? h_rstd + b : &unused, a, 1); /* F2 */
        FN(gru_units)(1, H, gate, a, 3 * H, H, ax + 2 * H, a, 3 * H, H, u, h, out, H, y, ldy);
        if (u) u += H;
        if (y) y += ldy;
    }
}
static void KN(gru_norm_backward)(ptrdiff_t B, ptrdiff_t H, rf_act gate, const REAL *gates,
                                  const REAL *u, const REAL *h_prev, const REAL *gain_hh,
                                  const REAL *hhat, const REAL *h_rstd, REAL *dh, const REAL *dy,
                                  ptrdiff_t ldy, REAL *dax, REAL *dah, REAL *dm) {
    for (ptrdiff_t b = 0; b < B; b++) {
        FN(gru_backward_rows)(1, H, H, gate, gates, u, h_prev, dh, H, dh, dy, ldy, dax, dah);
        KN(layer_norm_backward)(1, 3 * H, dah, gain_hh, hhat, h_rstd + b, dm);
        gates += 3 * H, u += H, h_prev += H, hhat += 3 * H, dh += H;
        dax += 3 * H, dah += 3 * H, dm += 3 * H;
        if (dy) dy += ldy;
    }
}

/* ---- products in fixed order ------------------------------------------------------------------ */

/* C[m,n] = A B, or C + A B: every element is ONE chain of fma over k ascending, from 0 or from C.
 * Rows, columns and k are divided freely: no division changes a chain. A tile of MR rows by NV
 * vectors, of which the last holds w elements, stays in registers; MR and NV are constants after
 * inlining. Its columns lie in one panel of B or begin one and go on in up to three more, `panel`
 * apart. ahead: k lines to fetch into the second cache meanwhile, or NULL. */
#define RF_MOST_ROWS (RF_REGISTERS == 32 ? 8 : 6)
RF_UNFOLD void FN(gemm_tile)(const int MR, const int NV, ptrdiff_t w, ptrdiff_t k, const REAL *a,
                             ptrdiff_t ars, ptrdiff_t acs, const REAL *b, ptrdiff_t ldb,
                             ptrdiff_t panel, int add, const REAL *ahead, REAL *c,
                             ptrdiff_t ldc) {
    v_t acc[RF_MOST_ROWS][8];
    /* As few pointers as will do, so that the loop reads none from the stack: 4 to 8 % faster. */
    const REAL *lower = a + 3 * ars, *lowest = lower + 3 * ars, *second = b + panel, *third = second + panel,
               *fourth = third + panel;
#define RF_FULL (v < NV - 1 || w == VL)
RF_UNROLL
    for (int r = 0; r < MR; r++)
RF_UNROLL
        for (int v = 0; v < NV; v++)
            acc[r][v] = !add      ? v_zero()
                        : RF_FULL ? v_load(c + r * ldc + v * VL)
                                  : v_loadn(c + r * ldc + v * VL, w);
RF_TWICE
    for (ptrdiff_t p = 0; p < k; p++) {
        v_t x[8];
        if (ahead) RF_FETCH_FAR(ahead + p * RF_LINE);
RF_UNROLL
        for (int v = 0; v < NV; v++) {
            const int q = v * VL / RF_PANEL;
            const REAL *at = (q == 0 ? b : q == 1 ? second : q == 2 ? third : fourth)
                             + v * VL % RF_PANEL;
            x[v] = RF_FULL ? v_load(at) : v_loadn(at, w);
        }
RF_UNROLL
        for (int r = 0; r < MR; r++) {
            const v_t s = v_set1(r < 3 ? a[r * ars] : r < 6 ? lower[(r - 3) * ars] : lowest[(r - 6) * ars]);
RF_UNROLL
            for (int v = 0; v < NV; v++) acc[r][v] = v_fma(s, x[v], acc[r][v]);
        }
        a += acs, lower += acs, lowest += acs, b += ldb;
        second += ldb, third += ldb, fourth += ldb;
    }
RF_UNROLL
    for (int r = 0; r < MR; r++)
RF_UNROLL
        for (int v = 0; v < NV; v++)
            if (RF_FULL) v_store(c + r * ldc + v * VL, acc[r][v]);
            else v_storen(c + r * ldc + v * VL, w, acc[r][v]);
#undef RF_FULL
}

#if RF_SHARED
/* 3 to 6 rows by one or two vectors of columns in a panel; functions of their own: their loops need all
 * integer registers. acs: 1, or m where the rows lie side by side (ars = 1). */
#define RF_VECTORS(name, NV)                                                                      \
    static RF_ONCE void FN(name)(ptrdiff_t m, ptrdiff_t k, const REAL *a, ptrdiff_t ars,          \
                                 ptrdiff_t acs, const REAL *b, int add, const REAL *ahead, REAL *c, \
                                 ptrdiff_t ldc) {                                                 \
        switch (m) {                                                                              \
            RF_PRODUCT(3, NV)                                                                     \
            RF_PRODUCT(4, NV)                                                                     \
            RF_PRODUCT(5, NV)                                                                     \
            RF_PRODUCT(6, NV)                                                                     \
        }                                                                                         \
    }
#define RF_PRODUCT(R, NV)                                                                         \
    case R:                                                                                       \
        if (acs > 1) FN(gemm_tile)(R, NV, VL, k, a, 1, R, b, RF_PANEL, 0, add, NULL, c, ldc);     \
        else if (ahead) FN(gemm_tile)(R, NV, VL, k, a, ars, 1, b, RF_PANEL, 0, add, ahead, c, ldc); \
        else FN(gemm_tile)(R, NV, VL, k, a, ars, 1, b, RF_PANEL, 0, add, NULL, c, ldc);           \
        break;
RF_VECTORS(one_vector, 1)
RF_VECTORS(two_vectors, 2)
#undef RF_PRODUCT
#undef RF_VECTORS

/* The last one or two vectors of columns, w elements in the last, which a packed panel has whole: no
 * masks in the loop. dx of 30 inputs at 8192 x 512: 36 to 48 GFLOP/s on Zen 3. */
RF_UNFOLD void FN(last_vectors)(const int MR, ptrdiff_t vectors, ptrdiff_t w, ptrdiff_t k, const REAL *a,
                                ptrdiff_t ars, ptrdiff_t acs, const REAL *b, int add, REAL *c,
                                ptrdiff_t ldc) {
    REAL tile[6 * 2 * VL];
    const ptrdiff_t last = (vectors - 1) * VL;
    for (int r = 0; add && r < MR; r++) {
        if (last) v_store(tile + r * 2 * VL, v_load(c + r * ldc));
        v_store(tile + r * 2 * VL + last, v_loadn(c + r * ldc + last, w));
    }
    if (last) FN(two_vectors)(MR, k, a, ars, acs, b, add, NULL, tile, 2 * VL);
    else FN(one_vector)(MR, k, a, ars, acs, b, add, NULL, tile, 2 * VL);
    for (int r = 0; r < MR; r++) {
        if (last) v_store(c + r * ldc, v_load(tile + r * 2 * VL));
        v_storen(c + r * ldc + last, w, v_load(tile + r * 2 * VL + last));
    }
}
#define RF_TWO_VECTORS(...) FN(two_vectors)(__VA_ARGS__)
#define RF_LAST_VECTORS(...) FN(last_vectors)(__VA_ARGS__)
#else
#define RF_TWO_VECTORS(...)
#define RF_LAST_VECTORS(...)
#endif

/* All columns of a few rows: groups of NV vectors, then what is left. */
RF_UNFOLD void FN(gemm_rows)(const int MR, const int NV, ptrdiff_t n, ptrdiff_t k, const REAL *a,
                             ptrdiff_t ars, ptrdiff_t acs, const REAL *b, ptrdiff_t ldb,
                             ptrdiff_t panel, int add, REAL *c, ptrdiff_t ldc) {
#define RF_COLUMNS(count, w)                                                                   \
    FN(gemm_tile)(MR, count, w, k, a, ars, acs, b + j / RF_PANEL * panel + j % RF_PANEL, ldb, panel, \
                  add, NULL, c + j, ldc)
    ptrdiff_t j = 0;
    for (; j + NV * VL <= n; j += NV * VL) {
        if (RF_REGISTERS == 16 && MR > 3) /* what the next tile begins with, from memory */
RF_UNROLL
            for (int r = 0; r < MR; r++) __builtin_prefetch(c + r * ldc + j + NV * VL, 1, 3);
        if (RF_SHARED && MR > 2 && ldb == RF_PANEL && (acs == 1 || acs == MR))
            RF_TWO_VECTORS(MR, k, a, ars, acs, b + j / RF_PANEL * panel + j % RF_PANEL, add, NULL,
                           c + j, ldc);
        else
            RF_COLUMNS(NV, VL);
    }
    while (j < n) {
        const ptrdiff_t left = (n - j + VL - 1) / VL;
        const ptrdiff_t most = left > 4 ? 4 : left, w = left > 4 ? VL : n - j - (left - 1) * VL;
        if (RF_SHARED && MR > 2 && left <= 2 && w < VL && k >= 64 && ldb == RF_PANEL
            && (acs == 1 || acs == MR)) {
            RF_LAST_VECTORS(MR, left, w, k, a, ars, acs, b + j / RF_PANEL * panel + j % RF_PANEL, add,
                            c + j, ldc);
            break;
        }
        switch (most) {
        case 1: RF_COLUMNS(1, w); break;
        case 2: RF_COLUMNS((NV < 2 ? NV : 2), w); break;
        case 3: RF_COLUMNS((NV < 3 ? NV : 3), w); break;
        default: RF_COLUMNS((NV < 4 ? NV : 4), w); break;
        }
        j += most * VL;
    }
#undef RF_COLUMNS
}
#undef RF_TWO_VECTORS
#undef RF_LAST_VECTORS

/* Register tiles: accumulators, the vectors of B and one broadcast must fit the registers, and
 * there must be 8 accumulators or more to cover the latency of fma (4 cycles, 2 a cycle). */
#if VL == 1
enum { FN(nv1) = 8, FN(nv2) = 4, FN(nv4) = 2, FN(nv6) = 2 };
#elif RF_REGISTERS == 32
enum { FN(nv1) = 8, FN(nv2) = 8, FN(nv4) = 4, FN(nv6) = 4 };
#else
enum { FN(nv1) = 8, FN(nv2) = 4, FN(nv4) = 2, FN(nv6) = 2 };
#endif

/* Blocks: gemm_kc of k, so that a tile's rows of A stay in the first cache (gemm_kt where A lies
 * transposed); gemm_mc rows, whose part of A (256 kB) stays in the second; gemm_nc columns, whose part of
 * B (256 kB; 128) does. B is copied 512 bytes of a row at a time: every row may lie in another page. */
enum { FN(gemm_kc) = 2048 / sizeof(REAL), FN(gemm_kt) = 256,
       FN(gemm_mc) = 1024 / sizeof(REAL), FN(gemm_nc) = 512 / sizeof(REAL) };
_Static_assert(FN(gemm_nc) * FN(gemm_kc) * sizeof(REAL) <= RF_SCRATCH, "scratch");
_Static_assert((FN(gemm_mc) * (FN(gemm_kt) + 1) + FN(gemm_nc) * FN(gemm_kt)) * sizeof(REAL) <= RF_SCRATCH,
               "scratch");

/* n <= gemm_nc columns of row-major B as panels [k][RF_PANEL], zeros past n. Rows further down are
 * fetched ahead where it pays, with AVX2 on Zen 3: dW at 128 x 512 x 2048 78 to 84 GFLOP/s. */
RF_INLINE void FN(pack_columns)(ptrdiff_t n, ptrdiff_t k, const REAL *b, ptrdiff_t ldb, REAL *out) {
    for (ptrdiff_t p = 0; p < k; p++, b += ldb, out += RF_PANEL) {
        for (ptrdiff_t q = 0; RF_REGISTERS == 16 && q < n; q += RF_LINE)
            RF_FETCH_NEAR(b + 4 * ldb + q);
        EACH(n, { v_store(out + j / RF_PANEL * k * RF_PANEL + j % RF_PANEL, LD(b)); });
    }
}

static void KN(panels)(ptrdiff_t n, ptrdiff_t k, ptrdiff_t first, ptrdiff_t last, const REAL *w,
                       ptrdiff_t ldw, REAL *out) {
    for (ptrdiff_t j = first; j < last; j += FN(gemm_nc)) {
        const ptrdiff_t count = last - j < FN(gemm_nc) ? last - j : FN(gemm_nc);
        FN(pack_columns)(count, k, w + j, ldw, out + j * k);
    }
    for (ptrdiff_t j = (n + VL - 1) / VL * VL; last == n && j % RF_PANEL; j += VL)
        for (ptrdiff_t p = 0; p < k; p++)
            v_store(out + j / RF_PANEL * RF_PANEL * k + p * RF_PANEL + j % RF_PANEL, v_zero());
}

/* A block of A, the rows of a tile side by side for each k: [blocks][k][rows]. Whole vectors where what
 * they put behind a tile's rows is written again, as AVX2's stores of a part are slow: dW at 128 x
 * 512 x 2048 81 to 87 GFLOP/s on Zen 3, and 69 if only the last tile's had to be such. */
RF_INLINE void FN(pack_rows)(ptrdiff_t m, ptrdiff_t blocks, ptrdiff_t k, const REAL *a,
                             ptrdiff_t ars, ptrdiff_t acs, REAL *out) {
    const ptrdiff_t least = m / blocks, larger = m % blocks;
    const int far = RF_REGISTERS == 16 && ars == 1 && acs > 64 * RF_LINE; /* other pages */
    for (ptrdiff_t p = 0; p < k; p++, a += acs) {
        for (ptrdiff_t q = 0; far && q < m; q += RF_LINE) RF_FETCH_NEAR(a + 4 * acs + q);
        for (ptrdiff_t block = 0, i = 0, rows; block < blocks; block++, i += rows) {
            rows = FN(block_rows)(least, larger, block);
            REAL *to = out + i * k + p * rows;
            if (ars == 1)
                for (ptrdiff_t r = 0; r < rows; r += VL)
                    if (rows - r >= VL || (r + VL - rows <= (k - 1 - p) * rows && i + r + VL <= m))
                        v_store(to + r, v_load(a + i + r));
                    else
                        for (ptrdiff_t q = r; q < rows && q < r + VL; q++) to[q] = a[i + q];
            else
                for (ptrdiff_t r = 0; r < rows; r++) to[r] = a[(i + r) * ars];
        }
    }
}

/* Columns of A as panels [k][RF_TILE], of whose lines a tile takes a part: a third of the stores that the
 * rows of each tile side by side need, none across two lines. A line between panels: powers of two apart they meet
 * in one set of the first cache. dW on Zen 5 at 1024 x 512 x 128 0.84 to 0.90 of the peak, 1024 x
 * 1024 x 256 0.77 to 0.90. */
RF_INLINE void FN(pack_lines)(ptrdiff_t m, ptrdiff_t k, const REAL *a, ptrdiff_t acs, REAL *out) {
    for (ptrdiff_t p = 0; p < k; p++, a += acs, out += RF_TILE)
        EACH(m, { v_store(out + j / RF_TILE * (k + 1) * RF_TILE + j % RF_TILE, LD(a)); });
}

/* Whether to copy B, rows ldb apart, for m rows of A: once per six of them it is read, and with AVX2,
 * whose rows of a tile are half as long, it pays for more of them; for fewer where rows of B are so far
 * apart that they meet in a part of the caches' sets, for fewer still where B is far. */
RF_INLINE int FN(copies_columns)(ptrdiff_t m, ptrdiff_t k, ptrdiff_t ldb) {
    const ptrdiff_t row = ldb * (ptrdiff_t)sizeof(REAL);
    if (RF_REGISTERS == 32) return m > 12;
    return m > (row < 1024 ? 64 : row * k < 1 << 21 ? 24 : 12);
}

/* Up to this many columns a product's vectors run over its rows. */
#define RF_NARROW (VL / 2 < 4 ? VL / 2 : 4)
#if VL > 1
/* groups x VL rows of C = A B or C + A B, n <= RF_NARROW columns; rows of A are contiguous, and turned VL
 * k at a time. Two groups in turn, for chains enough. One column, 2048 rows of 160 k: 4 to 9 GFLOP/s on
 * Zen 3. */
RF_UNFOLD void FN(narrow_tile)(const int groups, const int n, ptrdiff_t k, const REAL *a, ptrdiff_t ars,
                               const REAL *b, ptrdiff_t ldb, int add, REAL *c, ptrdiff_t ldc) {
    v_t acc[2][4], t[VL];
    REAL row[VL];
RF_UNROLL
    for (int g = 0; g < groups; g++)
RF_UNROLL
        for (int q = 0; q < n; q++) {
            for (int r = 0; r < VL; r++) row[r] = add ? c[(g * VL + r) * ldc + q] : 0;
            acc[g][q] = v_load(row);
        }
    ptrdiff_t p = 0;
#define RF_TURNED(load, last)                                                     \
RF_UNROLL                                                                         \
    for (int g = 0; g < groups; g++) {                                            \
        const REAL *from = a + g * VL * ars + p;                                  \
RF_UNROLL                                                                         \
        for (int r = 0; r < VL; r++) t[r] = load;                                 \
        v_transpose(t);                                                           \
RF_UNROLL                                                                         \
        for (int l = 0; l < VL; l++)                                              \
            if (l < (last))                                                       \
RF_UNROLL                                                                         \
                for (int q = 0; q < n; q++)                                       \
                    acc[g][q] = v_fma(t[l], v_set1(b[(p + l) * ldb + q]), acc[g][q]); \
    }
    for (; p + VL <= k; p += VL) { RF_TURNED(v_load(from + r * ars), VL) }
    if (p < k) { RF_TURNED(v_loadn(from + r * ars, k - p), k - p) }
#undef RF_TURNED
RF_UNROLL
    for (int g = 0; g < groups; g++)
RF_UNROLL
        for (int q = 0; q < n; q++) {
            v_store(row, acc[g][q]);
            for (int r = 0; r < VL; r++) c[(g * VL + r) * ldc + q] = row[r];
        }
}

/* m is a multiple of VL. */
static RF_ONCE void FN(narrow)(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const REAL *a, ptrdiff_t ars,
                               const REAL *b, ptrdiff_t ldb, int add, REAL *c, ptrdiff_t ldc) {
#define RF_COLUMNS(n)                                                                   \
    case n:                                                                             \
        if (more) FN(narrow_tile)(2, n, k, a, ars, b, ldb, add, c, ldc);                \
        else FN(narrow_tile)(1, n, k, a, ars, b, ldb, add, c, ldc);                     \
        break;
    for (ptrdiff_t i = 0; i < m; i += 2 * VL) {
        const int more = m - i > VL;
        switch (n) {
            RF_COLUMNS(1)
            RF_COLUMNS(2)
            RF_COLUMNS(3)
            RF_COLUMNS(4)
        }
        a += 2 * VL * ars, c += 2 * VL * ldc;
    }
#undef RF_COLUMNS
}
#endif

#if RF_PAIRS
/* Up to half a vector of columns: a vector has those of two rows in turn, so that one operand of an fma is
 * two elements of A again and again, the other each element of a row of B twice. */
enum { FN(pair_rows) = VL };

/* The chains of `rows` rows in acc, two rows a vector, and k more of A, whose rows are contiguous, times w
 * columns of B. Past the last row it is read again; whole: there are pair_rows. */
RF_INLINE void FN(pair_chains)(const int whole, ptrdiff_t rows, ptrdiff_t k, const REAL *a, ptrdiff_t lda,
                               const REAL *b, ptrdiff_t ldb, ptrdiff_t w, v_t *acc) {
    enum { quarter = VL / 4, pairs = FN(pair_rows) / 2 };
    _Alignas(64) REAL turned[pairs * 2 * VL];
    for (ptrdiff_t p = 0; p < k; p += VL, a += VL) {
        const ptrdiff_t some = k - p < VL ? k - p : VL;
        const REAL *row = a;
RF_UNROLL
        for (int q = 0; q < pairs; q++) {
            const v_t x = v_loadn(row, some);
            row += whole || 2 * q + 1 < rows ? lda : 0;
            const v_t y = v_loadn(row, some);
            row += whole || 2 * q + 2 < rows ? lda : 0;
            v_store(turned + q * 2 * VL, v_first_pairs(x, y));
            v_store(turned + q * 2 * VL + VL, v_last_pairs(x, y));
        }
#define RF_PAIR_STEP(from)                                                                      \
    do {                                                                                        \
        const v_t m = v_doubled(v_loadn(b, w));                                                 \
        const REAL *const at = (from);                                                          \
RF_UNROLL                                                                                       \
        for (int q = 0; q < pairs; q++) acc[q] = v_fma(v_pair(at + q * 2 * VL), m, acc[q]);     \
        b += ldb;                                                                               \
    } while (0)
        ptrdiff_t l = 0;
        for (; l + quarter <= some; l += quarter) {
            RF_PAIR_STEP(turned + l);
            RF_PAIR_STEP(turned + l + 2);
            RF_PAIR_STEP(turned + l + VL);
            RF_PAIR_STEP(turned + l + VL + 2);
        }
        for (ptrdiff_t last = 0; l + last < some; last++)
            RF_PAIR_STEP(turned + l + last / 2 * VL + last % 2 * 2);
#undef RF_PAIR_STEP
    }
}

/* Rows of w columns into acc, two a vector, and out of it. */
RF_INLINE void FN(pairs_in)(const int whole, ptrdiff_t rows, ptrdiff_t w, const REAL *c, ptrdiff_t ldc,
                            v_t *acc) {
RF_UNROLL
    for (int q = 0; q < FN(pair_rows) / 2; q++) {
        const v_t x = v_loadn(c, w);
        c += whole || 2 * q + 1 < rows ? ldc : 0;
        acc[q] = v_in_turn(v_join(x, v_loadn(c, w)));
        c += whole || 2 * q + 2 < rows ? ldc : 0;
    }
}
RF_INLINE void FN(pairs_out)(const int whole, ptrdiff_t rows, ptrdiff_t w, const v_t *acc, REAL *c,
                             ptrdiff_t ldc) {
RF_UNROLL
    for (int q = 0; q < FN(pair_rows) / 2; q++) {
        const v_t v = v_apart(acc[q]);
        if (whole || 2 * q < rows) v_storen(c + 2 * q * ldc, w, v);
        if (whole || 2 * q + 1 < rows) v_storen(c + (2 * q + 1) * ldc, w, v_upper(v));
    }
}

/* C = A B or C + A B for w <= VL / 2 columns. */
static RF_ONCE void FN(pair_product)(ptrdiff_t m, ptrdiff_t w, ptrdiff_t k, const REAL *a, ptrdiff_t lda,
                                     const REAL *b, ptrdiff_t ldb, int add, REAL *c, ptrdiff_t ldc) {
#define RF_PAIR_TILE(whole, rows)                                                               \
    do {                                                                                        \
        v_t acc[FN(pair_rows) / 2];                                                             \
        if (add) FN(pairs_in)(whole, rows, w, c, ldc, acc);                                     \
        else for (int q = 0; q < FN(pair_rows) / 2; q++) acc[q] = v_zero();                     \
        FN(pair_chains)(whole, rows, k, a, lda, b, ldb, w, acc);                                \
        FN(pairs_out)(whole, rows, w, acc, c, ldc);                                             \
    } while (0)
    ptrdiff_t i = 0;
    for (; i + FN(pair_rows) <= m; i += FN(pair_rows)) {
        RF_PAIR_TILE(1, FN(pair_rows));
        a += FN(pair_rows) * lda, c += FN(pair_rows) * ldc;
    }
    if (i < m) RF_PAIR_TILE(0, m - i);
#undef RF_PAIR_TILE
}
#endif

static void KN(gemm)(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const REAL *a, ptrdiff_t ars,
                     ptrdiff_t acs, const REAL *b, ptrdiff_t row, int add, REAL *c, ptrdiff_t ldc) {
    const ptrdiff_t ldb = row ? row : RF_PANEL, panel = row ? RF_PANEL : RF_PANEL * k;
    REAL *columns = rf_scratch(), *side = columns + FN(gemm_kt) * FN(gemm_nc);
    if (k == 0 && !add)
        for (ptrdiff_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
#if VL > 1
    if (acs == 1 && n <= RF_NARROW && m >= VL) {
        const ptrdiff_t rows = m / VL * VL;
        FN(narrow)(rows, n, k, a, ars, b, ldb, add, c, ldc);
        m -= rows, a += rows * ars, c += rows * ldc;
    }
#endif
#if RF_PAIRS
    if (acs == 1 && n <= VL / 2 && m > 6) {
        FN(pair_product)(m, n, k, a, ars, b, ldb, add, c, ldc);
        return;
    }
#endif
    /* What is copied must be read often enough: A once per NC columns. */
    const int copy_b = row && FN(copies_columns)(m, k, row);
    const int copy_a = acs != 1 && n > FN(gemm_nc);
    const ptrdiff_t most = acs == 1 ? FN(gemm_kc) : FN(gemm_kt), cuts = (k + most - 1) / most;
    /* long rows of A may pass from the third cache, for every column block again; with a second cache of
     * 512 kB that is 7 to 10 % slower than reading packed B again for every 256 rows */
    const ptrdiff_t parts = acs == 1 && k >= 128 && (row || !RF_SHARED) ? m > 0 : (m + FN(gemm_mc) - 1) / FN(gemm_mc);
    for (ptrdiff_t cut = 0, p = 0, kc; cut < cuts; cut++, p += kc) {
        kc = (k - p + cuts - cut - 1) / (cuts - cut);
        const int plus = add || p > 0;
        for (ptrdiff_t part = 0, i0 = 0, mc; part < parts; part++, i0 += mc) {
            mc = (m - i0 + parts - part - 1) / (parts - part);
            const int lines = RF_REGISTERS == 32 && copy_a && ars == 1;
            const ptrdiff_t high = n <= VL && !copy_a ? RF_MOST_ROWS : 6;
            const ptrdiff_t blocks = lines ? (mc + RF_TILE - 1) / RF_TILE * 3 : (mc + high - 1) / high;
            const ptrdiff_t least = mc / blocks, larger = mc % blocks;
            /* one row block reads B once: no need to go through it in pieces */
            const ptrdiff_t nc = m > 6 ? FN(gemm_nc) : n;
            if (lines) FN(pack_lines)(mc, kc, a + i0 + p * acs, acs, side);
            else if (copy_a) FN(pack_rows)(mc, blocks, kc, a + i0 * ars + p * acs, ars, acs, side);
            for (ptrdiff_t j = 0; j < n; j += nc) {
                const ptrdiff_t w = n - j < nc ? n - j : nc;
                const REAL *bj = b + j / RF_PANEL * panel + j % RF_PANEL + p * ldb;
                ptrdiff_t ld = ldb, apart = panel;
                if (copy_b) {
                    FN(pack_columns)(w, kc, bj, ldb, columns);
                    bj = columns, ld = RF_PANEL, apart = kc * RF_PANEL;
                }
                for (ptrdiff_t block = 0, i = 0, rows; block < blocks; block++, i += rows) {
                    rows = FN(block_rows)(least, larger, block);
                    const REAL *ai = copy_a ? side + i * kc : a + (i0 + i) * ars + p * acs;
                    ptrdiff_t rs = copy_a ? 1 : ars, cs = copy_a ? rows : acs;
                    if (lines) { /* 16 rows are 6, 5 and 5 */
                        const ptrdiff_t first = block / 3 * RF_TILE;
                        const ptrdiff_t left = mc - first < RF_TILE ? mc - first : RF_TILE;
                        const ptrdiff_t tiles = (left + 5) / 6, tile = block % 3;
                        rows = tile < tiles ? FN(block_rows)(left / tiles, left % tiles, tile) : 0;
                        ai = side + first * (kc + 1) + (i - first), cs = RF_TILE;
                    }
                    REAL *ci = c + (i0 + i) * ldc + j;
#define RF_ROWS(R, NV) \
    case R: FN(gemm_rows)(R, NV, w, kc, ai, rs, cs, bj, ld, apart, plus, ci, ldc); break;
                    switch (rows) {
                        RF_ROWS(1, FN(nv1))
                        RF_ROWS(2, FN(nv2))
                        RF_ROWS(3, FN(nv4))
                        RF_ROWS(4, FN(nv4))
                        RF_ROWS(5, FN(nv6))
                        RF_ROWS(6, FN(nv6))
#if RF_MOST_ROWS == 8
                        RF_ROWS(7, 1)
                        RF_ROWS(8, 1)
#endif
                    }
#undef RF_ROWS
                }
            }
        }
    }
}
#undef RF_NARROW

#include "step_tmpl.h"

/* out: [n,m] = the transpose of a: [m,n] */
static void KN(transpose)(ptrdiff_t m, ptrdiff_t n, const REAL *a, ptrdiff_t lda, REAL *out,
                          ptrdiff_t ldo) {
    for (ptrdiff_t i = 0; i < m; i += VL)
        for (ptrdiff_t j = 0; j < n; j += VL) {
            const REAL *from = a + i * lda + j;
            REAL *to = out + j * ldo + i;
            const ptrdiff_t rows = m - i < VL ? m - i : VL, columns = n - j < VL ? n - j : VL;
            if (rows == VL && columns == VL) {
                v_t t[VL];
RF_UNROLL
                for (int l = 0; l < VL; l++) t[l] = v_load(from + l * lda);
                v_transpose(t);
RF_UNROLL
                for (int l = 0; l < VL; l++) v_store(to + l * ldo, t[l]);
            } else {
                for (ptrdiff_t r = 0; r < rows; r++)
                    for (ptrdiff_t l = 0; l < columns; l++) to[l * ldo + r] = from[r * lda + l];
            }
        }
}

/* The transposes of the G matrices w [n,k], zeros past n, so that a step of k reads whole vectors:
 * G = 1: [ceil(n / RF_PANEL)][k][RF_PANEL]; more: [ceil(n / RF_TILE)][k][G][RF_TILE], gates side by
 * side, or [ceil(n / RF_TILE)][G][k][RF_TILE]. */
static void KN(pack)(ptrdiff_t G, ptrdiff_t n, ptrdiff_t k, ptrdiff_t first, ptrdiff_t last,
                     const REAL *w, ptrdiff_t ldw, REAL *out) {
    const ptrdiff_t wide = G == 1 ? RF_PANEL : RF_TILE, line = RF_SHARED ? wide : G * wide;
    for (ptrdiff_t j = first; j < last; j += wide)
        for (ptrdiff_t g = 0; g < G; g++)
            for (ptrdiff_t v = j; v < j + wide; v += VL) {
                const REAL *from = w + (g * n + v) * ldw;
                REAL *to = out + j * k * G + g * wide * (RF_SHARED ? k : 1) + (v - j);
                const ptrdiff_t rows = n - v < 0 ? 0 : n - v < VL ? n - v : VL;
                ptrdiff_t p = 0;
                if (rows == VL)
                    for (; p + VL <= k; p += VL) {
                        v_t t[VL];
RF_UNROLL
                        for (int l = 0; l < VL; l++) t[l] = v_load(from + l * ldw + p);
                        v_transpose(t);
RF_UNROLL
                        for (int l = 0; l < VL; l++) v_store(to + (p + l) * line, t[l]);
                    }
                for (; p < k; p++) {
                    REAL *at = to + p * line;
                    for (ptrdiff_t l = 0; l < VL; l++) at[l] = l < rows ? from[l * ldw + p] : 0;
                }
            }
}

/* ---- optimisers ----------------------------------------------------------------------------- */

static void KN(sgd_step)(ptrdiff_t n, const REAL *g, REAL *p, REAL *buf, REAL lr, REAL momentum,
                         REAL keep, REAL decay, int nesterov) {
    const v_t minus_lr = v_set1(-lr), mu = v_set1(momentum), k = v_set1(keep), wd = v_set1(decay);
    EACH(n, {
        const v_t x = LD(p);
        v_t d = v_fma(wd, x, LD(g));
        if (buf) {
            const v_t v = v_fma(mu, LD(buf), v_mul(k, d));
            ST(buf, v);
            d = nesterov ? v_fma(mu, v, d) : v;
        }
        ST(p, v_fma(minus_lr, d, x));
    });
}

static void KN(adam_step)(ptrdiff_t n, const REAL *g, REAL *p, REAL *m, REAL *v, REAL *vmax,
                          REAL step, REAL beta1, REAL beta2, REAL root, REAL eps, REAL decay,
                          REAL shrink) {
    const v_t b1 = v_set1(beta1), b2 = v_set1(beta2), c1 = v_set1(1 - beta1),
              c2 = v_set1(1 - beta2), r = v_set1(root), e = v_set1(eps), wd = v_set1(decay),
              keep = v_set1(shrink), minus_step = v_set1(-step);
    EACH(n, {
        v_t x = LD(p);
        const v_t d = v_fma(wd, x, LD(g));
        x = v_mul(keep, x);
        const v_t mn = v_fma(b1, LD(m), v_mul(c1, d));
        v_t vn = v_fma(b2, LD(v), v_mul(v_mul(c2, d), d));
        ST(m, mn);
        ST(v, vn);
        if (vmax) {
            vn = v_max(LD(vmax), vn);
            ST(vmax, vn);
        }
        const v_t below = v_add(v_div(v_sqrt(vn), r), e);
        ST(p, v_fma(minus_step, v_div(mn, below), x));
    });
}

static void KN(rmsprop_step)(ptrdiff_t n, const REAL *g, REAL *p, REAL *v, REAL *buf, REAL lr,
                             REAL alpha, REAL eps, REAL decay, REAL momentum) {
    const v_t a = v_set1(alpha), ca = v_set1(1 - alpha), e = v_set1(eps), wd = v_set1(decay),
              mu = v_set1(momentum), minus_lr = v_set1(-lr);
    EACH(n, {
        const v_t x = LD(p);
        const v_t d = v_fma(wd, x, LD(g));
        const v_t vn = v_fma(a, LD(v), v_mul(v_mul(ca, d), d));
        v_t u = v_div(d, v_add(v_sqrt(vn), e));
        ST(v, vn);
        if (buf) {
            u = v_fma(mu, LD(buf), u);
            ST(buf, u);
        }
        ST(p, v_fma(minus_lr, u, x));
    });
}

static void KN(adagrad_step)(ptrdiff_t n, const REAL *g, REAL *p, REAL *v, REAL lr, REAL eps,
                             REAL decay) {
    const v_t e = v_set1(eps), wd = v_set1(decay), minus_lr = v_set1(-lr);
    EACH(n, {
        const v_t x = LD(p);
        const v_t d = v_fma(wd, x, LD(g));
        const v_t vn = v_fma(d, d, LD(v));
        ST(v, vn);
        ST(p, v_fma(minus_lr, v_div(d, v_add(v_sqrt(vn), e)), x));
    });
}

/* ---- the table ------------------------------------------------------------------------------ */

#if RF_REAL_IS_F32
#define RF_TABLE rf_table_f32
#else
#define RF_TABLE rf_table_f64
#endif
#define RF_CAT(a, b) a##_##b
#define RF_CATX(a, b) RF_CAT(a, b)
#define RF_STR(a) #a
#define RF_STRX(a) RF_STR(a)

const RF_TABLE RF_CATX(RF_TABLE, RF_ISA) = {
    RF_STRX(RF_ISA),
#define KERNEL(result, name, arguments) KN(name),
#include "kernels.inc"
#undef KERNEL
};

#undef RF_STRX
#undef RF_STR
#undef RF_CATX
#undef RF_CAT
#undef RF_TABLE
#undef KN
