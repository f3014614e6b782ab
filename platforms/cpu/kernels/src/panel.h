// Panels, and the microkernel that multiplies some rows with one panel.
//
// Included inside `namespace ek::EK_ISA`, after simd.h. A matrix W[K, N] (K is summed over) is stored
// as panels of PANEL columns: float and f16 as [N/32][K][32], bf16 with rows in pairs,
// [N/32][ceil(K/2)][32][2], which is what the bf16 dot product instruction wants, and from
// which floats are made with a shift and a mask. Columns past N and the row that makes K even are zero.
//
//     A tile of MR rows of the left matrix   [K][MR] float; with bf16 instructions [K/2][MR] pairs
//     accumulators                           MR x NV vectors: one sub-panel of NV * LANES columns

#if defined(__AVX512BF16__) || defined(EK_EMULATE_BF16)
#define EK_DOT_BF16 1
#else
#define EK_DOT_BF16 0
#endif

constexpr int NV = 2;                            // vectors of a sub-panel
constexpr int SUB = NV * LANES;                  // its columns
constexpr int MOST_ROWS = LANES == 16 ? 12 : 6;  // MR that the registers hold

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

EK_INLINE uint32_t pair_of(float first, float second) {
    return uint32_t(from_float<bf16>(first).bits) | uint32_t(from_float<bf16>(second).bits) << 16;
}

// Calls f with std::integral_constant<int, rows>; rows is 1 to MOST_ROWS.
template <int MR = MOST_ROWS, class F>
EK_INLINE void with_rows(int64_t rows, F&& f) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, f);
    }
    f(std::integral_constant<int, MR>{});
}

// Lays `rows` rows of k elements out as an A tile, times `factor`. `row(m)` is the address of row m.
template <class W, class Row>
EK_INLINE void pack_tile(Entry<W>* a, int64_t rows, int64_t k, Row&& row, float factor = 1) {
    for (int64_t m = 0; m < rows; m++) {
        const auto* x = row(m);
        if constexpr (std::is_same_v<Entry<W>, float>) {
            int64_t i = 0;
            for (; i + LANES <= k; i += LANES) {
                const V values = load(x + i) * factor;
                for (int lane = 0; lane < LANES; lane++) a[(i + lane) * rows + m] = values[lane];
            }
            for (; i < k; i++) a[i * rows + m] = to_float(x[i]) * factor;
        } else {
            for (int64_t i = 0; i < k; i += 2) {
                const float second = i + 1 < k ? to_float(x[i + 1]) : 0;
                a[i / 2 * rows + m] = pair_of(to_float(x[i]) * factor, second * factor);
            }
        }
    }
}

EK_INLINE V dot_pairs(V acc, U w, uint32_t a) {
#if defined(__AVX512BF16__) && !defined(EK_EMULATE_BF16)
    return V(_mm512_dpbf16_ps(__m512(acc), __m512bh(w), __m512bh(splat_bits(a))));
#else
    acc += V(w & 0xffff0000u) * splat(__builtin_bit_cast(float, a & 0xffff0000u));
    return acc + V(w << 16) * splat(__builtin_bit_cast(float, a << 16));
#endif
}

EK_INLINE U load_bits(const void* p) { return *static_cast<const UAnywhere*>(p); }

// acc[m][v] += the sum over k of a[k][m] * panel[k][column + v * LANES ...].
template <int MR, class W>
EK_INLINE void multiply(const Entry<W>* a, const W* panel, int64_t k, int64_t column,
                        V (&acc)[MR][NV]) {
    constexpr int AHEAD = 2048 / sizeof(W);  // elements: a prefetcher stops at the end of a page
    if constexpr (std::is_same_v<W, bf16>) {
        const W* w = panel + 2 * column;
        for (int64_t i = 0; i + 1 < k; i += 2, w += 2 * PANEL) {
            U pairs[NV];
            for (int v = 0; v < NV; v++) {
                pairs[v] = load_bits(w + 2 * LANES * v);
                if constexpr (MR <= 4) __builtin_prefetch(w + 2 * LANES * v + AHEAD);
            }
            if constexpr (EK_DOT_BF16) {
                for (int m = 0; m < MR; m++)
                    for (int v = 0; v < NV; v++)
                        acc[m][v] = dot_pairs(acc[m][v], pairs[v], uint32_t(a[m]));
                a += MR;
            } else {
                V even[NV], odd[NV];
                for (int v = 0; v < NV; v++) {
                    even[v] = V(pairs[v] << 16);
                    odd[v] = V(pairs[v] & 0xffff0000u);
                }
                for (int m = 0; m < MR; m++) {
                    const V x = splat(a[m]);
                    for (int v = 0; v < NV; v++) acc[m][v] += even[v] * x;
                }
                for (int m = 0; m < MR; m++) {
                    const V x = splat(a[MR + m]);
                    for (int v = 0; v < NV; v++) acc[m][v] += odd[v] * x;
                }
                a += 2 * MR;
            }
        }
        if (k % 2) {  // the other row of the pair is not read: in a cache it may hold anything
            for (int v = 0; v < NV; v++) {
                const V even = V(load_bits(w + 2 * LANES * v) << 16);
                for (int m = 0; m < MR; m++) {
                    if constexpr (EK_DOT_BF16)
                        acc[m][v] += even * splat(__builtin_bit_cast(float, uint32_t(a[m]) << 16));
                    else
                        acc[m][v] += even * splat(a[m]);
                }
            }
        }
    } else {
        const W* w = panel + column;
        for (int64_t i = 0; i < k; i++, w += PANEL, a += MR) {
            V row[NV];
            for (int v = 0; v < NV; v++) {
                row[v] = load(w + LANES * v);
                if constexpr (MR <= 4) __builtin_prefetch(w + LANES * v + AHEAD);
            }
            for (int m = 0; m < MR; m++) {
                const V x = splat(a[m]);
                for (int v = 0; v < NV; v++) acc[m][v] += row[v] * x;
            }
        }
    }
}

// sums[m][v] = (add ? sums[m][v] : 0) + the product above, for `rows` rows. Not inlined: there is one
// copy of the many row counts for each W.
template <class W>
__attribute__((noinline)) void multiply_tile(int64_t rows, const Entry<W>* a, const W* panel,
                                             int64_t k, int64_t column, V* sums, bool add) {
    with_rows(rows, [&](auto count) {
        V acc[count][NV];
        for (int m = 0; m < count; m++)
            for (int v = 0; v < NV; v++) acc[m][v] = add ? sums[m * NV + v] : V{};
        multiply<count>(a, panel, k, column, acc);
        for (int m = 0; m < count; m++)
            for (int v = 0; v < NV; v++) sums[m * NV + v] = acc[m][v];
    });
}
