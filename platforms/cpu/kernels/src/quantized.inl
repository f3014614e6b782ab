// Included inside `namespace ek::EK_ISA`, after linear.inl. See quantized.h.
//
// A matrix W[K, N] is stored in panels of 32 columns, a panel in groups of 64 (8 bits) or 32 (4 bits)
// rows: 32 scales in bf16, then the weights as unsigned bytes, four rows of a column together, because
// that is what the dot product instruction sums.
//
//     8 bits  [K/4][32][4], what is stored less 128 is the weight
//     4 bits  [K/8][32][4], less 8: rows 0 to 3 of eight in the low halves, 4 to 7 in the high ones
//
// The left matrix is rounded, row by row and group by group, to signed bytes. A tile of MR rows of it:
// for each group MR scales, MR sums (below), and quads [group/4][MR]. With unsigned weights u and
// signed x, the sum of (u - offset) x is the sum of u x less offset times the sum of x: so
// accumulators begin at -offset times the sum, which is what a tile's "sums" are. All of this is
// exact in 32 bits, and the same on every instruction set; only the scaling after it rounds.

namespace quantized {

// Four bytes of a row; without an instruction that multiplies bytes, as pairs of 16 bits.
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
typedef uint32_t Quad;
EK_INLINE Quad quad_of(const int8_t* x) {
    Quad quad;
    std::memcpy(&quad, x, 4);
    return quad;
}
struct Quads {
    U bytes;
};
EK_INLINE Quads quads_of(U bytes) { return {bytes}; }
template <int BITS>
EK_INLINE I dot_quads(I acc, Quads w, Quad x) {
#if defined(__AVX512VNNI__)
    return I(_mm512_dpbusd_epi32(__m512i(acc), __m512i(w.bytes), __m512i(splat_bits(x))));
#else
    const int8x16_t bytes = vreinterpretq_s8_u32(uint32x4_t(splat_bits(x)));
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return I(vusdotq_s32(int32x4_t(acc), vreinterpretq_u8_u32(uint32x4_t(w.bytes)), bytes));
#else
    if constexpr (BITS == 4)
        return I(vdotq_s32(int32x4_t(acc), vreinterpretq_s8_u32(uint32x4_t(w.bytes)), bytes));
    // The instruction wants signed weights: 128 less, and twice 64 more.
    const int8x16_t less = vreinterpretq_s8_u32(uint32x4_t(w.bytes ^ 0x80808080u));
    const int8x16_t more = vdupq_n_s8(64);
    const int32x4_t sum = vdotq_s32(int32x4_t(acc), less, bytes);
    return I(vdotq_s32(vdotq_s32(sum, more, bytes), more, bytes));
#endif
#endif
}
#else
struct Quad {
    uint32_t even, odd;
};
EK_INLINE uint32_t pair_16(int8_t first, int8_t second) {
    return uint32_t(uint16_t(int16_t(first))) | uint32_t(uint16_t(int16_t(second))) << 16;
}
EK_INLINE Quad quad_of(const int8_t* x) { return {pair_16(x[0], x[2]), pair_16(x[1], x[3])}; }
struct Quads {
    U even, odd;
};
EK_INLINE Quads quads_of(U bytes) { return {bytes & 0x00ff00ffu, bytes >> 8 & 0x00ff00ffu}; }
EK_INLINE I dot_16(I acc, U w, uint32_t x) {
#if defined(__AVX512BW__)
    return acc + I(_mm512_madd_epi16(__m512i(w), __m512i(splat_bits(x))));
#elif defined(__AVX2__)
    return acc + I(_mm256_madd_epi16(__m256i(w), __m256i(splat_bits(x))));
#elif defined(__SSE2__)
    return acc + I(_mm_madd_epi16(__m128i(w), __m128i(splat_bits(x))));
#else
    return acc + I(w & 0xffffu) * int32_t(int16_t(x)) + I(w >> 16) * (int32_t(x) >> 16);
#endif
}
template <int BITS>
EK_INLINE I dot_quads(I acc, Quads w, Quad x) {
    return dot_16(dot_16(acc, w.even, x.even), w.odd, x.odd);
}
#endif

constexpr int ROWS = REGISTERS == 32 ? 6 : 4;  // MR that the registers hold
constexpr int64_t PART_BYTES = 24 * 1024;  // of a panel, that stay in the first-level cache
constexpr int64_t LEFT_BYTES = 512 * 1024;  // of the left matrix, that stay in the second-level cache

template <int BITS>
constexpr int64_t GROUP = quantized_group(BITS);
template <int BITS>
constexpr int64_t BLOCK = quantized_block(BITS);
template <int BITS>
constexpr int32_t OFFSET = BITS == 8 ? 128 : 8;
template <int BITS>
constexpr int64_t PART = PART_BYTES / BLOCK<BITS>;  // groups

// Bytes of one group of a tile, for each row.
template <int BITS>
constexpr int64_t ROW_BYTES = 8 + GROUP<BITS> / 4 * int64_t(sizeof(Quad));

template <class F>
EK_INLINE void with_bits(int32_t bits, F&& f) {
    if (bits == 8)
        f(std::integral_constant<int, 8>{});
    else
        f(std::integral_constant<int, 4>{});
}

// Rounding

constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even

// NaN becomes `least`: a level must be one; the scale, which is NaN then, shows it.
EK_INLINE V at_least(V x, float least) { return x > least ? x : splat(least); }
EK_INLINE V at_most(V x, float most) { return x > most ? splat(most) : x; }
// The clamp is also what keeps compilers from joining a product with the sum, which would round
// otherwise on some instruction sets.
EK_INLINE V rounded(V x, float least, float most) {
    return at_most(at_least(x, least), most) + ROUNDER;
}
EK_INLINE I integers(V rounded) { return I(rounded) - I(splat(ROUNDER)); }
EK_INLINE V absolute(V x) { return V(U(x) & 0x7fffffffu); }

// `count` elements, and zeros up to a whole group.
template <int64_t SIZE, class T>
EK_INLINE void load_group(float* group, const T* x, int64_t count) {
    if (count >= SIZE) {
        for (int64_t i = 0; i < SIZE; i += LANES) store(group + i, load(x + i));
    } else {
        for (int64_t i = 0; i < SIZE; i++) group[i] = i < count ? to_float(x[i]) : 0;
    }
}

#if defined(__AVX512F__)
EK_INLINE float total_of(V x) { return _mm512_reduce_add_ps(__m512(x)); }
EK_INLINE int32_t total_of(I x) { return _mm512_reduce_add_epi32(__m512i(x)); }
EK_INLINE int32_t most_of(I x) { return _mm512_reduce_max_epi32(__m512i(x)); }
EK_INLINE void store_levels(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(__m512i(x)));
}
EK_INLINE V load_scales(const std::byte* p) {
    return V(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
#else
EK_INLINE float total_of(V x) { return sum(x); }
EK_INLINE int32_t total_of(I x) {
    int32_t total = 0;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}
EK_INLINE int32_t most_of(I x) {
    int32_t most = x[0];
    for (int lane = 1; lane < LANES; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
}
EK_INLINE void store_levels(int8_t* p, I x) {
    for (int lane = 0; lane < LANES; lane++) p[lane] = int8_t(x[lane]);
}
EK_INLINE V load_scales(const std::byte* p) { return load(reinterpret_cast<const bf16*>(p)); }
#endif

// The largest magnitude. Compared as integers, so that an infinity or a NaN is the largest of all,
// and shows in the results.
template <int64_t SIZE>
EK_INLINE float magnitude(const float* group) {
    I most{};
    for (int64_t i = 0; i < SIZE; i += LANES) {
        const I x = I(absolute(load(group + i)));
        most = x > most ? x : most;
    }
    return __builtin_bit_cast(float, most_of(most));
}

template <int64_t SIZE>
EK_INLINE bool contains(const float* group, float value) {
    I found{};
    for (int64_t i = 0; i < SIZE; i += LANES) found |= I(load(group + i) == value) & 1;
    return most_of(found) != 0;
}

// Rounds a group to `levels`, whole numbers from `least` to `most`, in units of `scale`. Returns
// their sum.
template <int64_t SIZE>
EK_INLINE int32_t round_group(const float* group, float scale, float least, float most,
                              int8_t* levels) {
    const float inverse = scale != 0 ? 1 / scale : 0;
    I total{};
    for (int64_t i = 0; i < SIZE; i += LANES) {
        const I level = integers(rounded(load(group + i) * inverse, least, most));
        total += level;
        store_levels(levels + i, level);
    }
    return total_of(total);
}

// A scale of 8 bits: not below magnitude / 127, so that nothing is cut off.
EK_INLINE bf16 scale_of_8(float magnitude) {
    const float exact = magnitude / 127;
    bf16 scale = from_float<bf16>(exact);
    if (to_float(scale) < exact) scale.bits++;
    return scale;
}

// A scale of 4 bits, levels -8 to 7. The element of largest magnitude becomes about -8; of some such
// scales, each improved by least squares, the one with the smallest squared error. About a
// tenth less error than Q4_0 of llama.cpp has, which knows the middle one only.
EK_INLINE bf16 scale_of_4(const float* group, float magnitude) {
    if (!(magnitude > 0 && magnitude < std::numeric_limits<float>::infinity()))
        return from_float<bf16>(magnitude);
    const float extreme = contains<32>(group, magnitude) ? magnitude : -magnitude;
    float best = -1, scale = 0;
    for (const float level : {7.0f, 7.6f, 8.0f, 8.5f, 9.0f}) {
        const float inverse = -level / extreme;
        V products{}, squares{};
        for (int64_t i = 0; i < 32; i += LANES) {
            const V x = load(group + i), l = rounded(x * inverse, -8, 7) - ROUNDER;
            products += x * l;
            squares += l * l;
        }
        const float product = total_of(products), square = total_of(squares);
        const float gain = product / square * product;  // the squared error is sum(x * x) less this
        if (gain > best) best = gain, scale = product / square;
    }
    return from_float<bf16>(scale);
}

template <int BITS, class T>
void pack_rows(const T* w, int64_t stride, std::byte* packed, int64_t k, int64_t n,
                    Team& team) {
    constexpr int64_t size = GROUP<BITS>;
    const int64_t groups = ceil_div(k, size);
    const Range mine = team.part(ceil_div(n, PANEL));
    alignas(64) float group[size];
    alignas(64) int8_t levels[size] = {};
    for (int64_t p = mine.begin; p < mine.end; p++) {
        for (int64_t c = 0; c < PANEL; c++) {
            const int64_t column = p * PANEL + c;
            for (int64_t g = 0; g < groups; g++) {
                std::byte* block = packed + (p * groups + g) * BLOCK<BITS>;
                bf16 scale{};
                if (column < n) {
                    load_group<size>(group, w + column * stride + g * size, k - g * size);
                    const float most = magnitude<size>(group);
                    scale = BITS == 8 ? scale_of_8(most) : scale_of_4(group, most);
                    round_group<size>(group, to_float(scale), BITS == 8 ? -127 : -8,
                                      BITS == 8 ? 127 : 7, levels);
                } else {
                    std::memset(levels, 0, size);
                }
                std::memcpy(block + 2 * c, &scale, 2);
                std::byte* quads = block + 2 * PANEL + 4 * c;
                for (int64_t q = 0; q < size / 4; q += BITS == 8 ? 1 : 2) {
                    uint8_t bytes[4];
                    for (int i = 0; i < 4; i++)
                        bytes[i] = BITS == 8 ? uint8_t(levels[4 * q + i] + 128)
                                             : uint8_t((levels[4 * q + i] + 8) |
                                                       (levels[4 * q + 4 + i] + 8) << 4);
                    std::memcpy(quads, bytes, 4);
                    quads += 4 * PANEL;
                }
            }
        }
    }
}

void pack(const void* w, int64_t stride, void* packed, int64_t k, int64_t n,
                        int32_t bits, Dtype dtype, Team& team) {
    with_dtype(dtype, [&](auto type) {
        with_bits(bits, [&](auto width) {
            pack_rows<width>(static_cast<const decltype(type)*>(w), stride,
                                  static_cast<std::byte*>(packed), k, n, team);
        });
    });
}

template <int BITS, class Y>
void look_up_rows(const int64_t* ids, const std::byte* packed, Y* y, int64_t k, int64_t tokens,
                       Team& team) {
    const int64_t groups = ceil_div(k, GROUP<BITS>);
    const Range mine = team.part(tokens);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const std::byte* panel = packed + ids[t] / PANEL * groups * BLOCK<BITS>;
        const int64_t c = ids[t] % PANEL;
        for (int64_t i = 0; i < k; i++) {
            const std::byte* block = panel + i / GROUP<BITS> * BLOCK<BITS>;
            const int64_t row = i % GROUP<BITS>, quad = BITS == 8 ? row / 4 : row / 8;
            const uint8_t byte = uint8_t(block[2 * PANEL + (quad * PANEL + c) * 4 + row % 4]);
            const int32_t stored = BITS == 8 ? byte : row / 4 % 2 ? byte >> 4 : byte & 15;
            bf16 scale;
            std::memcpy(&scale, block + 2 * c, 2);
            y[t * k + i] = from_float<Y>(float(stored - OFFSET<BITS>) * to_float(scale));
        }
    }
}

void look_up(const int64_t* ids, const void* packed, void* y, int64_t k, int32_t bits,
                           Dtype dtype, int64_t tokens, Team& team) {
    with_dtype(dtype, [&](auto type) {
        with_bits(bits, [&](auto width) {
            look_up_rows<width>(ids, static_cast<const std::byte*>(packed),
                                     static_cast<decltype(type)*>(y), k, tokens, team);
        });
    });
}

// Rounds rows of x to a tile.
template <int BITS, class T>
void round_tile(std::byte* tile, const T* x, int64_t stride, int64_t rows, int64_t k) {
    constexpr int64_t size = GROUP<BITS>;
    alignas(64) float group[size];
    alignas(64) int8_t levels[size];
    for (int64_t start = 0; start < k; start += size, tile += rows * ROW_BYTES<BITS>) {
        float* scales = reinterpret_cast<float*>(tile);
        int32_t* sums = reinterpret_cast<int32_t*>(scales + rows);
        Quad* quads = reinterpret_cast<Quad*>(sums + rows);
        for (int64_t m = 0; m < rows; m++) {
            load_group<size>(group, x + m * stride + start, k - start);
            scales[m] = magnitude<size>(group) / 127;
            sums[m] = -OFFSET<BITS> * round_group<size>(group, scales[m], -127, 127, levels);
            for (int64_t q = 0; q < size / 4; q++) quads[q * rows + m] = quad_of(levels + 4 * q);
        }
    }
}

// total[m][v] += rows of a tile times columns `column` + v * LANES ... of a panel, over `groups`; `first`:
// the totals are new. Not inlined, for one copy serves every type of x and y.
template <int BITS, int MR>
__attribute__((noinline)) void multiply_rows(const std::byte* tile, const std::byte* panel,
                                             int64_t groups, int64_t column, Ahead ahead, V* totals,
                                             bool first) {
    V total[MR][NV];
    each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
        total[m][v] = first ? V{} : totals[m * NV + v];
    });
    for (int64_t g = 0; g < groups; g++, tile += MR * ROW_BYTES<BITS>, panel += BLOCK<BITS>) {
        const float* scales = reinterpret_cast<const float*>(tile);
        const int32_t* sums = reinterpret_cast<const int32_t*>(scales + MR);
        const Quad* x = reinterpret_cast<const Quad*>(sums + MR);
        I acc[MR][NV];
        each_vector<MR>([&](auto m, auto v) EK_LAMBDA { acc[m][v] = I{} + sums[m]; });
        const std::byte* w = panel + 2 * PANEL + 4 * column;
#pragma GCC unroll 2
        for (int64_t q = 0; q < GROUP<BITS> / 4; q += 8 / BITS, w += 4 * PANEL) {
            U bytes[NV];
            unrolled<NV>([&](auto v) EK_LAMBDA { bytes[v] = load_bits(w + 4 * LANES * v); });
            ahead.fetch();
            ahead.at += ahead.step;
            unrolled<8 / BITS>([&](auto half) EK_LAMBDA {
                Quads quads[NV];
                unrolled<NV>([&](auto v) EK_LAMBDA {
                    quads[v] = quads_of(BITS == 8 ? bytes[v] : bytes[v] >> 4 * half & 0x0f0f0f0fu);
                });
                each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
                    acc[m][v] = dot_quads<BITS>(acc[m][v], quads[v], x[m]);
                });
                x += MR;
            });
        }
        ahead.at += ahead.other;  // past the scales
        V scale[NV];
        unrolled<NV>([&](auto v) EK_LAMBDA {
            scale[v] = load_scales(panel + 2 * (column + LANES * v));
        });
        each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
            total[m][v] += __builtin_convertvector(acc[m][v], V) * (scale[v] * scales[m]);
        });
    }
    each_vector<MR>([&](auto m, auto v) EK_LAMBDA { totals[m * NV + v] = total[m][v]; });
}

