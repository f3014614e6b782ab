// Included inside `namespace ek::EK_ISA`, after panel.h. See linear.h.

// Packed rows of the left matrix that stay in the second-level cache while panels pass by; of long
// rows at least eight tiles, or the panels would be fetched too often.
constexpr int64_t LEFT_BYTES = 512 * 1024;
// Rows of a panel that stay in the first-level cache while tiles pass by; even, for the pairs.
constexpr int64_t DEPTH = 256;

template <class W>
int64_t rows_of_block(int64_t k, int64_t tokens) {
    const int64_t fit = LEFT_BYTES / (tile_size<W>(1, k) * 4) / MOST_ROWS;
    const int64_t rows = (fit > 8 ? fit : 8) * MOST_ROWS;
    return rows < tokens ? rows : tokens;
}

template <class F>
EK_INLINE void with_dtype(Dtype dtype, F&& f) {
    if (dtype == Dtype::f32)
        f(float{});
    else if (dtype == Dtype::bf16)
        f(bf16{});
    else
        f(f16{});
}

template <class W>
void pack_panels(const W* w, int64_t stride, W* panels, int64_t k, int64_t n, Team& team) {
    constexpr int64_t pair = std::is_same_v<W, bf16> ? 2 : 1;
    const Range mine = team.part(ceil_div(n, PANEL));
    for (int64_t p = mine.begin; p < mine.end; p++) {
        W* panel = panels + p * panel_size<W>(k);
        for (int64_t c = 0; c < PANEL; c++) {
            const int64_t column = p * PANEL + c;
            const W* source = w + column * stride;
            for (int64_t i = 0; i < round_up(k, pair); i++)
                panel[i / pair * pair * PANEL + c * pair + i % pair] =
                    column < n && i < k ? source[i] : W{};
        }
    }
}

void pack(const void* w, int64_t stride, void* panels, int64_t k, int64_t n, Dtype dtype,
          Team& team) {
    with_dtype(dtype, [&](auto type) {
        using W = decltype(type);
        pack_panels(static_cast<const W*>(w), stride, static_cast<W*>(panels), k, n, team);
    });
}

void look_up(const int64_t* ids, const void* panels, void* y, int64_t k, Dtype dtype,
             int64_t tokens, Team& team) {
    with_dtype(dtype, [&](auto type) {
        using W = decltype(type);
        constexpr int64_t pair = std::is_same_v<W, bf16> ? 2 : 1;
        const Range mine = team.part(tokens);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            const W* source = static_cast<const W*>(panels) +
                              ids[t] / PANEL * panel_size<W>(k) + ids[t] % PANEL * pair;
            W* row = static_cast<W*>(y) + t * k;
            for (int64_t i = 0; i < k; i++) row[i] = source[i / pair * pair * PANEL + i % pair];
        }
    });
}

template <class Y>
void store_tile(int64_t rows, const V* sums, const Linear& args, Y* y, int64_t column) {
    for (int v = 0; v < NV; v++) {
        const int64_t first = column + v * LANES;
        if (first + LANES <= args.n) {
            const V bias = args.bias ? load(args.bias + first) : V{};
            for (int64_t m = 0; m < rows; m++)
                store(y + m * args.y_stride + first, sums[m * NV + v] + bias);
            continue;
        }
        for (int64_t m = 0; m < rows; m++)
            for (int lane = 0; lane < LANES && first + lane < args.n; lane++)
                y[m * args.y_stride + first + lane] = from_float<Y>(
                    sums[m * NV + v][lane] + (args.bias ? args.bias[first + lane] : 0.0f));
    }
}

template <class W, class Y>
void linear_of(const Linear& args, int64_t tokens, Team& team) {
    const int64_t k = args.k, block = rows_of_block<W>(k, tokens);
    const bool together = team.size > 1 && tokens > MOST_ROWS;
    const size_t left_size = tile_size<W>(block, k);
    auto* shared = reinterpret_cast<Entry<W>*>(team.shared);
    const size_t sums_size = block * NV;  // of one panel, between its parts
    V* sums = reinterpret_cast<V*>(team.own(
        sums_size * sizeof(V) + (together ? 0 : left_size * sizeof(Entry<W>))));
    auto* own = reinterpret_cast<Entry<W>*>(sums + sums_size);
    const Range panels = team.part(ceil_div(args.n, PANEL));
    int64_t number = 0;
    for (int64_t start = 0; start < tokens; start += block, number++) {
        const int64_t rows = tokens - start < block ? tokens - start : block;
        const int64_t tiles = ceil_div(rows, MOST_ROWS);
        // Two buffers: whoever is done may pack the next block while others still read this one.
        Entry<W>* left = together ? shared + number % 2 * left_size : own;
        const W* x = static_cast<const W*>(args.x) + start * args.x_stride;
        Y* y = static_cast<Y*>(args.y) + start * args.y_stride;
        const Range packed = together ? team.part(tiles) : Range{0, tiles};
        for (int64_t t = packed.begin; t < packed.end; t++) {
            const Range tile = part_of(rows, t, tiles);
            pack_tile<W>(left + tile_size<W>(tile.begin, k), tile.end - tile.begin, k,
                         [&](int64_t m) { return x + (tile.begin + m) * args.x_stride; });
        }
        if (together) team.barrier();
        for (int64_t p = panels.begin; p < panels.end; p++) {
            const W* panel = static_cast<const W*>(args.w) + p * panel_size<W>(k);
            for (int64_t column = 0; column < PANEL; column += SUB) {
                for (int64_t from = 0; from < k; from += DEPTH) {
                    const int64_t depth = k - from < DEPTH ? k - from : DEPTH;
                    for (int64_t t = 0; t < tiles; t++) {
                        const Range tile = part_of(rows, t, tiles);
                        V* partial = sums + tile.begin * NV;
                        multiply_tile(tile.end - tile.begin,
                                      left + tile_size<W>(tile.begin, k) +
                                          tile_size<W>(tile.end - tile.begin, from),
                                      panel + panel_size<W>(from), depth, column, partial,
                                      from > 0);
                        if (from + depth == k)
                            store_tile(tile.end - tile.begin, partial, args,
                                       y + tile.begin * args.y_stride, p * PANEL + column);
                    }
                }
            }
        }
    }
}

void linear(const Linear& args, int64_t tokens, Team& team) {
    with_dtype(args.dtype, [&](auto type) {
        using W = decltype(type);
        if (args.y_dtype == Dtype::f32)
            linear_of<W, float>(args, tokens, team);
        else
            linear_of<W, W>(args, tokens, team);
    });
}

size_t linear_shared_bytes(const Linear& args, int64_t tokens) {
    size_t bytes = 0;
    with_dtype(args.dtype, [&](auto type) {
        using W = decltype(type);
        if (tokens > MOST_ROWS)
            bytes = 2 * 4 * size_t(tile_size<W>(rows_of_block<W>(args.k, tokens), args.k));
    });
    return bytes;
}

constexpr LinearKernels linear_kernels{pack, look_up, linear, linear_shared_bytes};
