// Linear layers of bf16 on processors that multiply tiles (AMX): one instruction is 16 x 16 sums of 32
// products.
//
// Included inside `namespace ek::EK_ISA`, after linear.inl. A tile register holds 16 rows of 64 bytes:
//
//     left rows, packed   [K/32][32][32] bf16   two tiles: 32 rows, and 32 of what is summed over
//     panel               [K/2][32][2] bf16     two tiles: 16 of its pairs of rows, and 32 columns
//     sums                [32][32] float        four tiles: 32 rows, 32 columns
//
// TDPBF16PS in Intel's "64 and IA-32 Architectures Software Developer's Manual", volume 2.
constexpr int64_t SIDE = 16, DEEP = 32, TALL = 2 * SIDE;
static_assert(PANEL == TALL);

// Rows of a panel that stay in the first-level cache while blocks of the left rows pass by.
constexpr int64_t TILED_DEPTH = 512;
// Left rows that a panel is multiplied with before the next one comes.
constexpr int64_t LEAST_TILED = 256, MOST_TILED = 512;

#ifdef EK_EMULATE_BF16
struct TileRegisters {};

// sums = (add ? sums : 0) + `steps` times 32 products of `rows` left rows and a panel.
void multiply_tiles(int64_t rows, const bf16* left, const bf16* panel, int64_t steps, float* sums,
                    bool add) {
    if (!add) std::fill_n(sums, rows * PANEL, 0.0f);
    for (int64_t step = 0; step < steps; step++)
        for (int64_t m = 0; m < rows; m++)
            for (int64_t i = 0; i < DEEP; i++)
                for (int64_t n = 0; n < PANEL; n++)
                    sums[m * PANEL + n] += to_float(left[(step * TALL + m) * DEEP + i]) *
                                           to_float(panel[(step * DEEP + i / 2 * 2) * PANEL + 2 * n + i % 2]);
}
#else
// The thread's tile registers, as long as this lives.
struct TileRegisters {
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int tile = 0; tile < 8; tile++) {
            shape.row_bytes[tile] = 64;
            shape.rows[tile] = SIDE;
        }
        _tile_loadconfig(&shape);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// One row of tiles, or two. Not inlined: the compiler does not know that loading a tile reads memory.
