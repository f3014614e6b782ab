// Included inside `namespace ek::EK_ISA`, after panel.h. See linear.h.

// Packed rows of the left matrix that a panel is multiplied with before the next one comes: at least
// eight tiles, or the panels would be fetched too often, and at most so many.
constexpr int64_t LEFT_BYTES = 3 * 1024 * 1024, LEFT_TILES = 32;
// Panels that take turns with each part of the left rows, which stays in the second-level cache.
constexpr int64_t TURNS = 4;
// Rows of a panel that stay in the first-level cache while tiles pass by; even, for the pairs. Many
// tiles multiply with floats, which take twice the room.
constexpr int64_t DEPTH = 256, FLOAT_DEPTH = 128;
// Rows with which two panels are multiplied at once: as many as the registers hold.
constexpr int FEW_ROWS = MOST_ROWS / 2;
// From so many tiles on, making floats of a part of a panel costs less than it saves.
constexpr int64_t WIDENING_TILES = 5;

template <class W>
int64_t rows_of_block(int64_t k, int64_t tokens) {
    const int64_t fit = LEFT_BYTES / (tile_size<W>(1, k) * 4) / MOST_ROWS;
    const int64_t rows = std::clamp<int64_t>(fit, 8, LEFT_TILES) * MOST_ROWS;
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

// LANES rows of w with 32 bits of each in a lane, to LANES columns of a panel.
template <class W>
EK_INLINE void pack_square(const W* w, int64_t stride, W* panel) {
    U rows[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) std::memcpy(&rows[i], w + i * stride, sizeof(U));
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if constexpr (std::is_same_v<W, f16>) {
            const U16 even = __builtin_convertvector(rows[i], U16);
            const U16 odd = __builtin_convertvector(rows[i] >> 16, U16);
            std::memcpy(panel + 2 * i * PANEL, &even, sizeof(U16));
            std::memcpy(panel + (2 * i + 1) * PANEL, &odd, sizeof(U16));
        } else {
            std::memcpy(panel + i * PANEL * int64_t(4 / sizeof(W)), &rows[i], sizeof(U));
        }
    }
}

