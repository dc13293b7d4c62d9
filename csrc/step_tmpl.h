/* A time step whole: a tile of R rows, all G gates and NV vectors of hidden units stays in registers
 * while k runs over the inputs and then over the hidden units, so that every pre-activation is one
 * chain of fma; then the gates are applied to the tile while it is in the nearest cache. Which tile
 * an element falls into changes nothing in its chain. */

/* Where the chains begin and what they run over; see kernels.inc. Rows of x lie `inputs` apart, of h ldh.
 * dense: the rows of a tile are to lie side by side, H units each. fetch: there are more weights than
 * the second cache holds. */
typedef struct {
    ptrdiff_t n, H, inputs, P, ldh, lds;
    const REAL *x, *wx, *start, *h, *wh, *bias_n;
    int dense, fetch;
    const REAL *ahead; /* inputs to fetch meanwhile, as many as a tile's, or NULL */
} FN(chain);

/* Rows of a tile; blocks of rows whose gates are applied together; room for their accumulators.
 * RF_SHARED: the registers do not hold all gates of a tile of more than three rows. Then its
 * pre-activations are a product like any other, of so many k at a time that a line of weights for each
 * of them, 16 kB, stays in the first cache while all rows pass. */
#undef RF_TOGETHER
#if RF_SHARED
#define RF_TOGETHER (RF_REAL_IS_F32 ? 12 : 6)
enum { FN(chain_rows) = 6, FN(chain_size) = RF_TOGETHER * 6 * 4 * RF_TILE, FN(chain_k) = 256 };
#elif VL == 1
#define RF_TOGETHER 4
enum { FN(chain_rows) = 3, FN(chain_size) = RF_TOGETHER * 16 };
#else
#define RF_TOGETHER 4
enum { FN(chain_rows) = 6, FN(chain_size) = RF_TOGETHER * 24 * VL };
#endif

/* One operand: acc[g] += a[.,p] m[p,first+g] for p ascending, Q of G gates; the third gate goes to
 * acc[last]. Of 16 registers 12 are accumulators and the others hold the weights of one p, or the
 * inputs of R rows. To fetch, with AVX-512: what comes 8 p later into the first cache, and a line of
 * the next tile into the second, of which each block of rows fetches another part. Where the weights
 * are near, that costs 4 to 8 % for nothing; AVX2 on Zen 3 lost 17 % by it where they are far. */
#define RF_CHAIN(k, a, lda, packed, last, inputs)                                               \
    do {                                                                                      \
        const REAL *ahead = (inputs);                                                         \
        const ptrdiff_t K = (k), row = (lda), wide = G == 1 ? RF_PANEL : RF_TILE;              \
        const ptrdiff_t line = RF_SHARED ? wide : G * wide, gate = RF_SHARED ? wide * K : wide; \
        const REAL *ap = (a) + b * row, *lower = ap + 3 * row, *mp[8];                         \
        RF_UNROLL for (int v = 0; v < NV; v++)                                                \
            mp[v] = (packed) + first * gate                                                   \
                    + (NV * VL <= RF_TILE ? j / wide * wide * K * G + j % wide + v * VL       \
                       : RF_SHARED ? (j / wide + v * VL / wide) * wide * K * G + v * VL % wide \
                                   : (j + v * VL) / wide * wide * K * G + (j + v * VL) % wide); \
        const REAL *next = (packed) + follow / wide * wide * K * G                            \
                           + block % (G * wide / RF_LINE) * K * RF_LINE;                      \
        if (RF_REGISTERS == 32 && R > RF_FEW_ROWS && s->fetch) {                              \
            if (ahead) { RF_CHAIN_LOOP(1, last, 1) } else { RF_CHAIN_LOOP(1, last, 0) }       \
        } else if (RF_REGISTERS == 32 && R > RF_FEW_ROWS && ahead) {                          \
            RF_CHAIN_LOOP(0, last, 1)                                                         \
        } else {                                                                              \
            RF_CHAIN_LOOP(0, last, 0)                                                         \
        }                                                                                     \
    } while (0)
#define RF_CHAIN_LOOP(fetch, last, with_inputs)                                               \
    RF_TWICE for (ptrdiff_t p = 0; p < K; p++, ap++, lower++) {                               \
        v_t m[4], from[6];                                                                    \
        if (with_inputs) RF_FETCH_NEAR(ahead + p * R);                                        \
        if (fetch) RF_FETCH_FAR(next + p * RF_LINE);                                          \
        if (RF_REGISTERS == 16)                                                               \
            RF_UNROLL for (int r = 0; r < R && R <= 3; r++) from[r] = v_set1(RF_ROW(r));      \
        RF_UNROLL for (int v = 0; v < NV; v++) {                                              \
            RF_UNROLL for (int g = 0; g < Q; g++) {                                           \
                m[g] = v_load(mp[v] + g * gate);                                              \
                if (RF_REGISTERS == 16 && R <= 3)                                             \
                    RF_UNROLL for (int r = 0; r < R; r++) RF_CHAIN_FMA(last);                 \
            }                                                                                 \
            if (fetch)                                                                        \
                RF_UNROLL for (int g = 0; g < Q; g++)                                         \
                    RF_FETCH_NEAR(mp[v] + 8 * line + g * gate);                               \
            if (RF_REGISTERS == 32 || R > 3)                                                  \
                RF_UNROLL for (int r = 0; r < R; r++) {                                       \
                    from[r] = v_set1(RF_ROW(r));                                              \
                    RF_UNROLL for (int g = 0; g < Q; g++) RF_CHAIN_FMA(last);                 \
                }                                                                             \
        }                                                                                     \
        RF_UNROLL for (int v = 0; v < NV; v++) mp[v] += line;                                 \
    }
#define RF_ROW(r) ((r) < 3 ? ap[(r) * row] : lower[((r) - 3) * row])
#define RF_CHAIN_FMA(last)                                                                    \
    do {                                                                                      \
        const int to = first + g == 2 ? (last) : g;                                           \
        acc[to][r][v] = v_fma(from[r], m[g], acc[to][r][v]);                                  \
    } while (0)

/* w elements from p on, zeros behind them; p NULL: zeros. */
RF_INLINE v_t FN(beginning)(const REAL *p, ptrdiff_t w) {
    return !p ? v_zero() : w == VL ? v_load(p) : v_loadn(p, w);
}

/* The pre-activations of Q of G gates from the first on, for R rows of NV vectors of units, of which
 * the last has w; follow: the first unit of the next tile. split: the x part of the third gate is kept
 * apart, behind the others (GRU with the reset after the product). */
RF_UNFOLD void FN(chains)(const int R, const int G, const int first, const int Q, const int NV,
                          const int split, ptrdiff_t w, const FN(chain) *s, ptrdiff_t follow,
                          ptrdiff_t block, ptrdiff_t b, ptrdiff_t j, v_t acc[4][6][8]) {
    const int n = 2 - first, apart = split && 0 <= n && n < Q; /* the third gate's place in acc */
RF_UNROLL
    for (int g = 0; g < Q + apart; g++)
RF_UNROLL
        for (int r = 0; r < R; r++)
RF_UNROLL
            for (int v = 0; v < NV; v++) {
                const REAL *from = s->start;
                if (apart && g == n) from = s->bias_n ? s->bias_n + j + v * VL : NULL;
                else if (from)
                    from += (b + r) * s->lds + (g == Q ? 2 : first + g) * s->H + j + v * VL;
                acc[g][r][v] = FN(beginning)(from, v < NV - 1 ? VL : w);
            }
    if (s->wx) RF_CHAIN(s->inputs, s->x, s->inputs, s->wx, apart ? Q : n, s->ahead);
    RF_CHAIN(s->P, s->h, s->ldh, s->wh, n, NULL);
}
#undef RF_CHAIN
#undef RF_CHAIN_LOOP
#undef RF_CHAIN_FMA
#undef RF_ROW