template <int BITS>
int64_t rows_of_left(int64_t k, int64_t tokens) {
    const int64_t row = ceil_div(k, GROUP<BITS>) * ROW_BYTES<BITS>;
    const int64_t fit = LEFT_BYTES / row / ROWS;
    const int64_t rows = (fit > 2 ? fit : 2) * ROWS;
    return rows < tokens ? rows : tokens;
}

template <class Y>
void store_totals(const V* totals, int64_t rows, const QuantizedLinear& args, Y* y, int64_t column) {
    for (int64_t m = 0; m < rows; m++, y += args.y_stride) {
        for (int v = 0; v < NV; v++) {
            const V total = totals[m * NV + v];
            const int64_t first = column + v * LANES;
            if (first + LANES <= args.n) {
                store(y + first, total + (args.bias ? load(args.bias + first) : V{}));
            } else {
                for (int lane = 0; lane < LANES && first + lane < args.n; lane++)
                    y[first + lane] =
                        from_float<Y>(total[lane] + (args.bias ? args.bias[first + lane] : 0.0f));
            }
        }
    }
}

template <int BITS, class X, class Y>
void linear_of(const QuantizedLinear& args, int64_t tokens, Team& team) {
    constexpr int64_t SUBS = PANEL / SUB;
    const int64_t groups = ceil_div(args.k, GROUP<BITS>);
    const int64_t parts = ceil_div(groups, PART<BITS>), row_bytes = groups * ROW_BYTES<BITS>;
    const int64_t block = rows_of_left<BITS>(args.k, tokens);
    const bool together = team.size > 1 && tokens > ROWS;
    const int64_t left_bytes = round_up(block * row_bytes, 64);
    const int64_t sums_size = block * SUBS * NV;  // of one panel, between its parts
    V* sums = reinterpret_cast<V*>(
        team.own(size_t(sums_size) * sizeof(V) + size_t(together ? 0 : left_bytes)));
    std::byte* own = reinterpret_cast<std::byte*>(sums + sums_size);
    int64_t number = 0;
    for (int64_t start = 0; start < tokens; start += block, number++) {
        const int64_t rows = tokens - start < block ? tokens - start : block;
        const int64_t tiles = ceil_div(rows, ROWS);
        // Two buffers: whoever is done may round the next block while others still read this one.
        std::byte* left = together ? team.shared + number % 2 * left_bytes : own;
        const X* x = static_cast<const X*>(args.x) + start * args.x_stride;
        Y* y = static_cast<Y*>(args.y) + start * args.y_stride;
        const Range mine = together ? team.part(tiles) : Range{0, tiles};
        for (int64_t t = mine.begin; t < mine.end; t++) {
            const Range tile = part_of(rows, t, tiles);
            round_tile<BITS>(left + tile.begin * row_bytes, x + tile.begin * args.x_stride,
                             args.x_stride, tile.end - tile.begin, args.k);
        }
        if (together) team.barrier();
        const auto multiply_panel = [&](int64_t p) {
            const std::byte* panel = static_cast<const std::byte*>(args.w) + p * groups * BLOCK<BITS>;
            for (int64_t part = 0; part < parts; part++) {
                const Range depth = part_of(groups, part, parts);
                for (int64_t t = 0; t < tiles; t++) {
                    const Range tile = part_of(rows, t, tiles);
                    const int64_t height = tile.end - tile.begin;
                    const std::byte* a =
                        left + tile.begin * row_bytes + depth.begin * height * ROW_BYTES<BITS>;
                    const std::byte* b = panel + depth.begin * BLOCK<BITS>;
                    const int64_t count = depth.end - depth.begin;
                    Ahead ahead = ahead_of(b + 2 * PANEL, count * BLOCK<BITS>, 4 * PANEL, t, tiles);
                    for (int64_t sub = 0; sub < SUBS; sub++, ahead = {b, 0, 0}) {
                        V* totals = sums + (tile.begin * SUBS + sub * height) * NV;
                        with_rows<ROWS>(height, [&](auto rows_of_tile) {
                            multiply_rows<BITS, rows_of_tile>(a, b, count, sub * SUB, ahead, totals,
                                                              part == 0);
                        });
                        if (part + 1 == parts)
                            store_totals(totals, height, args, y + tile.begin * args.y_stride,
                                         p * PANEL + sub * SUB);
                    }
                }
            }
        };
        team.share(ceil_div(args.n, PANEL), tokens > ROWS ? 1 : 2, [&](int64_t p, int64_t end) {
            for (; p < end; p++) multiply_panel(p);
        });
    }
}

void linear(const QuantizedLinear& args, int64_t tokens, Team& team) {
    with_dtype(args.dtype, [&](auto type) {
        using X = decltype(type);
        with_bits(args.bits, [&](auto width) {
            if (args.y_dtype == Dtype::f32)
                linear_of<width, X, float>(args, tokens, team);
            else
                linear_of<width, X, X>(args, tokens, team);
        });
    });
}

size_t shared_bytes(const QuantizedLinear& args, int64_t tokens) {
    size_t bytes = 0;
    with_bits(args.bits, [&](auto width) {
        if (tokens > ROWS) {
            const int64_t row_bytes = ceil_div(args.k, GROUP<width>) * ROW_BYTES<width>;
            bytes = 2 * size_t(round_up(
                            rows_of_left<width>(args.k, tokens) * row_bytes, 64));
        }
    });
    return bytes;
}

}  // namespace quantized

constexpr QuantizedKernels quantized_kernels{quantized::pack, quantized::look_up, quantized::linear,
                                             quantized::shared_bytes};