template <class W>
void pack_panels(const W* w, int64_t stride, W* panels, int64_t k, int64_t n, Team& team) {
    constexpr int64_t pair = std::is_same_v<W, bf16> ? 2 : 1, side = LANES * 4 / sizeof(W);
    const Range mine = team.part(ceil_div(n, PANEL));
    for (int64_t p = mine.begin; p < mine.end; p++) {
        W* panel = panels + p * panel_size<W>(k);
        const W* first = w + p * PANEL * stride;
        const int64_t columns = std::min(PANEL, n - p * PANEL);
        int64_t done = 0;
        for (; columns == PANEL && done + side <= k; done += side)
            for (int64_t c = 0; c < PANEL; c += LANES)
                pack_square(first + c * stride + done, stride, panel + done * PANEL + c * pair);
        for (int64_t c = 0; c < PANEL; c++)
            for (int64_t i = done; i < round_up(k, pair); i++)
                panel[i / pair * pair * PANEL + c * pair + i % pair] =
                    c < columns && i < k ? first[c * stride + i] : W{};
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

// Whether the processor multiplies W only as floats, which many tiles do better with made once.
template <class W>
constexpr bool WIDENS = !std::is_same_v<W, float> && std::is_same_v<Entry<W>, float>;

// `depth` rows of a panel as floats, [depth][PANEL].
template <class W>
EK_INLINE void widen(const W* panel, int64_t depth, float* wide) {
    if constexpr (std::is_same_v<W, bf16>) {
        for (int64_t i = 0; i < depth; i += 2, wide += 2 * PANEL) {
            for (int64_t column = 0; column < PANEL; column += LANES) {
                const U pairs = load_bits(panel + (i * PANEL + 2 * column));
                store(wide + column, V(pairs << 16));
                store(wide + PANEL + column, V(pairs & 0xffff0000u));
            }
        }
    } else {
        for (int64_t i = 0; i < depth * PANEL; i += LANES) store(wide + i, load(panel + i));
    }
}

// One block of rows of the left matrix, packed, and where its results go.
template <class W, class Y>
struct LeftBlock {
    const Entry<W>* left;
    int64_t rows, tiles;
    const int32_t* begins;  // [tiles + 1] first rows
    Y* y;
};

// Bytes of a panel's row, or pair of rows.
template <class W>
constexpr int64_t ROW_BYTES = PANEL * (std::is_same_v<W, bf16> ? 2 : 1) * int64_t(sizeof(W));

// A block times panels first..end, one part of the panels' rows after the other. Of many tiles, each
// fetches its share of the part that comes next at once; few do so bit by bit, one panel at a time.
template <class W, class Y>
void multiply_block(const Linear& args, const LeftBlock<W, Y>& block, int64_t first, int64_t end,
                    V* sums, float* wide) {
    const int64_t k = args.k;
    const bool floats = std::is_same_v<Entry<W>, float> && block.tiles >= WIDENING_TILES;
    const int64_t most = floats ? FLOAT_DEPTH : DEPTH, turns = floats ? TURNS : 1;
    if (end - first > turns) {
        for (int64_t p = first; p < end; p += turns)
            multiply_block(args, block, p, p + turns < end ? p + turns : end, sums, wide);
        return;
    }
    const W* panels = static_cast<const W*>(args.w);
    for (int64_t from = 0; from < k; from += most) {
        const int64_t depth = k - from < most ? k - from : most;
        const int64_t bytes = panel_size<W>(depth) * int64_t(sizeof(W));
        const int64_t share = round_up(ceil_div(bytes, block.tiles), 64);
        for (int64_t p = first; p < end; p++) {
            const W* part = panels + p * panel_size<W>(k) + panel_size<W>(from);
            const auto* next = reinterpret_cast<const char*>(
                p + 1 < end          ? part + panel_size<W>(k)
                : from + depth < k   ? panels + first * panel_size<W>(k) + panel_size<W>(from + depth)
                                     : panels + end * panel_size<W>(k));
            const auto each_tile = [&](const auto* w, auto fetch) {
                for (int64_t column = 0; column < PANEL; column += SUB) {
                    for (int64_t t = 0; t < block.tiles; t++) {
                        const int64_t begin = block.begins[t], rows = block.begins[t + 1] - begin;
                        V* partial =
                            sums +
                            (((p - first) * PANEL + column) / SUB * block.rows + begin) * NV;
                        Ahead ahead = ahead_of(part, bytes, ROW_BYTES<W>, t, block.tiles);
                        if (column > 0) ahead.step = 0;
                        if (column == 0 && !fetch)
                            for (int64_t line = 0; line < share; line += 64)
                                __builtin_prefetch(next + t * share + line, 0, 2);
                        multiply_tile<fetch>(
                            rows, block.left + tile_size<W>(begin, k) + tile_size<W>(rows, from), w,
                            depth, column, ahead, partial, from > 0);
                        if (from + depth == k)
                            store_tile(rows, partial, args, block.y + begin * args.y_stride,
                                       p * PANEL + column);
                    }
                }
            };
            if constexpr (WIDENS<W>) {
                if (floats) {
                    widen(part, depth, wide);
                    each_tile(wide, std::false_type{});
                    continue;
                }
            }
            each_tile(part, std::true_type{});
        }
    }
}

// Few rows: what takes time is to read the panels, and a processor reads two places at once faster
// than one. `count` panels from `first` on, half of them beside the other half.
template <class W, class Y>
void multiply_few(const Linear& args, const LeftBlock<W, Y>& block, int64_t first, int64_t count) {
    constexpr int PASSES = PANEL / SUB;
    const int64_t k = args.k, half = count / 2, apart = half * panel_size<W>(k);
    const int64_t most = PASSES == 1 ? round_up(k, 2) : DEPTH;  // what is read again stays near
    with_rows<FEW_ROWS>(block.rows, [&](auto rows) {
        for (int64_t p = first; p < first + half; p++) {
            V sums[PASSES][2][rows][NV] = {};
            const W* panel = static_cast<const W*>(args.w) + p * panel_size<W>(k);
            for (int64_t from = 0; from < k; from += most) {
                const W* part = panel + panel_size<W>(from);
                for (int pass = 0; pass < PASSES; pass++)
                    multiply<rows>(block.left + tile_size<W>(rows, from), part, apart,
                                   k - from < most ? k - from : most, pass * SUB,
                                   ahead_of(part, 0, ROW_BYTES<W>, 0, 1), sums[pass]);
            }
            for (int pass = 0; pass < PASSES; pass++)
                for (int which = 0; which < 2; which++)
                    store_tile(rows, sums[pass][which][0], args, block.y,
                               (p + which * half) * PANEL + pass * SUB);
        }
    });
}

template <class W, class Y>
void linear_of(const Linear& args, int64_t tokens, Team& team) {
    const int64_t k = args.k, most = rows_of_block<W>(k, tokens);
    const bool together = team.size > 1 && tokens > MOST_ROWS;
    const size_t left_size = tile_size<W>(most, k);
    auto* shared = reinterpret_cast<Entry<W>*>(team.shared);
    // Sums of panels, between their parts; a part of a panel; first rows of tiles.
    const size_t sums_size = TURNS * most * PANEL / LANES, wide_size = FLOAT_DEPTH * PANEL;
    const size_t most_tiles = round_up(ceil_div(most, MOST_ROWS) + 1, 16);
    V* sums = reinterpret_cast<V*>(team.own(sums_size * sizeof(V) + (wide_size + most_tiles) * 4 +
                                            (together ? 0 : left_size * sizeof(Entry<W>))));
    auto* wide = reinterpret_cast<float*>(sums + sums_size);
    auto* begins = reinterpret_cast<int32_t*>(wide + wide_size);
    auto* own = reinterpret_cast<Entry<W>*>(begins + most_tiles);
    int64_t number = 0;
    for (int64_t start = 0; start < tokens; start += most, number++) {
        const int64_t rows = tokens - start < most ? tokens - start : most;
        const int64_t tiles = ceil_div(rows, MOST_ROWS);
        for (int64_t t = 0; t <= tiles; t++) begins[t] = int32_t(rows * t / tiles);
        // Two buffers: whoever is done may pack the next block while others still read this one.
        Entry<W>* left = together ? shared + number % 2 * left_size : own;
        const W* x = static_cast<const W*>(args.x) + start * args.x_stride;
        const Range packed = together ? team.part(tiles) : Range{0, tiles};
        for (int64_t t = packed.begin; t < packed.end; t++)
            pack_tile<W>(left + tile_size<W>(begins[t], k), begins[t + 1] - begins[t], k,
                         [&](int64_t m) { return x + (begins[t] + m) * args.x_stride; });
        if (together) team.barrier();
        const LeftBlock<W, Y> block{left, rows, tiles, begins,
                                    static_cast<Y*>(args.y) + start * args.y_stride};
        const int64_t grain = tokens <= FEW_ROWS ? 2 : 1;
        team.share(ceil_div(args.n, PANEL), grain, [&](int64_t p, int64_t end) {
            if (tokens <= FEW_ROWS) {
                multiply_few(args, block, p, end - p);
                p += (end - p) / 2 * 2;
            }
            if (p < end) multiply_block(args, block, p, end, sums, wide);
        });
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