/* z: R rows of G + split gates, rows ldz and gates ldg apart. Rows closer than a vector: each store
 * covers what the one before it put behind its row. */
RF_UNFOLD void FN(chain_pass)(const int R, const int G, const int first, const int Q, const int NV,
                              const int split, ptrdiff_t w, const FN(chain) *s, ptrdiff_t follow,
                              ptrdiff_t block, ptrdiff_t b, ptrdiff_t j, REAL *z, ptrdiff_t ldz,
                              ptrdiff_t ldg) {
    v_t acc[4][6][8];
    FN(chains)(R, G, first, Q, NV, split, w, s, follow, block, b, j, acc);
    const int parts = Q + (split && first + Q == G);
RF_UNROLL
    for (int r = 0; r < R; r++)
RF_UNROLL
        for (int g = 0; g < parts; g++)
RF_UNROLL
            for (int v = 0; v < NV; v++)
                v_store(z + r * ldz + (first + g) * ldg + v * VL, acc[g][r][v]);
}
/* All gates at once, or as many as there are accumulators for. */
RF_UNFOLD void FN(chain_tile)(const int R, const int G, const int NV, const int split, ptrdiff_t w,
                              const FN(chain) *s, ptrdiff_t follow, ptrdiff_t block, ptrdiff_t b,
                              ptrdiff_t j, REAL *z, ptrdiff_t ldz, ptrdiff_t ldg) {
    const int most = RF_SHARED ? 12 / (R * NV) : G, passes = (G + most - 1) / most;
    const int Q = (G + passes - 1) / passes;
    FN(chain_pass)(R, G, 0, Q, NV, split, w, s, follow, block, b, j, z, ldz, ldg);
    if (Q < G)
        FN(chain_pass)(R, G, Q, G - Q, NV, split, w, s, follow, block, b, j, z, ldz, ldg);
}

#if RF_REGISTERS == 32
/* A tile of no more than half a vector of units: each vector has those of two rows. */
RF_UNFOLD void FN(chain_halves)(const int R, const int G, const int split, ptrdiff_t w,
                                const FN(chain) *s, ptrdiff_t b, ptrdiff_t j, REAL *z,
                                ptrdiff_t ldz, ptrdiff_t ldg) {
    const int pairs = (R + 1) / 2;
    v_t acc[4][3];
#define RF_LOWER (2 * q)
#define RF_UPPER (2 * q + 1 < R ? 2 * q + 1 : 2 * q)
RF_UNROLL
    for (int g = 0; g < G + split; g++)
RF_UNROLL
        for (int q = 0; q < pairs; q++) {
            const REAL *from = s->start;
            ptrdiff_t row = s->lds;
            if (split && g == 2) from = s->bias_n ? s->bias_n + j : NULL, row = 0;
            else if (from) from += b * row + (g == 3 && split ? 2 : g) * s->H + j;
            acc[g][q] = v_join(FN(beginning)(from ? from + RF_LOWER * row : NULL, w),
                               FN(beginning)(from ? from + RF_UPPER * row : NULL, w));
        }
/* As RF_CHAIN; the third gate's products go to acc[last]. */
#define RF_CHAIN(k, a, lda, packed, last)                                                     \
    do {                                                                                      \
        const ptrdiff_t K = (k), row = (lda);                                                 \
        const REAL *ap = (a) + b * row;                                                       \
        const REAL *mp = (packed) + j / RF_TILE * RF_TILE * K * G + j % RF_TILE;              \
        RF_TWICE for (ptrdiff_t p = 0; p < K; p++, ap++, mp += G * RF_TILE) {                 \
            v_t m[4];                                                                         \
            RF_UNROLL for (int g = 0; g < G; g++) m[g] = v_twice(mp + g * RF_TILE);           \
            RF_UNROLL for (int q = 0; q < pairs; q++) {                                       \
                const v_t from = v_set2(ap + RF_LOWER * row, ap + RF_UPPER * row);            \
                RF_UNROLL for (int g = 0; g < G; g++) {                                       \
                    const int to = g == 2 ? (last) : g;                                       \
                    acc[to][q] = v_fma(from, m[g], acc[to][q]);                               \
                }                                                                             \
            }                                                                                 \
        }                                                                                     \
    } while (0)
    if (s->wx) RF_CHAIN(s->inputs, s->x, s->inputs, s->wx, split ? 3 : 2);
    RF_CHAIN(s->P, s->h, s->ldh, s->wh, 2);
#undef RF_CHAIN
RF_UNROLL
    for (int q = 0; q < pairs; q++)
RF_UNROLL
        for (int g = 0; g < G + split; g++) {
            v_store_lower(z + RF_LOWER * ldz + g * ldg, acc[g][q]);
            if (RF_UPPER > RF_LOWER) v_store_upper(z + RF_UPPER * ldz + g * ldg, acc[g][q]);
        }
#undef RF_LOWER
#undef RF_UPPER
}
#if RF_PAIRS
/* The same for one gate, which has too few accumulators for it: up to pair_rows rows, in pairs. */
RF_INLINE void FN(chain_pairs_of)(const int whole, ptrdiff_t rows, ptrdiff_t w, const FN(chain) *s,
                                  ptrdiff_t b, ptrdiff_t j, REAL *z, ptrdiff_t ldz) {
    v_t acc[FN(pair_rows) / 2];
    if (s->start) FN(pairs_in)(whole, rows, w, s->start + b * s->lds + j, s->lds, acc);
    else for (int q = 0; q < FN(pair_rows) / 2; q++) acc[q] = v_zero();
    const ptrdiff_t panel = j / RF_PANEL * RF_PANEL, in = j % RF_PANEL;
    if (s->wx)
        FN(pair_chains)(whole, rows, s->inputs, s->x + b * s->inputs, s->inputs,
                        s->wx + panel * s->inputs + in, RF_PANEL, w, acc);
    FN(pair_chains)(whole, rows, s->P, s->h + b * s->ldh, s->ldh, s->wh + panel * s->P + in, RF_PANEL, w,
                    acc);
    FN(pairs_out)(whole, rows, w, acc, z, ldz);
}
static RF_ONCE void FN(chain_pairs)(ptrdiff_t rows, ptrdiff_t w, const FN(chain) *s, ptrdiff_t b,
                                    ptrdiff_t j, REAL *z, ptrdiff_t ldz) {
    if (rows == FN(pair_rows)) FN(chain_pairs_of)(1, rows, w, s, b, j, z, ldz);
    else FN(chain_pairs_of)(0, rows, w, s, b, j, z, ldz);
}
#endif
#define RF_HALVES(R, G, split)                                                                \
    else if (R > 1 && G > 1 && w <= VL / 2)                                                   \
        FN(chain_halves)(R, G, split, w, s, b, j, z, ldz, ldg);
#else
#define RF_HALVES(R, G, split)
#endif

