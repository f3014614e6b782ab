// Panels, and the microkernel that multiplies some rows with one panel.
//
// Included inside `namespace ek::EK_ISA`, after simd.h. A matrix W[K, N] (K is summed over) is stored
// as panels of PANEL columns: float and f16 as [N/32][K][32], bf16 with rows in pairs,
// [N/32][ceil(K/2)][32][2], which is what the bf16 dot product instruction wants, and from
// which floats are made with a shift and a mask. Columns past N and the row that makes K even are zero.
//
//     A tile of MR rows of the left matrix   [K][MR] float; with bf16 instructions [K/2][MR] pairs
//     accumulators                           MR x NV vectors: one sub-panel of NV * LANES columns

#if defined(__AVX512BF16__) || defined(EK_EMULATE_BF16) || \
    defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define EK_DOT_BF16 1
#else
#define EK_DOT_BF16 0
#endif

constexpr int NV = 2;                              // vectors of a sub-panel
constexpr int SUB = NV * LANES;                    // its columns
constexpr int MOST_ROWS = REGISTERS == 32 ? 12 : 6;  // MR that the registers hold

// Elements of a panel of K rows.
template <class W>
constexpr int64_t panel_size(int64_t k) {
    return PANEL * (std::is_same_v<W, bf16> ? round_up(k, 2) : k);
}

// The type of an A tile's entries for panels of W: floats, or pairs where the processor multiplies them.
template <class W>
using Entry = std::conditional_t<EK_DOT_BF16 && std::is_same_v<W, bf16>, uint32_t, float>;

// Entries of an A tile of `rows` rows.
template <class W>
constexpr int64_t tile_size(int64_t rows, int64_t k) {
    return rows * (std::is_same_v<Entry<W>, float> ? k : ceil_div(k, 2));
}

// Calls f with std::integral_constant<int, rows>; rows is 1 to MOST_ROWS.
template <int MR = MOST_ROWS, class F>
EK_INLINE void with_rows(int64_t rows, F&& f) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, f);
    }
    f(std::integral_constant<int, MR>{});
}

// Makes LANES vectors of 32-bit lanes, a square matrix, its transpose: swaps the squares of STEP lanes
// off the diagonal, then larger ones. Unrolled, or the indices would not be constants.
template <int STEP = 1, class T>
EK_INLINE void transpose(T (&rows)[LANES]) {
    I upper{}, lower{};
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
        upper[lane] = lane & STEP ? LANES + lane - STEP : lane;
        lower[lane] = lane & STEP ? LANES + lane : lane + STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if (i & STEP) continue;
        const T a = rows[i], b = rows[i + STEP];
        rows[i] = __builtin_shuffle(a, b, upper);
        rows[i + STEP] = __builtin_shuffle(a, b, lower);
    }
    if constexpr (2 * STEP < LANES) transpose<2 * STEP>(rows);
}

// Entries of an A tile from neighbours in a row; pairs are of bf16.
template <class E, class X>
EK_INLINE auto load_entries(const X* x) {
    if constexpr (std::is_same_v<E, float>) {
        return load(x);
    } else {  // at an address aligned to one of the pair
        U pairs;
        std::memcpy(&pairs, x, sizeof(pairs));
        return pairs;
    }
}
template <class E, class X>
EK_INLINE E load_entry(const X* x, int64_t count) {
    if constexpr (std::is_same_v<E, float>)
        return to_float(*x);
    else
        return uint32_t(x[0].bits) | (count > 1 ? uint32_t(x[1].bits) << 16 : 0);
}