template <bool TWO>
__attribute__((noinline)) void multiply_tiles(const bf16* left, const bf16* panel, int64_t steps,
                                              float* sums, bool add) {
    constexpr int64_t left_bytes = DEEP * 2, panel_bytes = PANEL * 4, sum_bytes = PANEL * 4;
    constexpr int64_t step_bytes = DEEP * PANEL * 2;
    float* lower = sums + SIDE * PANEL;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
        _tile_loadd(0, sums, sum_bytes);
        _tile_loadd(1, sums + SIDE, sum_bytes);
        if constexpr (TWO) {
            _tile_loadd(2, lower, sum_bytes);
            _tile_loadd(3, lower + SIDE, sum_bytes);
        }
    }
    for (; steps > 0; steps--, left += TALL * DEEP, panel += DEEP * PANEL) {
        if constexpr (!TWO)  // as fast as memory: what comes next is fetched meanwhile
            for (int64_t line = 0; line < step_bytes; line += 64)
                __builtin_prefetch(reinterpret_cast<const std::byte*>(panel) + step_bytes + line);
        _tile_loadd(4, left, left_bytes);
        _tile_loadd(6, panel, panel_bytes);
        _tile_loadd(7, panel + 2 * SIDE, panel_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (TWO) {
            _tile_loadd(5, left + SIDE * DEEP, left_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, sum_bytes);
    _tile_stored(1, sums + SIDE, sum_bytes);
    if constexpr (TWO) {
        _tile_stored(2, lower, sum_bytes);
        _tile_stored(3, lower + SIDE, sum_bytes);
    }
}

// sums = (add ? sums : 0) + `steps` times 32 products of `rows` left rows and a panel.
void multiply_tiles(int64_t rows, const bf16* left, const bf16* panel, int64_t steps, float* sums,
                    bool add) {
    if (rows > SIDE)
        multiply_tiles<true>(left, panel, steps, sums, add);
    else
        multiply_tiles<false>(left, panel, steps, sums, add);
}
#endif

int64_t tiled_rows(int64_t k, int64_t tokens) {
    const int64_t fit = std::clamp(LEFT_BYTES / (2 * k) / TALL * TALL, LEAST_TILED, MOST_TILED);
    return std::min(fit, round_up(tokens, TALL));
}

int64_t tiled_size(int64_t rows, int64_t k) { return rows * round_up(k, DEEP); }

// Up to 32 rows, with zeros behind them and behind what is summed over.
void pack_tall(const bf16* x, int64_t stride, int64_t rows, int64_t k, bf16* left) {
    for (int64_t m = 0; m < TALL; m++)
        for (int64_t i = 0; i < k; i += DEEP) {
            const int64_t count = m < rows ? std::min(DEEP, k - i) : 0;
            bf16* to = left + (i * TALL) + m * DEEP;
            if (count > 0) std::memcpy(to, x + m * stride + i, size_t(count) * sizeof(bf16));
            if (count < DEEP) std::memset(to + count, 0, size_t(DEEP - count) * sizeof(bf16));
        }
}

// The last rows of a panel, which fill no tile, with zeros behind them.
void pad_panel(const bf16* panel, int64_t k, bf16* padded) {
    const int64_t whole = k / DEEP * DEEP, size = panel_size<bf16>(k - whole);
    std::memcpy(padded, panel + panel_size<bf16>(whole), size_t(size) * sizeof(bf16));
    std::memset(padded + size, 0, size_t(DEEP * PANEL - size) * sizeof(bf16));
}

// Some packed rows times panels first..end, TURNS of them at a time: one part of what is summed over
// after the other. sums: [TURNS][rows][32]; padded: [TURNS][32][32].
template <class Y>
void multiply_tall(const Linear& args, const bf16* left, int64_t rows, Y* y, int64_t first,
                   int64_t end, float* sums, bf16* padded) {
    const int64_t k = args.k, whole = k / DEEP * DEEP, tall = round_up(rows, TALL);
    const auto* panels = static_cast<const bf16*>(args.w);
    for (; first < end; first += TURNS) {
        const int64_t count = std::min(TURNS, end - first);
        for (int64_t p = 0; whole < k && p < count; p++)
            pad_panel(panels + (first + p) * panel_size<bf16>(k), k, padded + p * DEEP * PANEL);
        for (int64_t from = 0; from < k; from += TILED_DEPTH) {
            const int64_t stop = std::min(from + TILED_DEPTH, k);
            for (int64_t p = 0; p < count; p++) {
                const bf16* part = panels + (first + p) * panel_size<bf16>(k) + from * PANEL;
                for (int64_t m = 0; m < rows; m += TALL) {
                    const int64_t some = std::min(TALL, rows - m);
                    const bf16* block = left + m * round_up(k, DEEP);
                    float* partial = sums + (p * tall + m) * PANEL;
                    const int64_t steps = (std::min(stop, whole) - from) / DEEP;
                    multiply_tiles(some, block + from * TALL, part, steps, partial, from > 0);
                    if (stop < k) continue;
                    if (whole < k)
                        multiply_tiles(some, block + whole * TALL, padded + p * DEEP * PANEL, 1, partial,
                                       true);
                    store_tile(some, reinterpret_cast<const V*>(partial), args,
                               y + m * args.y_stride, (first + p) * PANEL);
                }
            }
        }
    }
}

template <class Y>
void linear_in_tiles(const Linear& args, int64_t tokens, Team& team) {
    const int64_t k = args.k, most = tiled_rows(k, tokens), size = tiled_size(most, k);
    const bool together = team.size > 1 && tokens > SIDE;
    const size_t sums_size = TURNS * most * PANEL, padded_size = TURNS * DEEP * PANEL;
    auto* sums = reinterpret_cast<float*>(
        team.own(sums_size * sizeof(float) + (padded_size + (together ? 0 : size)) * sizeof(bf16)));
    auto* padded = reinterpret_cast<bf16*>(sums + sums_size);
    [[maybe_unused]] const TileRegisters registers;
    int64_t number = 0;
    for (int64_t start = 0; start < tokens; start += most, number++) {
        const int64_t rows = std::min(most, tokens - start);
        // Two buffers: whoever is done may pack the next block while others still read this one.
        bf16* left = together ? reinterpret_cast<bf16*>(team.shared) + number % 2 * size
                              : padded + padded_size;
        const bf16* x = static_cast<const bf16*>(args.x) + start * args.x_stride;
        const Range blocks{0, ceil_div(rows, TALL)}, mine = together ? team.part(blocks.end) : blocks;
        for (int64_t b = mine.begin; b < mine.end; b++)
            pack_tall(x + b * TALL * args.x_stride, args.x_stride,
                      std::min(TALL, rows - b * TALL), k, left + tiled_size(b * TALL, k));
        if (together) team.barrier();
        team.share(ceil_div(args.n, PANEL), 2, [&](int64_t p, int64_t end) {
            multiply_tall(args, left, rows, static_cast<Y*>(args.y) + start * args.y_stride, p, end,
                          sums, padded);
        });
    }
}

// Also of few rows: a row gets the same bits in any company, and tiles add in an order of their own.
void linear_with_tiles(const Linear& args, int64_t tokens, Team& team) {
    if (args.dtype != Dtype::bf16) return linear(args, tokens, team);
    if (args.y_dtype == Dtype::f32)
        linear_in_tiles<float>(args, tokens, team);
    else
        linear_in_tiles<bf16>(args, tokens, team);
}

size_t tiled_shared_bytes(const Linear& args, int64_t tokens) {
    if (args.dtype != Dtype::bf16) return linear_shared_bytes(args, tokens);
    if (tokens <= SIDE) return 0;
    return 2 * sizeof(bf16) * size_t(tiled_size(tiled_rows(args.k, tokens), args.k));
}

constexpr LinearKernels tiled_linear_kernels{pack, look_up, linear_with_tiles, tiled_shared_bytes};