#if RF_SHARED
/* A tile of hidden units that begins at j, and a range of the K inputs and hidden units. */
typedef struct {
    ptrdiff_t j, x0, x1, h0, h1;
} FN(part);

RF_INLINE FN(part) FN(part_of)(const FN(chain) *s, ptrdiff_t j, ptrdiff_t cut, ptrdiff_t cuts) {
    const ptrdiff_t I = s->wx ? s->inputs : 0, K = I + s->P;
    const ptrdiff_t k0 = K * cut / cuts, k1 = K * (cut + 1) / cuts;
    const ptrdiff_t x0 = k0 < I ? k0 : I, x1 = k1 < I ? k1 : I;
    return (FN(part)){j, x0, x1, k0 - x0, k1 - x1};
}

/* The weights of gate g of the 16 units from j on, in `packed` of K rows. */
RF_INLINE const REAL *FN(panel_of)(const int G, ptrdiff_t K, const REAL *packed, ptrdiff_t j, int g) {
    return packed + (j / RF_TILE * G + g) * K * RF_TILE;
}

/* What to fetch while k rows of a gate's panel are read: the next part's rows of it, from the row on
 * that is as far into that part. */
RF_INLINE const REAL *FN(next_of)(const int G, const FN(chain) *s, const FN(part) *q, ptrdiff_t j,
                                  int g, ptrdiff_t row) {
    const ptrdiff_t x = q->x1 - q->x0;
    if (row < x) return FN(panel_of)(G, s->inputs, s->wx, j, g) + (q->x0 + row) * RF_TILE;
    return FN(panel_of)(G, s->P, s->wh, j, g) + (q->h0 + row - x) * RF_TILE;
}

/* Blocks of rows as RF_EACH_TILE counts them: from `block` to `end`; the first begins at row b. */
typedef struct {
    ptrdiff_t block, end, b, least, larger;
} FN(blocks);

/* Adds k of one operand to a part's pre-activations z, or, not `add`, puts them there; gates lie `wide`
 * apart: rows row0.. of the panels in `packed`, of K rows, times columns of a, as far as `row` into the
 * part. A panel is in the first cache while all rows pass. */
static void FN(part_product)(const int G, const int split, const int wide, const FN(chain) *s,
                             ptrdiff_t j, ptrdiff_t row, const FN(part) *next, FN(blocks) q,
                             ptrdiff_t k, const REAL *a, ptrdiff_t lda, ptrdiff_t K,
                             const REAL *packed, ptrdiff_t row0, int add, REAL *z, ptrdiff_t ldz) {
    for (int g = 0; g < G; g++)
        for (ptrdiff_t v = 0; v < wide; v += 2 * VL) {
            const ptrdiff_t in = v % RF_TILE;
            const REAL *w = FN(panel_of)(G, K, packed, j + v, g) + row0 * RF_TILE + in;
            const REAL *ahead = s->fetch ? FN(next_of)(G, s, next, next->j + v, g, row) + in * k : NULL;
            REAL *to = z + (split && g == 2 ? 3 : g) * wide + v;
            ptrdiff_t m;
            for (ptrdiff_t block = q.block, i = 0; block < q.end; block++, i += m, ahead = NULL) {
                m = FN(block_rows)(q.least, q.larger, block);
                if (G == 1 && v + VL == wide)
                    FN(one_vector)(m, k, a + (q.b + i) * lda + row0, lda, 1, w, add, ahead,
                                   to + i * ldz, ldz);
                else
                    FN(two_vectors)(m, k, a + (q.b + i) * lda + row0, lda, 1, w, add, ahead,
                                    to + i * ldz, ldz);
            }
        }
}

/* A part's pre-activations of `units` units in z, whose gates lie `wide` apart; returns the number of
 * rows. */
static ptrdiff_t FN(shared_tile)(const int G, const int split, const int wide, ptrdiff_t units,
                                 FN(part) p, FN(part) next, FN(blocks) q, const FN(chain) *s, REAL *z,
                                 ptrdiff_t ldz) {
    const ptrdiff_t x_k = p.x1 - p.x0, h_k = p.h1 - p.h0;
    const int begins = p.x0 + p.h0 == 0, add = !begins || split || s->start;
    ptrdiff_t n = 0;
    for (ptrdiff_t block = q.block; block < q.end; block++)
        n += FN(block_rows)(q.least, q.larger, block);
    for (ptrdiff_t r = 0; r < n && begins && add; r++)
        for (int g = 0; g < G + split; g++) {
            const REAL *from = s->start;
            if (split && g == 2) from = s->bias_n ? s->bias_n + p.j : NULL;
            else if (from) from += (q.b + r) * s->lds + (g == 3 && split ? 2 : g) * s->H + p.j;
            REAL *const to = z + r * ldz + g * wide;
            if (G == 1 && units < wide)
                for (int v = 0; v < wide; v += VL)
                    v_store(to + v, FN(beginning)(from ? from + v : NULL,
                                                  units - v < VL ? units - v : VL));
            else if (from)
                for (int v = 0; v < wide; v += VL) v_store(to + v, v_load(from + v));
            else
                for (int v = 0; v < wide; v += VL) v_store(to + v, v_zero());
        }
    if (x_k)
        FN(part_product)(G, split, wide, s, p.j, 0, &next, q, x_k, s->x, s->inputs, s->inputs, s->wx,
                         p.x0, add, z, ldz);
    if (h_k)
        FN(part_product)(G, 0, wide, s, p.j, x_k, &next, q, h_k, s->h, s->ldh, s->P, s->wh, p.h0,
                         add || x_k, z, ldz);
    return n;
}
#endif

/* Register tiles: the vectors of units that fit beside 1, 2, 3 and more rows, for one gate, for
 * two, three and four, and for three of which one is split. */
#if VL == 1
#define RF_NV1 8, 4, 4, 4
#define RF_NV2 4, 2, 2, 2
#define RF_NV3 4, 2, 1, 1
#define RF_NV4 2, 1, 1, 1
#elif RF_REGISTERS == 16
#define RF_NV1 8, 4, 4, 8
#define RF_NV2 4, 4, 2, RF_TILE / VL
#define RF_NV3 4, 2, 2, RF_TILE / VL
#define RF_NV4 2, 2, 2, RF_TILE / VL
#else
#define RF_NV1 8, 8, 4, 4
#define RF_NV2 4, 4, 2, 2
#define RF_NV3 4, 2, 2, 1
#define RF_NV4 4, 2, 2, 1
#endif