// Lays `rows` rows of k elements out as an A tile. `row(m)` is the address of row m.
template <class W, class Row>
EK_INLINE void pack_tile(Entry<W>* a, int64_t rows, int64_t k, Row&& row) {
    using E = Entry<W>;
    constexpr int64_t size = std::is_same_v<E, float> ? 1 : 2;  // elements of an entry
    int64_t done = 0;
    if (rows > LANES / 4 && rows <= LANES) {
        decltype(row(0)) x[LANES];
        for (int64_t m = 0; m < LANES; m++) x[m] = row(m < rows ? m : rows - 1);
        const E* end = a + tile_size<W>(rows, k);
        for (; done + LANES * size <= k; done += LANES * size) {
            decltype(load_entries<E>(x[0])) block[LANES];
#pragma GCC unroll 16
            for (int m = 0; m < LANES; m++) block[m] = load_entries<E>(x[m] + done);
            transpose(block);
            E* to = a + done / size * rows;
            // Lanes behind the last row are overwritten by what follows.
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++, to += rows) {
                if (to + LANES <= end)
                    std::memcpy(to, &block[i], sizeof(block[i]));
                else
                    std::memcpy(to, &block[i], size_t(rows) * sizeof(E));
            }
        }
    }
    for (int64_t m = 0; m < rows; m++) {
        const auto* x = row(m);
        for (int64_t i = done; i < k; i += size) a[i / size * rows + m] = load_entry<E>(x + i, k - i);
    }
}

EK_INLINE V dot_pairs(V acc, U w, uint32_t a) {
#if defined(__AVX512BF16__) && !defined(EK_EMULATE_BF16)
    return V(_mm512_dpbf16_ps(__m512(acc), __m512bh(w), __m512bh(splat_bits(a))));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return V(vbfdotq_f32(float32x4_t(acc), vreinterpretq_bf16_u32(uint32x4_t(w)),
                         vreinterpretq_bf16_u32(uint32x4_t(splat_bits(a)))));
#else
    acc += V(w & 0xffff0000u) * splat(__builtin_bit_cast(float, a & 0xffff0000u));
    return acc + V(w << 16) * splat(__builtin_bit_cast(float, a << 16));
#endif
}

EK_INLINE U load_bits(const void* p) { return *static_cast<const UAnywhere*>(p); }

// What to fetch while panels are multiplied: for each row (or pair, or quad) the lines at `at` and
// `at + other`; then `at` moves on by `step`.
struct Ahead {
    const std::byte* at;
    int64_t step, other;

    EK_INLINE void fetch(int64_t apart = 0) const {
        __builtin_prefetch(at + apart);
        __builtin_prefetch(at + apart + other);
    }
};

// What tile `tile` of some fetches while it is multiplied with a part of a panel, rows of `row_bytes`.
// One tile alone runs at the speed of memory, and fetches what it needs itself a little later: 2 KB,
// where the processor's own prefetchers stop at the end of a page. Of several tiles the first two
// fetch a half each of the panel's next part, so that memory is busy while they compute.
EK_INLINE Ahead ahead_of(const void* part, int64_t bytes, int64_t row_bytes, int64_t tile,
                         int64_t tiles) {
    const auto* at = static_cast<const std::byte*>(part);
    if (tiles == 1) return {at + 2048, row_bytes, 64};
    if (tile < 2) return {at + bytes + tile * (bytes / 2), row_bytes / 2, 0};
    return {at, 0, 0};
}

// Calls f with 0..N-1 as constants. Compilers keep in registers an array that is only indexed so.
template <int N, class F>
EK_INLINE void unrolled(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) EK_LAMBDA {
        (f(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// Calls f(m, v) for each vector of MR rows of a sub-panel.
template <int MR, class F>
EK_INLINE void each_vector(F&& f) {
    unrolled<MR>([&](auto m) EK_LAMBDA {
        unrolled<NV>([&](auto v) EK_LAMBDA { f(m, v); });
    });
}

// acc[m][v] += left(m) * right(v).
template <int MR, class Right, class Left>
EK_INLINE void add_product(V (&acc)[MR][NV], Right&& right, Left&& left) {
    V w[NV];
    unrolled<NV>([&](auto v) EK_LAMBDA { w[v] = right(v); });
    unrolled<MR>([&](auto m) EK_LAMBDA {
        const V x = left(m);
        unrolled<NV>([&](auto v) EK_LAMBDA { acc[m][v] += w[v] * x; });
    });
}

// acc[p][m][v] += the sum over k of a[k][m] * panel p[k][column + v * LANES ...], of P panels that
// begin `apart` elements from each other. The order of the sum does not depend on MR or P.
// `ahead`, if FETCH: of the first panel; the same is fetched of the others.
template <int MR, int P, bool FETCH = true, class W>
EK_INLINE void multiply(const Entry<W>* a, const W* panels, int64_t apart, int64_t k, int64_t column,
                        Ahead ahead, V (&acc)[P][MR][NV]) {
    if constexpr (std::is_same_v<W, bf16>) {
        const W* w = panels + 2 * column;
        for (int64_t i = 0; i + 1 < k; i += 2) {
            unrolled<P>([&](auto p) EK_LAMBDA {
                const W* row = w + p * apart;
                if (FETCH) ahead.fetch(p * apart * int64_t(sizeof(W)));
                U pairs[NV];
                unrolled<NV>(
                    [&](auto v) EK_LAMBDA { pairs[v] = load_bits(row + 2 * LANES * v); });
                if constexpr (EK_DOT_BF16) {
                    each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
                        acc[p][m][v] = dot_pairs(acc[p][m][v], pairs[v], uint32_t(a[m]));
                    });
                } else {
                    add_product(acc[p], [&](int v) EK_LAMBDA { return V(pairs[v] << 16); },
                                [&](int m) EK_LAMBDA { return splat(a[m]); });
                    add_product(acc[p], [&](int v) EK_LAMBDA { return V(pairs[v] & 0xffff0000u); },
                                [&](int m) EK_LAMBDA { return splat(a[MR + m]); });
                }
            });
            w += 2 * PANEL;
            a += EK_DOT_BF16 ? MR : 2 * MR;
            ahead.at += ahead.step;
        }
        if (k % 2) {  // the other row of the pair is not read: in a cache it may hold anything
            unrolled<P>([&](auto p) EK_LAMBDA {
                add_product(acc[p],
                            [&](int v) EK_LAMBDA {
                                return V(load_bits(w + p * apart + 2 * LANES * v) << 16);
                            },
                            [&](int m) EK_LAMBDA {
                                if constexpr (EK_DOT_BF16)
                                    return splat(__builtin_bit_cast(float, uint32_t(a[m]) << 16));
                                else
                                    return splat(a[m]);
                            });
            });
        }
    } else {
        const W* w = panels + column;
        for (int64_t i = 0; i < k; i++, w += PANEL, a += MR, ahead.at += ahead.step)
            unrolled<P>([&](auto p) EK_LAMBDA {
                if (FETCH) ahead.fetch(p * apart * int64_t(sizeof(W)));
                add_product(acc[p],
                            [&](int v) EK_LAMBDA { return load(w + p * apart + LANES * v); },
                            [&](int m) EK_LAMBDA { return splat(a[m]); });
            });
    }
}

// sums[m][v] = (add ? sums[m][v] : 0) + the product above, for `rows` rows. Not inlined: there is one
// copy of the many row counts for each W.
template <bool FETCH, class W>
__attribute__((noinline)) void multiply_tile(int64_t rows, const Entry<W>* a, const W* panel,
                                             int64_t k, int64_t column, Ahead ahead, V* sums,
                                             bool add) {
    with_rows(rows, [&](auto count) EK_LAMBDA {
        constexpr int MR = count;
        V acc[1][MR][NV];
        each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
            acc[0][m][v] = add ? sums[m * NV + v] : V{};
        });
        multiply<MR, 1, FETCH>(a, panel, 0, k, column, ahead, acc);
        each_vector<MR>([&](auto m, auto v) EK_LAMBDA { sums[m * NV + v] = acc[0][m][v]; });
    });
}