#define RF_CHAIN_FUNCTION(name, G, split, NV1, NV2, NV3, NV4)                                  \
    static void FN(name)(ptrdiff_t rows, int size, ptrdiff_t w, const FN(chain) *s,            \
                         ptrdiff_t follow, ptrdiff_t block, ptrdiff_t b, ptrdiff_t j,         \
                         REAL *z, ptrdiff_t ldz, ptrdiff_t ldg) {                              \
        RF_PAIRS_OF(G)                                                                         \
        switch (rows) {                                                                        \
            RF_ROWS(1, G, NV1, split)                                                          \
            RF_ROWS(2, G, NV2, split)                                                          \
            RF_ROWS(3, G, NV3, split)                                                          \
            RF_MORE_ROWS(G, NV4, split)                                                        \
        }                                                                                      \
    }                                                                                          \
    enum { FN(name##_gates) = G + split, FN(name##_products) = G };                            \
    RF_INLINE int FN(name##_nv)(ptrdiff_t n) {                                                 \
        return n == 1 ? NV1 : n == 2 ? NV2 : n == 3 ? NV3 : NV4;                               \
    }
#define RF_ROWS(R, G, NV, split)                                                               \
    case R:                                                                                    \
        if (size == NV && NV > 1 && w == VL && !(RF_SHARED && R > 3))                          \
            RF_TILE_OF(R, G, NV, split, VL)                                                    \
        RF_REST(R, G, NV, split)                                                               \
        else if (size == 2 && NV > 2) RF_TILE_OF(R, G, 2, split, VL)                           \
        else if (w == VL) RF_TILE_OF(R, G, 1, split, VL)                                       \
        RF_HALVES(R, G, split)                                                                 \
        else RF_TILE_OF(R, G, 1, split, w)                                                     \
        break;
#define RF_TILE_OF(R, G, NV, split, w)                                                         \
    FN(chain_tile)(R, G, NV, split, w, s, follow, block, b, j, z, ldz, ldg);
/* What is left of one row's units is one tile: fewer accumulators wait for each other. */
#define RF_REST(R, G, NV, split)                                                               \
    else if (R == 1 && size > 1) switch (size) {                                               \
        RF_REST_OF(2, G, NV, split)                                                            \
        RF_REST_OF(3, G, NV, split)                                                            \
        RF_REST_OF(4, G, NV, split)                                                            \
        RF_REST_OF(5, G, NV, split)                                                            \
        RF_REST_OF(6, G, NV, split)                                                            \
        RF_REST_OF(7, G, NV, split)                                                            \
        RF_REST_OF(8, G, NV, split)                                                            \
        }
#define RF_REST_OF(size, G, NV, split)                                                         \
    case size:                                                                                 \
        if (size <= NV) RF_TILE_OF(1, G, size, split, w)                                       \
        break;
#if VL > 1
#define RF_MORE_ROWS(G, NV, split) \
    RF_ROWS(4, G, NV, split) RF_ROWS(5, G, NV, split) RF_ROWS(6, G, NV, split)
#else
#define RF_MORE_ROWS(G, NV, split)
#endif
#define RF_CHAINS(...) RF_CHAIN_FUNCTION(__VA_ARGS__)
#if RF_PAIRS
#define RF_PAIRS_OF(G)                                                                         \
    if (G == 1 && rows > FN(chain_rows)) {                                                     \
        FN(chain_pairs)(rows, w, s, b, j, z, ldz);                                             \
        return;                                                                                \
    }
#else
#define RF_PAIRS_OF(G)
#endif
RF_CHAINS(chain1, 1, 0, RF_NV1)
RF_CHAINS(chain2, 2, 0, RF_NV2)
RF_CHAINS(chain3, 3, 0, RF_NV3)
RF_CHAINS(chain3_split, 3, 1, RF_NV4)
RF_CHAINS(chain4, 4, 0, RF_NV4)
#undef RF_CHAINS
#undef RF_PAIRS_OF
#undef RF_MORE_ROWS
#undef RF_ROWS
#undef RF_REST
#undef RF_REST_OF
#undef RF_TILE_OF
#undef RF_CHAIN_FUNCTION
#undef RF_HALVES
#undef RF_NV1
#undef RF_NV2
#undef RF_NV3
#undef RF_NV4

/* Runs its body for `rows` rows from b and `units` units from j, their pre-activations in z, rows
 * ldz and gates ldg apart. Row blocks are inside: a tile's weights stay near while they pass; the
 * gates of several blocks are applied together, which is for layers of few units: with 8 a step is
 * 1.14 times as fast, with many no different. Where a tile has more than two vectors, what is left of the
 * units goes in twos. `back`: from the last tile to the first, so that a step
 * begins with the weights that the step before it, which went forth, has left in the caches. */
#undef RF_SHARED_TILE
#if RF_SHARED
#define RF_SHARED_TILE(name, s)                                                                \
    const ptrdiff_t K = ((s)->wx ? (s)->inputs : 0) + (s)->P;                                  \
    const ptrdiff_t cuts = (K + FN(chain_k) - 1) / FN(chain_k);                                 \
    /* constants, with which loops over a tile's vectors unroll: 2 % of a step of 8 rows */     \
    const int most = FN(name##_nv)(FN(chain_rows) + 1) * VL;                                    \
    const int split = FN(name##_gates) - FN(name##_products);                                   \
    const int whole = FN(name##_products) > 1 || units == most;                                 \
    const FN(blocks) q = {done, end, b, least, larger};                                        \
    for (ptrdiff_t cut = 0; cut < cuts; cut++) {                                               \
        const int end_of_tile = cut + 1 == cuts;                                               \
        const FN(part) part = FN(part_of)(s, j, cut, cuts);                                     \
        const FN(part) next =                                                                   \
            FN(part_of)(s, end_of_tile ? follow : j, end_of_tile ? 0 : cut + 1, cuts);          \
        if (whole)                                                                              \
            rows = FN(shared_tile)(FN(name##_products), split, most, most, part, next, q, (s), z, ldz); \
        else                                                                                    \
            rows = FN(shared_tile)(FN(name##_products), split,                                  \
                                   (int)((units + VL - 1) / VL * VL), units, part, next, q, (s), z, \
                                   ldz);                                                        \
    }
#else
#define RF_SHARED_TILE(name, s)
#endif

#ifndef RF_EACH_TILE
#define RF_EACH_TILE(name, s, from, to, back, ...)                                             \
    do {                                                                                       \
        _Alignas(64) REAL z[FN(chain_size)];                                                   \
        /* all units in half a vector, one gate: more rows in a tile */                         \
        const ptrdiff_t n = (s)->n, high = RF_PAIRS && FN(name##_gates) == 1 && (to) - (from) <= VL / 2 \
                                               ? VL : FN(chain_rows);                            \
        const ptrdiff_t blocks = (n + high - 1) / high;                                          \
        const ptrdiff_t least = blocks ? n / blocks : 0, larger = blocks ? n % blocks : 0;      \
        const ptrdiff_t ldw = FN(name##_nv)(blocks == 1 ? n : FN(chain_rows) + 1) * VL;         \
        /* an RNN's shared tile may have fewer units, if more than a vector */                 \
        const ptrdiff_t fewer = RF_SHARED && FN(name##_products) == 1 && n > 3 ? ldw - VL - 1 : 0; \
        const ptrdiff_t wides = ldw > VL ? ((to) - (from) + fewer) / ldw : 0;                   \
        const ptrdiff_t rest = (to) - (from) - wides * ldw, left = rest > 0 ? rest : 0;         \
        const int together = n == 1 && VL > 1; /* what is left */                               \
        /* Inputs of a step that the CPU does not fetch by itself: a tile's first units fetch those of  \
         * the next rows, a line now and then, as many at once would keep others waiting. */    \
        const int new_inputs = RF_REGISTERS == 32 && (s)->wx                                    \
                               && n * (s)->inputs * (ptrdiff_t)sizeof(REAL) >= 1 << 14;         \
        const ptrdiff_t pairs = !together && ldw > 2 * VL ? left / (2 * VL) : 0;               \
        const ptrdiff_t tiles = wides + (together ? left > 0                                    \
                                                  : pairs + (left - pairs * 2 * VL + VL - 1) / VL); \
        for (ptrdiff_t i = 0; i < tiles; i++) {                                                \
            const ptrdiff_t tile = (back) ? tiles - 1 - i : i;                                  \
            const ptrdiff_t more = tile - wides, single = more < pairs ? 0 : more - pairs;      \
            const int size = more < 0    ? (int)(ldw / VL) /* vectors */                        \
                             : together  ? (int)((left + VL - 1) / VL)                          \
                                         : 1 + (more < pairs);                                  \
            const int wide = more < 0 && ldw > VL;                                              \
            const ptrdiff_t ldg = size > 1     ? size * VL                                      \
                                  : (s)->dense ? RF_TOGETHER * FN(chain_rows) * VL             \
                                               : VL;                                           \
            const ptrdiff_t ldz = (s)->dense ? (s)->H : FN(name##_gates) * ldg;                \
            const ptrdiff_t j = (from) + (wide ? tile * ldw                                     \
                                               : wides * ldw + (more + (more - single)) * VL);   \
            const ptrdiff_t units = (to) - j < ldg ? (to) - j : ldg;                            \
            const ptrdiff_t last = units - (size - 1) * VL; /* units of the last vector */      \
            /* the tile after this one; none: itself, as a prefetch of an unmapped page is slow */ \
            const ptrdiff_t follow = i + 1 == tiles ? j : (back) ? j - VL : j + ldg;            \
            for (ptrdiff_t done = 0, b = 0, rows; done < blocks; done += RF_TOGETHER, b += rows) { \
                const ptrdiff_t end = done + RF_TOGETHER < blocks ? done + RF_TOGETHER : blocks; \
                rows = 0;                                                                      \
                if (RF_SHARED && wide && n > 3) {                                              \
                    RF_SHARED_TILE(name, s)                                                    \
                } else {                                                                       \
                    for (ptrdiff_t block = done; block < end; block++) {                       \
                        const ptrdiff_t m_rows = FN(block_rows)(least, larger, block);         \
                        if (new_inputs)                                                        \
                            (s)->ahead = i || block + 1 == blocks ? NULL                         \
                                         : (s)->x + (b + rows + m_rows) * (s)->inputs;         \
                        FN(name)(m_rows, size, last < VL ? last : VL, (s), follow, block,      \
                                 b + rows, j, z + rows * ldz, ldz, ldg);                       \
                        rows += m_rows;                                                        \
                    }                                                                          \
                }                                                                              \
                __VA_ARGS__                                                                    \
            }                                                                                  \
        }                                                                                      \
    } while (0)
#endif

/* Fewer units than a vector has: then a block of rows is whole vectors, and h and c are in any case. */
RF_INLINE int FN(is_dense)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last) {
    return H < VL && n > 1 && !first && last == H;
}

/* Whether weights of G gates are more than a second cache holds, of CPUs with AVX-512 and of others. Zen 5,
 * which looks ahead, reads 2 MB without prefetches 3 to 5 % faster, 6 MB 8 % more slowly. */
RF_INLINE int FN(is_far)(int G, ptrdiff_t H, ptrdiff_t inside, ptrdiff_t P) {
    return (size_t)(G * H * (inside + P)) * sizeof(REAL)
           > (size_t)(RF_SHARED || rf_looks_ahead ? 1 << 21 : 1 << 20);
}

/* Rows of G gates of H units from gates that each have their rows side by side, ldg apart. */
static void FN(spread)(ptrdiff_t rows, ptrdiff_t G, ptrdiff_t H, const REAL *from, ptrdiff_t ldg,
                       REAL *to, ptrdiff_t ldt) {
    for (ptrdiff_t b = 0; b < rows; b++)
        for (ptrdiff_t g = 0; g < G; g++)
            v_storen(to + b * ldt + g * H, H, v_loadn(from + g * ldg + b * H, H));
}

static void KN(rnn_step)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                         rf_act act, ptrdiff_t inputs, const REAL *x, const REAL *wx, const REAL *start,
                         ptrdiff_t lds, ptrdiff_t P, const REAL *h, const REAL *wh, REAL *out,
                         REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {n, H, inputs, P, P, lds, x, wx, start, h, wh, NULL,
                   FN(is_dense)(n, H, first, last), FN(is_far)(1, H, wx ? inputs : 0, P), NULL};
    RF_EACH_TILE(chain1, &s, first, last, back, {
        REAL *const h_t = out + b * H + j;
        REAL *const y_t = y ? y + b * ldy + j : NULL;
        if (s.dense) {
            FN(rnn_units)(1, rows * H, act, z, 0, h_t, 0, ldy == H ? y_t : NULL, 0);
            if (y && ldy != H) FN(spread)(rows, 1, H, h_t, 0, y_t, ldy);
        } else {
            FN(rnn_units)(rows, units, act, z, ldz, h_t, H, y_t, ldy);
        }
    });
}

static void KN(lstm_step)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                          const rf_lstm *opt, ptrdiff_t inputs, const REAL *x, const REAL *wx,
                          const REAL *start, ptrdiff_t lds, ptrdiff_t P, const REAL *h,
                          const REAL *wh, const REAL *peephole, REAL *c, REAL *gates,
                          REAL *tanh_c, REAL *out, REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {n, H, inputs, P, P, lds, x, wx, start, h, wh, NULL,
                   !peephole && FN(is_dense)(n, H, first, last),
                   FN(is_far)(opt->coupled ? 3 : 4, H, wx ? inputs : 0, P), NULL};
#define RF_LSTM_UNITS(G)                                                                       \
    const ptrdiff_t at = b * H + j;                                                            \
    REAL *const gates_t = gates ? gates + b * G * H + j : NULL;                                \
    REAL *const tanh_t = tanh_c ? tanh_c + at : NULL;                                          \
    REAL *const y_t = y ? y + b * ldy + j : NULL;                                              \
    if (s.dense) {                                                                             \
        FN(lstm_units)(1, rows * H, opt, z, 0, ldg, NULL, c + at, z, 0, ldg, tanh_t, out + at, \
                       0, ldy == H ? y_t : NULL, 0);                                           \
        if (gates) FN(spread)(rows, G, H, z, ldg, gates_t, G * H);                             \
        if (y && ldy != H) FN(spread)(rows, 1, H, out + at, 0, y_t, ldy);                      \
    } else {                                                                                   \
        FN(lstm_units)(rows, units, opt, z, ldz, ldg, peephole ? peephole + j : NULL,          \
                       c + at, gates ? gates_t : z, gates ? G * H : ldz, gates ? H : ldg,      \
                       tanh_t, out + at, H, y_t, ldy);                                         \
    }
    if (opt->coupled) RF_EACH_TILE(chain3, &s, first, last, back, { RF_LSTM_UNITS(3) });
    else RF_EACH_TILE(chain4, &s, first, last, back, { RF_LSTM_UNITS(4) });
#undef RF_LSTM_UNITS
}

static void KN(gru_step)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                         rf_act gate, ptrdiff_t inputs, const REAL *x, const REAL *wx, const REAL *start,
                         ptrdiff_t lds, const REAL *bias_n, const REAL *hm, const REAL *wh,
                         const REAL *h, REAL *gates, REAL *u, REAL *out, REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {n, H, inputs, H, H, lds, x, wx, start, hm, wh, bias_n,
                   FN(is_dense)(n, H, first, last), FN(is_far)(3, H, wx ? inputs : 0, H), NULL};
    RF_EACH_TILE(chain3_split, &s, first, last, back, {
        const ptrdiff_t at = b * H + j;
        REAL *const gates_t = gates ? gates + b * 3 * H + j : NULL;
        REAL *const u_t = u ? u + at : NULL;
        REAL *const y_t = y ? y + b * ldy + j : NULL;
        if (s.dense) {
            FN(gru_units)(1, rows * H, gate, z, 0, ldg, z + 3 * ldg, z, 0, ldg, u_t, h + at,
                          out + at, 0, ldy == H ? y_t : NULL, 0);
            if (gates) FN(spread)(rows, 3, H, z, ldg, gates_t, 3 * H);
            if (y && ldy != H) FN(spread)(rows, 1, H, out + at, 0, y_t, ldy);
        } else {
            FN(gru_units)(rows, units, gate, z, ldz, ldg, z + 3 * ldg, gates ? gates_t : z,
                          gates ? 3 * H : ldz, gates ? H : ldg, u_t, h + at, out + at, H, y_t,
                          ldy);
        }
    });
}

static void KN(gru_before_gates_step)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last,
                                      int back, rf_act gate, ptrdiff_t inputs, const REAL *x,
                                      const REAL *wx, const REAL *start, ptrdiff_t lds,
                                      const REAL *h, const REAL *wh, REAL *rt, REAL *zt,
                                      ptrdiff_t ldr, REAL *rh) {
    FN(chain) s = {n, H, inputs, H, H, lds, x, wx, start, h, wh, NULL,
                   FN(is_dense)(n, H, first, last), FN(is_far)(2, H, wx ? inputs : 0, H), NULL};
    RF_EACH_TILE(chain2, &s, first, last, back, {
        const ptrdiff_t at = b * H + j;
        REAL *const r_t = rt ? rt + b * ldr + j : NULL;
        REAL *const z_t = zt + b * ldr + j;
        if (s.dense) {
            FN(gru_before_gates_rows)(1, rows * H, gate, z, 0, ldg, h + at, z, z + ldg, 0,
                                      rh + at, 0);
            if (rt) FN(spread)(rows, 1, H, z, 0, r_t, ldr);
            FN(spread)(rows, 1, H, z + ldg, 0, z_t, ldr);
        } else {
            FN(gru_before_gates_rows)(rows, units, gate, z, ldz, ldg, h + at, r_t, z_t, ldr,
                                      rh + at, H);
        }
    });
}

static void KN(gru_before_output_step)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last,
                                       int back, ptrdiff_t inputs, const REAL *x, const REAL *wx,
                                       const REAL *start, ptrdiff_t lds, const REAL *rh,
                                       const REAL *wh, const REAL *zt, REAL *nt, ptrdiff_t ldr,
                                       const REAL *h, REAL *out, REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {n, H, inputs, H, H, lds, x, wx, start, rh, wh, NULL, 0,
                   FN(is_far)(1, H, wx ? inputs : 0, H), NULL};
    RF_EACH_TILE(chain1, &s, first, last, back, {
        FN(gru_before_output_rows)(rows, units, z, ldz, zt + b * ldr + j,
                                   nt ? nt + b * ldr + j : NULL, ldr, h + b * H + j,
                                   out + b * H + j, H, y ? y + b * ldy + j : NULL, ldy);
    });
}

/* ---- a step of BPTT: the product that dE/dh waits for, then the gates -------------------------- */

/* Runs its body for `rows` rows from b and `units` units from j with what comes from the future in d, rows
 * ldd apart: for the first m of n rows begin + a W, chains of k, else what `other` holds. */
#ifndef RF_FROM_FUTURE
#define RF_FROM_FUTURE(begin, other, ...)                                                      \
    do {                                                                                       \
        if (m > 0) {                                                                           \
            FN(chain) s = {m, H, 0, k, lda, H, NULL, NULL, (begin), a, w, NULL,          \
                           RF_PAIRS && H <= VL / 2 && FN(is_dense)(m, H, first, last),    \
                           FN(is_far)(1, H, 0, k), NULL};                                      \
            RF_EACH_TILE(chain1, &s, first, last, back, {                                      \
                const REAL *const d = z;                                                       \
                const ptrdiff_t ldd = ldz;                                                     \
                __VA_ARGS__                                                                    \
            });                                                                                \
        }                                                                                      \
        if (m < n) {                                                                           \
            const ptrdiff_t b = m, rows = n - m, j = first, units = last - first, ldd = H;     \
            const REAL *const d = (other) + b * H + j;                                         \
            __VA_ARGS__                                                                        \
        }                                                                                      \
    } while (0)
#endif

static void KN(rnn_backward)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                             ptrdiff_t m, ptrdiff_t k, const REAL *a, ptrdiff_t lda, const REAL *w,
                             rf_act act, const REAL *h, const REAL *dh, const REAL *dy,
                             ptrdiff_t ldy, REAL *da) {
    RF_FROM_FUTURE(NULL, dh, {
        FN(rnn_backward_rows)(rows, H, units, act, h + b * H + j, d, ldd,
                              dy ? dy + b * ldy + j : NULL, ldy, da + b * H + j);
    });
}

static void KN(lstm_backward)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                              ptrdiff_t m, ptrdiff_t k, const REAL *a, ptrdiff_t lda, const REAL *w,
                              const rf_lstm *opt, const REAL *gates, const REAL *peephole,
                              const REAL *c_prev, const REAL *tanh_c, const REAL *c, const REAL *dh,
                              const REAL *dy, ptrdiff_t ldy, REAL *dc, REAL *da) {
    const ptrdiff_t G = opt->coupled ? 3 : 4;
    RF_FROM_FUTURE(NULL, dh, {
        const ptrdiff_t at = b * H + j;
        FN(lstm_backward_units)(rows, H, units, opt, gates + b * G * H + j,
                                peephole ? peephole + j : NULL, c_prev + at, tanh_c + at,
                                c ? c + at : NULL, d, ldd, dy ? dy + b * ldy + j : NULL, ldy, dc + at,
                                da + b * G * H + j);
    });
}

static void KN(gru_backward)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last, int back,
                             ptrdiff_t m, ptrdiff_t k, const REAL *a, ptrdiff_t lda, const REAL *w,
                             rf_act gate, const REAL *gates, const REAL *u, const REAL *h_prev,
                             REAL *dh, const REAL *dy, ptrdiff_t ldy, REAL *dax, REAL *dah) {
    RF_FROM_FUTURE(dh, dh, {
        const ptrdiff_t at = b * H + j;
        const ptrdiff_t gate_at = b * 3 * H + j;
        FN(gru_backward_rows)(rows, H, units, gate, gates + gate_at, u + at, h_prev + at, d, ldd, dh + at,
                              dy ? dy + b * ldy + j : NULL, ldy, dax + gate_at, dah + gate_at);
    });
}

static void KN(gru_before_backward_output)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last,
                                           int back, ptrdiff_t m, ptrdiff_t k, const REAL *a,
                                           ptrdiff_t lda, const REAL *w, rf_act gate,
                                           const REAL *gates, const REAL *h_prev, REAL *dh,
                                           const REAL *dy, ptrdiff_t ldy, REAL *da) {
    RF_FROM_FUTURE(dh, dh, {
        const ptrdiff_t at = b * H + j;
        const ptrdiff_t gate_at = b * 3 * H + j;
        FN(gru_before_output_backward)(rows, H, units, gate, gates + gate_at, h_prev + at, d, ldd,
                                       dh + at, dy ? dy + b * ldy + j : NULL, ldy, da + gate_at);
    });
}

static void KN(gru_before_backward_gates)(ptrdiff_t n, ptrdiff_t H, ptrdiff_t first, ptrdiff_t last,
                                          int back, ptrdiff_t m, ptrdiff_t k, const REAL *a,
                                          ptrdiff_t lda, const REAL *w, rf_act gate,
                                          const REAL *gates, const REAL *h_prev, const REAL *drh,
                                          REAL *dh, REAL *da) {
    RF_FROM_FUTURE(NULL, drh, {
        const ptrdiff_t at = b * H + j;
        FN(gru_before_gates_backward)(rows, H, units, gate, gates + b * 3 * H + j, h_prev + at, d, ldd,
                                      dh + at, da + b * 3 * H + j);
    });
}

/* ---- many steps of one sequence with few units ---------------------------------------------- */

/* A step is a chain of operations that wait for each other, so nothing may be put in their way: the
 * loop over the steps is here, and states stay in two small arrays. Where there are accumulators for all
 * vectors of units, NV, a constant, the gates take the pre-activations from the registers they are in, in a
 * function of its own: what others there would hoist out of the loop takes registers from the sums. */
#ifndef RF_FEW_UNITS
#define RF_FEW_UNITS 64

#define RF_EACH_STEP(T, H, s, ldx, h, y, ldy, ...)                                             \
    do {                                                                                       \
        _Alignas(64) REAL state[2][RF_FEW_UNITS + VL] = {{0}};                                 \
        memcpy(state[0], h, (size_t)(H) * sizeof(REAL));                                       \
        for (ptrdiff_t t = 0; t < (T); t++) {                                                  \
            const REAL *old = state[t % 2];                                                    \
            REAL *new = state[(t + 1) % 2];                                                    \
            (s)->h = old;                                                                      \
            __VA_ARGS__                                                                        \
            if ((s)->wx) (s)->x += (ldx);                                                      \
            if ((s)->start) (s)->start += (s)->lds;                                            \
            if (y) (y) += (ldy);                                                               \
        }                                                                                      \
        memcpy(h, state[(T) % 2], (size_t)(H) * sizeof(REAL));                                 \
    } while (0)
#define RF_PUT_UNITS(v, value)                                                                 \
    do {                                                                                       \
        const v_t put = (value);                                                               \
        v_store(new + (v) * VL, put);                                                          \
        if (y && ((v) < NV - 1 || w == VL)) v_store(y + (v) * VL, put);                        \
        else if (y) v_storen(y + (v) * VL, w, put);                                            \
    } while (0)

/* The function `name`_N for N vectors of units, where there are so many: none of a vector that is one unit. */
#define RF_IS_TILE(NV) (VL > 1 && (NV) * VL <= RF_FEW_UNITS)
#define RF_FIVE_TO_EIGHT(name, ...)                                                            \
    case 5: FN(name##_5)(__VA_ARGS__); return;                                                 \
    case 6: FN(name##_6)(__VA_ARGS__); return;                                                 \
    case 7: FN(name##_7)(__VA_ARGS__); return;                                                 \
    case 8: FN(name##_8)(__VA_ARGS__); return;
#define RF_BY_VECTORS(name, more, H, ...)                                                        \
    switch (VL > 1 ? ((H) + VL - 1) / VL : 0) {                                         \
    case 1: FN(name##_1)(__VA_ARGS__); return;                                                 \
    case 2: FN(name##_2)(__VA_ARGS__); return;                                                 \
    case 3: FN(name##_3)(__VA_ARGS__); return;                                                 \
    case 4: FN(name##_4)(__VA_ARGS__); return;                                                 \
        more                                                                                   \
    }
#endif

/* Pre-activations of all units in z, gates RF_FEW_UNITS apart. */
#define RF_ROW_CHAINS(name, s, back, z)                                                        \
    do {                                                                                       \
        const ptrdiff_t most = FN(name##_nv)(1), vectors = ((s)->H + VL - 1) / VL;             \
        const ptrdiff_t tiles = (vectors + most - 1) / most;                                   \
        for (ptrdiff_t i = 0; i < tiles; i++) {                                                \
            const ptrdiff_t first = ((back) ? tiles - 1 - i : i) * most, left = vectors - first; \
            const ptrdiff_t size = left < most ? left : most, j = first * VL;                  \
            const ptrdiff_t w = (s)->H - j - (size - 1) * VL;                                  \
            FN(name)(1, (int)size, w < VL ? w : VL, s, 0, 0, 0, j, (z) + j, 0, RF_FEW_UNITS);  \
        }                                                                                      \
    } while (0)

/* Pre-activations of three or four vectors of units of an LSTM or a GRU. A function of its own: beside
 * twelve sums there is no room for constants of the gates, and the compiler kept those instead. The sixteen
 * of an LSTM are two times eight with 16 registers; their gates are together all the same. */
static RF_ONCE void FN(wide_chains)(int G, int NV, ptrdiff_t w, const FN(chain) *s, REAL *z) {
#define RF_CHAINS(G, NV, split, w, j, z)                                                       \
    FN(chain_pass)(1, G, 0, G, NV, split, w, s, 0, 0, 0, j, z, 0, ldg)
    const ptrdiff_t ldg = NV * VL;
    if (G == 3) {
        if (NV == 3) RF_CHAINS(3, 3, 1, w, 0, z);
        else RF_CHAINS(3, 4, 1, w, 0, z);
    } else if (NV == 3) {
        RF_CHAINS(4, 3, 0, w, 0, z);
    } else if (RF_REGISTERS == 32) {
        RF_CHAINS(4, 4, 0, w, 0, z);
    } else {
        RF_CHAINS(4, 2, 0, VL, 0, z);
        RF_CHAINS(4, 2, 0, w, 2 * VL, z + 2 * VL);
    }
#undef RF_CHAINS
}
RF_UNFOLD void FN(few_chains)(const int G, const int NV, const int split, ptrdiff_t w,
                              const FN(chain) *s, v_t acc[4][6][8]) {
    if (NV <= 2) {
        FN(chains)(1, G, 0, G, NV, split, w, s, 0, 0, 0, 0, acc);
        return;
    }
    _Alignas(64) REAL z[4 * 4 * VL];
    FN(wide_chains)(G, NV, w, s, z);
RF_UNROLL
    for (int g = 0; g < G + split; g++) RF_EACH_OF(NV) acc[g][0][v] = v_load(z + (g * NV + v) * VL);
}

RF_UNFOLD void FN(rnn_few)(const int NV, ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h,
                           REAL *y, ptrdiff_t ldy) {
    const rf_act tanh = {RF_TANH, 0, 0};
    const ptrdiff_t w = H - (NV - 1) * VL;
    RF_EACH_STEP(T, H, s, ldx, h, y, ldy, {
        v_t z[4][6][8];
        FN(chains)(1, 1, 0, 1, NV, 0, w, s, 0, 0, 0, 0, z);
        FN(acts)(tanh, NV < 4 ? NV : 4, z[0][0]);
        if (NV > 4) FN(acts)(tanh, NV - 4, z[0][0] + 4);
        RF_EACH_OF(NV) RF_PUT_UNITS(v, z[0][0][v]);
    });
}
#define RF_FEW(NV)                                                                             \
    static RF_ONCE void FN(rnn_few_##NV)(ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h, \
                                         REAL *y, ptrdiff_t ldy) {                             \
        if (RF_IS_TILE(NV)) FN(rnn_few)(NV, T, H, s, ldx, h, y, ldy);                          \
    }
RF_FEW(1)
RF_FEW(2)
RF_FEW(3)
RF_FEW(4)
RF_FEW(5)
RF_FEW(6)
RF_FEW(7)
RF_FEW(8)
#undef RF_FEW

static void KN(rnn_steps)(ptrdiff_t T, ptrdiff_t H, rf_act act, ptrdiff_t inputs, const REAL *x,
                          ptrdiff_t ldx, const REAL *wx, const REAL *start, ptrdiff_t lds, REAL *h,
                          const REAL *wh, REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {1, H, inputs, H, H, lds, x, wx, start, h, wh, NULL, 0, 0, NULL};
    if (act.kind == RF_TANH)
        RF_BY_VECTORS(rnn_few, RF_FIVE_TO_EIGHT(rnn_few, T, H, &s, ldx, h, y, ldy), H, T, H, &s, ldx, h, y,
                      ldy)
    _Alignas(64) REAL z[RF_FEW_UNITS];
    RF_EACH_STEP(T, H, &s, ldx, h, y, ldy, {
        RF_ROW_CHAINS(chain1, &s, t % 2, z);
        FN(rnn_units)(1, H, act, z, 0, new, 0, y, 0);
    });
}

RF_UNFOLD void FN(lstm_few)(const int NV, ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h,
                            REAL *c, REAL *y, ptrdiff_t ldy) {
    const rf_lstm plain = {{RF_SIGMOID, 0, 0}, 0, 0};
    const ptrdiff_t w = H - (NV - 1) * VL;
    _Alignas(64) REAL cell[RF_FEW_UNITS] = {0};
    memcpy(cell, c, (size_t)H * sizeof *c);
    RF_EACH_STEP(T, H, s, ldx, h, y, ldy, {
        v_t acc[4][6][8];
        v_t z[4 * 4];
        v_t cn[4];
        FN(few_chains)(4, NV, 0, w, s, acc);
RF_UNROLL
        for (int g = 0; g < 4; g++) RF_EACH_OF(NV) z[g * NV + v] = acc[g][0][v];
        RF_EACH_OF(NV) cn[v] = v_load(cell + v * VL);
        FN(lstm_vectors)(NV, plain, NULL, z, cn);
        RF_EACH_OF(NV) v_store(cell + v * VL, cn[v]);
        FN(tanhs)(NV, cn);
        RF_EACH_OF(NV) RF_PUT_UNITS(v, v_mul(z[3 * NV + v], cn[v])); /* F5 */
    });
    memcpy(c, cell, (size_t)H * sizeof *c);
}
#define RF_FEW(NV)                                                                             \
    static RF_ONCE void FN(lstm_few_##NV)(ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h, \
                                          REAL *c, REAL *y, ptrdiff_t ldy) {                   \
        if (RF_IS_TILE(NV)) FN(lstm_few)(NV, T, H, s, ldx, h, c, y, ldy);                      \
    }
RF_FEW(1)
RF_FEW(2)
RF_FEW(3)
RF_FEW(4)
#undef RF_FEW

static void KN(lstm_steps)(ptrdiff_t T, ptrdiff_t H, const rf_lstm *opt, ptrdiff_t inputs,
                           const REAL *x, ptrdiff_t ldx, const REAL *wx, const REAL *start,
                           ptrdiff_t lds, REAL *h, const REAL *wh, const REAL *peephole, REAL *c,
                           REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {1, H, inputs, H, H, lds, x, wx, start, h, wh, NULL, 0, 0, NULL};
    if (FN(lstm_is_plain)(opt, peephole))
        RF_BY_VECTORS(lstm_few, , H, T, H, &s, ldx, h, c, y, ldy)
    _Alignas(64) REAL z[4 * RF_FEW_UNITS];
    RF_EACH_STEP(T, H, &s, ldx, h, y, ldy, {
        if (opt->coupled) RF_ROW_CHAINS(chain3, &s, t % 2, z);
        else RF_ROW_CHAINS(chain4, &s, t % 2, z);
        FN(lstm_units)(1, H, opt, z, 0, RF_FEW_UNITS, peephole, c, z, 0, RF_FEW_UNITS, NULL, new, H, y, 0);
    });
}

RF_UNFOLD void FN(gru_few)(const int NV, ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h,
                           REAL *y, ptrdiff_t ldy) {
    const ptrdiff_t w = H - (NV - 1) * VL;
    RF_EACH_STEP(T, H, s, ldx, h, y, ldy, {
        v_t a[4][6][8];
        v_t rz[2 * 4];
        v_t n[4];
        FN(few_chains)(3, NV, 1, w, s, a);
        RF_EACH_OF(NV) rz[v] = a[0][0][v], rz[NV + v] = a[1][0][v];
        if (2 * NV <= RF_MOST_VECTORS) { /* F3 */
            FN(sigmoids)(2 * NV, rz);
        } else {
            FN(sigmoids)(NV, rz);
            FN(sigmoids)(NV, rz + NV);
        }
        RF_EACH_OF(NV) n[v] = v_fma(rz[v], a[2][0][v], a[3][0][v]);
        FN(tanhs)(NV, n); /* F4 */
        RF_EACH_OF(NV) RF_PUT_UNITS(v, FN(gru_mix)(rz[NV + v], v_load(old + v * VL), n[v])); /* F5 */
    });
}
#define RF_FEW(NV)                                                                             \
    static RF_ONCE void FN(gru_few_##NV)(ptrdiff_t T, ptrdiff_t H, FN(chain) *s, ptrdiff_t ldx, REAL *h, \
                                         REAL *y, ptrdiff_t ldy) {                             \
        if (RF_IS_TILE(NV)) FN(gru_few)(NV, T, H, s, ldx, h, y, ldy);                          \
    }
RF_FEW(1)
RF_FEW(2)
RF_FEW(3)
RF_FEW(4)
#undef RF_FEW

static void KN(gru_steps)(ptrdiff_t T, ptrdiff_t H, rf_act gate, ptrdiff_t inputs, const REAL *x,
                          ptrdiff_t ldx, const REAL *wx, const REAL *start, ptrdiff_t lds,
                          const REAL *bias_n, REAL *h, const REAL *wh, REAL *y, ptrdiff_t ldy) {
    FN(chain) s = {1, H, inputs, H, H, lds, x, wx, start, h, wh, bias_n, 0, 0, NULL};
    if (gate.kind == RF_SIGMOID) RF_BY_VECTORS(gru_few, , H, T, H, &s, ldx, h, y, ldy)
    _Alignas(64) REAL z[4 * RF_FEW_UNITS];
    RF_EACH_STEP(T, H, &s, ldx, h, y, ldy, {
        RF_ROW_CHAINS(chain3_split, &s, t % 2, z);
        FN(gru_units)(1, H, gate, z, 0, RF_FEW_UNITS, z + 3 * RF_FEW_UNITS, z, 0, RF_FEW_UNITS, NULL, old,
                      new, 0, y, 0);
    });
}
