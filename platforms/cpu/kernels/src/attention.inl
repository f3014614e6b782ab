// Included inside `namespace ek::EK_ISA`, after panel.h. See attention.h for the cache's layout.
//
// Flash attention (Dao et al. 2022, 2023) over keys in chunks: scores of a chunk stay in the
// processor's cache, and the result is scaled whenever a larger score appears. Few rows with many keys
// are cut into ranges of keys whose results are merged (flash decoding); so are the common beginning
// of several requests and what each has of its own.

// Keys whose scores are computed before their values are added up.
constexpr int64_t CHUNK = 128;
constexpr int64_t CHUNK_PAGES = CHUNK / PANEL;
constexpr float LOG2_E = 1.44269504f;
// Below any score, and no trouble in differences.
constexpr float NO_SCORE = -1e30f;
// Arithmetic operations below which waking a second thread costs more than it brings.
constexpr double ALONE = 1e5;

// int8 in a cache, with scales.
struct CacheByte {
    int8_t value;
};
typedef int8_t B __attribute__((vector_size(LANES)));
typedef int8_t BAnywhere __attribute__((vector_size(LANES), aligned(1), may_alias));

// Spelled out, because GCC 12 converts bytes lane by lane.
EK_INLINE V load(const CacheByte* p) {
#if defined(__AVX512F__)
    return V(_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__AVX2__)
    return V(_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__aarch64__)
    uint32_t bytes;
    std::memcpy(&bytes, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes)));
    return V(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
#else
    const B bytes = *reinterpret_cast<const BAnywhere*>(p);
    return __builtin_convertvector(__builtin_convertvector(bytes, I), V);
#endif
}

template <class W>
constexpr bool IS_BYTE = std::is_same_v<W, CacheByte>;
template <class W>
constexpr int64_t PAIR = std::is_same_v<W, bf16> ? 2 : 1;

template <class F>
EK_INLINE void with_kv_dtype(Dtype dtype, F&& f) {
    if (dtype == Dtype::i8)
        f(CacheByte{});
    else
        with_dtype(dtype, f);
}

// One page of one head.
template <class W>
struct Unit {
    W* keys;
    int64_t head_dim;

    W* values(int64_t panel = 0) const {
        return keys + panel_size<W>(head_dim) + panel * panel_size<W>(PANEL);
    }
    float* key_scales() const { return reinterpret_cast<float*>(values(ceil_div(head_dim, PANEL))); }
    float* value_scales() const { return key_scales() + PANEL; }
};

template <class W>
EK_INLINE Unit<W> unit_of(const Attention& args, int64_t page, int64_t head) {
    const AttentionShape& shape = args.plan->shape;
    return {reinterpret_cast<W*>(static_cast<std::byte*>(args.cache) +
                                 (page * shape.kv_heads + head) * shape.unit_bytes),
            shape.head_dim};
}

// Storing

template <class W, class T>
EK_INLINE W converted(T x) {
    if constexpr (std::is_same_v<W, T>)
        return x;
    else
        return from_float<W>(to_float(x));
}

// The scale with which x [count] fits int8: 1 of it is the largest number's 127th part.
template <class T>
EK_INLINE float byte_scale(const T* x, int64_t count) {
    float most = 0;
    for (int64_t i = 0; i < count; i++) {
        const float size = std::fabs(to_float(x[i]));
        most = size > most ? size : most;
    }
    return most / 127;
}

template <class W, class T>
EK_INLINE void store_token(Unit<W> unit, int64_t place, const T* k, const T* v, int64_t head_dim) {
    constexpr int64_t P = PAIR<W>;
    W* keys = unit.keys + place * P;
    if constexpr (IS_BYTE<W>) {
        const auto put = [&](const T* x, float scale, auto&& at) {
            const float factor = scale > 0 ? 1 / scale : 0;
            for (int64_t d = 0; d < head_dim; d++)
                at(d)->value = int8_t(std::lrintf(to_float(x[d]) * factor));
        };
        const float k_scale = byte_scale(k, head_dim), v_scale = byte_scale(v, head_dim);
        unit.key_scales()[place] = k_scale;
        unit.value_scales()[place] = v_scale;
        put(k, k_scale, [&](int64_t d) { return keys + d * PANEL; });
        put(v, v_scale, [&](int64_t d) {
            return unit.values(d / PANEL) + place * PANEL + d % PANEL;
        });
    } else {
        for (int64_t d = 0; d < head_dim; d++)
            keys[d / P * P * PANEL + d % P] = converted<W>(k[d]);
        for (int64_t panel = 0; panel * PANEL < head_dim; panel++) {
            W* row = unit.values(panel) + place / P * P * PANEL + place % P;
            const T* x = v + panel * PANEL;
            const int64_t rest = head_dim - panel * PANEL, count = rest < PANEL ? rest : PANEL;
            for (int64_t d = 0; d < count; d++) row[d * P] = converted<W>(x[d]);
        }
    }
}

template <class W>
void store_step(const Attention& args, Team& team) {
    const AttentionPlan& plan = *args.plan;
    const AttentionShape& shape = plan.shape;
    with_dtype(shape.dtype, [&](auto type) {
        using T = decltype(type);
        const Range mine = team.part(plan.num_tokens * shape.kv_heads);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const int64_t token = i / shape.kv_heads, head = i % shape.kv_heads;
            const int64_t slot = plan.slots[size_t(token)];
            if (slot < 0) continue;
            store_token(unit_of<W>(args, slot / PANEL, head), slot % PANEL,
                        static_cast<const T*>(args.k) + token * args.k_stride +
                            head * args.k_head_stride,
                        static_cast<const T*>(args.v) + token * args.v_stride +
                            head * args.v_head_stride,
                        shape.head_dim);
        }
    });
}

// Attending

// acc[m][v] += the sum over k of a(k, m) * panel[k][column + v * LANES ...], as `multiply`; entry
// (k, m) of the left matrix is a[k * KS + m * MS], k counting pairs where entries are pairs. `next`:
// what to have at hand soon, as many bytes as the panel has, or null.
template <int MR, int64_t KS, int64_t MS, class E, class W>
EK_INLINE void product(const E* a, const W* panel, int64_t k, int64_t column, V (&acc)[MR][NV],
                       const void* next) {
    constexpr bool pairs = std::is_same_v<W, bf16>;
    constexpr int64_t row = PAIR<W> * PANEL;
    const W* w = panel + PAIR<W> * column;
    const auto* ahead = static_cast<const char*>(next);
    const auto fetch = [&]() {
        if (ahead == nullptr) return;
        for (int64_t byte = 0; byte < row * int64_t(sizeof(W)); byte += 64)
            __builtin_prefetch(ahead + byte);
        ahead += row * sizeof(W);
    };
    if constexpr (pairs) {
        const int64_t whole = k / 2;
        for (int64_t i = 0; i < whole; i++, w += row) {
            U bits[NV];
            unrolled<NV>([&](auto v) EK_LAMBDA { bits[v] = load_bits(w + 2 * LANES * v); });
            fetch();
            if constexpr (std::is_same_v<E, float>) {
                add_product(acc, [&](int v) EK_LAMBDA { return V(bits[v] << 16); },
                            [&](int m) EK_LAMBDA { return splat(a[2 * i * KS + m * MS]); });
                add_product(acc, [&](int v) EK_LAMBDA { return V(bits[v] & 0xffff0000u); },
                            [&](int m) EK_LAMBDA { return splat(a[(2 * i + 1) * KS + m * MS]); });
            } else {
                each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
                    acc[m][v] = dot_pairs(acc[m][v], bits[v], a[i * KS + m * MS]);
                });
            }
        }
        if (k % 2)  // the pair's other row may hold anything
            add_product(acc, [&](int v) EK_LAMBDA { return V(load_bits(w + 2 * LANES * v) << 16); },
                        [&](int m) EK_LAMBDA {
                            if constexpr (std::is_same_v<E, float>)
                                return splat(a[(k - 1) * KS + m * MS]);
                            else
                                return splat(__builtin_bit_cast(float, a[k / 2 * KS + m * MS] << 16));
                        });
    } else {
        for (int64_t i = 0; i < k; i++, w += row) {
            fetch();
            add_product(acc, [&](int v) EK_LAMBDA { return load(w + LANES * v); },
                        [&](int m) EK_LAMBDA { return splat(a[i * KS + m * MS]); });
        }
    }
}

// tanh: Cephes' tanhf.
EK_INLINE V tanh(V x) {
    const V z = x * x;
    V p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const V size = x < 0 ? -x : x;
    const V large = 1.0f - 2.0f / (exp(2.0f * (size > 20.0f ? splat(20.0f) : size)) + 1.0f);
    return size < 0.625f ? p * z * x + x : (x < 0 ? -large : large);
}

// Scores of MR queries, a tile, with the PANEL keys of a page.
template <int MR, class E, class W>
__attribute__((noinline)) void score_tile(const E* q, const W* keys, int64_t head_dim, float* scores,
                                          const void* next) {
    for (int64_t column = 0; column < PANEL; column += SUB, next = nullptr) {
        V acc[MR][NV] = {};
        product<MR, MR, 1>(q, keys, head_dim, column, acc, next);
        each_vector<MR>([&](auto m, auto v) EK_LAMBDA {
            store(scores + m * CHUNK + column + v * LANES, acc[m][v]);
        });
    }
}

// out[m] = out[m] * decay[m] + the weighted sum of values, for MR queries and one panel of columns.
// values[j]: the panel of page j; next[j]: what to have at hand after it.
template <int MR, class E, class W>
__attribute__((noinline)) void value_tile(const E* weights, const W* const* values, int64_t keys,
                                          const float* decay, float* out, int64_t out_stride,
                                          const W* const* next) {
    constexpr int64_t entries = std::is_same_v<E, float> ? PANEL : PANEL / 2;  // of a page
    for (int64_t column = 0; column < PANEL; column += SUB, next = nullptr) {
        V acc[MR][NV] = {};
        for (int64_t j = 0; j * PANEL < keys; j++) {
            const int64_t rest = keys - j * PANEL;
            product<MR, 1, CHUNK>(weights + j * entries, values[j], rest < PANEL ? rest : PANEL,
                                  column, acc, next ? next[j] : nullptr);
        }
        unrolled<MR>([&](auto m) EK_LAMBDA {
            float* row = out + m * out_stride + column;
            const V factor = splat(decay[m]);
            unrolled<NV>([&](auto v) EK_LAMBDA {
                store(row + v * LANES, load(row + v * LANES) * factor + acc[m][v]);
            });
        });
    }
}

template <class F>
EK_INLINE float across_lanes(V x, F&& f) {
    for (int step = LANES / 2; step > 0; step /= 2) {
        I other{};
        for (int i = 0; i < LANES; i++) other[i] = i ^ step;
        x = f(x, __builtin_shuffle(x, other));
    }
    return x[0];
}

// One instruction where `max` is two.
EK_INLINE V larger(V a, V b) {
#if defined(__AVX512F__)
    return V(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
    return V(_mm256_max_ps(__m256(a), __m256(b)));
#else
    return max(a, b);
#endif
}

// 2^x for x up to 0, and 2^-126 below that; NaN stays NaN. Polynomial as in Cephes' exp2f.
EK_INLINE V exp2(V x) {
    x = larger(splat(-126.0f), x);
    const V shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const V f = x - (shifted - 12582912.0f);
    V p = splat(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    return V(I(p) + (I(shifted) << 23));
}

// Hides scores, in place, and applies what is no common factor. Returns the factor by which they are
// still to be multiplied.
EK_INLINE float prepare(const AttentionShape& shape, float* scores, int64_t width, Range visible,
                        const float* k_scales) {
    const float scale = shape.scale, cap = shape.soft_cap;
    I lane{};
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t j = 0; j < width; j += LANES) {
        V x = load(scores + j) * scale;
        if (k_scales) x = x * load(k_scales + j);
        if (cap > 0) x = cap * tanh(x / cap);
        const I key = lane + int32_t(j);
        x = (key >= int32_t(visible.begin)) & (key < int32_t(visible.end))
                ? x
                : splat(-std::numeric_limits<float>::infinity());
        store(scores + j, x);
    }
    return 1;
}

// Scores of N rows [width] become weights, of type E, in place: 2^(score * factor - most), where `most`
// is the largest exponent so far. Several rows at once, because each waits for its largest score.
template <int N, class E>
EK_INLINE void soft_max(float* scores, int64_t width, const float* factor, const float* before,
                        float* most, float* total, const float* v_scales) {
    V largest[N];
    for (int n = 0; n < N; n++) largest[n] = splat(NO_SCORE);
    for (int64_t j = 0; j < width; j += LANES)
        for (int n = 0; n < N; n++) largest[n] = larger(load(scores + n * CHUNK + j), largest[n]);
    V scale[N], sums[N];
    for (int n = 0; n < N; n++) {
        const float here = across_lanes(largest[n], [](V a, V b) { return larger(a, b); });
        most[n] = here * factor[n] > before[n] ? here * factor[n] : before[n];
        largest[n] = splat(most[n]);
        scale[n] = splat(factor[n]);
        sums[n] = V{};
    }
    for (int64_t j = 0; j < width; j += LANES) {
        for (int n = 0; n < N; n++) {
            float* row = scores + n * CHUNK;
            V weight = exp2(load(row + j) * scale[n] - largest[n]);
            sums[n] += weight;
            if (v_scales) weight = weight * load(v_scales + j);
            if constexpr (std::is_same_v<E, float>)
                store(row + j, weight);
            else  // a pair of bf16 is an entry; written behind what is still to be read
                store(reinterpret_cast<bf16*>(row) + j, weight);
        }
    }
    for (int n = 0; n < N; n++)
        total[n] = across_lanes(sums[n], [](V a, V b) { return a + b; });
}

// Scratch of one thread for one item.
template <class E>
struct Rows {
    E* q;           // tiles
    float* scores;  // [rows, CHUNK]; then the weights, of type E
    float* out;     // [rows, D rounded up to panels]
    // [rows], of each row:
    float* most;   // the largest exponent of 2 so far
    float* sum;    // of the weights
    float* next;   // the largest exponent with this chunk
    float* total;  // the sum of this chunk's weights
    float* decay;  // what makes scores exponents; then by what the result shrinks with this chunk
    int32_t* begins;  // [tiles + 1]: where tiles begin; divided once, for divisions are slow

    static int64_t aligned(int64_t count) { return round_up(count, 16); }
    static size_t bytes(int64_t rows, int64_t head_dim) {
        return 4 * size_t(aligned(rows * head_dim) + rows * CHUNK +
                          rows * round_up(head_dim, PANEL) + 5 * aligned(rows) +
                          aligned(rows + 1));
    }
    Rows(std::byte* memory, int64_t rows, int64_t head_dim)
        : q(reinterpret_cast<E*>(memory)),
          scores(reinterpret_cast<float*>(memory) + aligned(rows * head_dim)),
          out(scores + rows * CHUNK),
          most(out + rows * round_up(head_dim, PANEL)),
          sum(most + aligned(rows)),
          next(sum + aligned(rows)),
          total(next + aligned(rows)),
          decay(total + aligned(rows)),
          begins(reinterpret_cast<int32_t*>(decay + aligned(rows))) {}
};

// One item of one key/value head.
template <class W, class E>
struct Attend {
    // How q is laid out: entries are pairs only where q is bf16 as well, so that nothing is rounded.
    using Left = std::conditional_t<std::is_same_v<E, float>, float, bf16>;

    const Attention& args;
    const AttentionShape& shape;
    const AttentionItem& item;
    const int64_t head, group, head_dim, width, count, tiles;
    Rows<E> rows;
    int64_t pages = 0;               // of this chunk
    Unit<W> units[CHUNK_PAGES + 1];  // those, and the next one to be read

    Attend(const Attention& a, const AttentionItem& i, int64_t h, std::byte* memory)
        : args(a),
          shape(a.plan->shape),
          item(i),
          head(h),
          group(shape.group()),
          head_dim(shape.head_dim),
          width(round_up(head_dim, PANEL)),
          count(i.count * group),
          tiles(ceil_div(count, MOST_ROWS)),
          rows(memory, count, head_dim) {}

    Range tile_at(int64_t t) const { return {rows.begins[t], rows.begins[t + 1]}; }

    // `following`: of the item that comes after this one.
    void run(Unit<W> following) {
        for (int64_t t = 0; t <= tiles; t++) rows.begins[t] = int32_t(count * t / tiles);
        pack();
        std::fill_n(rows.out, count * width, 0.0f);
        std::fill_n(rows.most, Rows<E>::aligned(count), NO_SCORE);
        std::fill_n(rows.sum, 4 * Rows<E>::aligned(count), 0.0f);
        for (int64_t begin = item.begin; begin < item.end; begin += CHUNK) {
            const int64_t end = begin + CHUNK < item.end ? begin + CHUNK : int64_t(item.end);
            pages = ceil_div(end - begin, PANEL);
            for (int64_t j = 0; j < pages; j++) units[j] = unit(begin / PANEL + j);
            units[pages] = end < item.end ? unit(end / PANEL) : following;
            score();
            weigh(begin, end);
            add_up(end - begin);
        }
        if (item.partial < 0)
            finish();
        else
            keep();
    }

    int32_t token(int64_t row) const {
        return args.plan->tokens[size_t(item.first + row / group)];
    }
    Unit<W> unit(int64_t page) const {
        return unit_of<W>(args, args.plan->pages[size_t(item.pages + page)], head);
    }

    void pack() {
        with_dtype(shape.dtype, [&](auto type) {
            using T = decltype(type);
            if constexpr (std::is_same_v<E, float> || std::is_same_v<T, bf16>) {
                const T* q = static_cast<const T*>(args.q) + head * group * args.q_head_stride;
                for (int64_t t = 0; t < tiles; t++) {
                    const Range tile = tile_at(t);
                    pack_tile<Left>(rows.q + tile_size<Left>(tile.begin, head_dim),
                                    tile.end - tile.begin, head_dim, [&](int64_t m) {
                                        const int64_t row = tile.begin + m;
                                        return q + token(row) * args.q_stride +
                                               row % group * args.q_head_stride;
                                    });
                }
            }
        });
    }

    // Scores of all rows with the keys of this chunk, and with what lies behind them on the last page.
    void score() {
        for (int64_t j = 0; j < pages; j++) {
            const W* next = j + 1 < pages ? units[j + 1].keys : units[0].values();
            for (int64_t t = 0; t < tiles; t++, next = nullptr) {
                const Range tile = tile_at(t);
                const E* q = rows.q + tile_size<Left>(tile.begin, head_dim);
                float* scores = rows.scores + tile.begin * CHUNK + j * PANEL;
                with_rows(tile.end - tile.begin, [&](auto m) {
                    score_tile<m>(q, static_cast<const W*>(units[j].keys), head_dim, scores, next);
                });
            }
        }
    }

    // Scores with keys begin..end become weights.
    void weigh(int64_t begin, int64_t end) {
        float k_scales[CHUNK], v_scales[CHUNK];
        if constexpr (IS_BYTE<W>) {
            for (int64_t j = 0; j < pages; j++) {
                std::copy_n(units[j].key_scales(), PANEL, k_scales + j * PANEL);
                std::copy_n(units[j].value_scales(), PANEL, v_scales + j * PANEL);
            }
        }
        const int64_t window = shape.window, keys = pages * PANEL;
        const bool plain = !IS_BYTE<W> && !(shape.soft_cap > 0) && shape.scale > 0;
        for (int64_t row = 0; row < count; row++) {
            float* scores = rows.scores + row * CHUNK;
            const int64_t position = args.plan->position[size_t(token(row))];
            const int64_t first = window ? position - window + 1 : 0;
            const Range visible{first > begin ? first - begin : 0,
                                position + 1 < end ? position + 1 - begin : end - begin};
            const bool whole = visible.begin == 0 && visible.end == keys;
            rows.decay[row] =
                LOG2_E * (plain && whole
                              ? shape.scale
                              : prepare(shape, scores, keys, visible, IS_BYTE<W> ? k_scales : nullptr));
        }
        const auto soften = [&](int64_t row, auto n) {
            soft_max<n, E>(rows.scores + row * CHUNK, keys, rows.decay + row, rows.most + row,
                           rows.next + row, rows.total + row, IS_BYTE<W> ? v_scales : nullptr);
        };
        for (int64_t done = 0; done < count; done += 4)
            with_rows<4>(std::min<int64_t>(4, count - done), [&](auto n) { soften(done, n); });
        for (int64_t row = 0; row < count; row += LANES) {
            const V decay = exp2(load(rows.most + row) - load(rows.next + row));
            store(rows.decay + row, decay);
            store(rows.sum + row, load(rows.sum + row) * decay + load(rows.total + row));
            store(rows.most + row, load(rows.next + row));
        }
    }

    // Adds the weighted values of the first `keys` keys of this chunk to the result.
    void add_up(int64_t keys) {
        const int64_t panels = width / PANEL;
        for (int64_t p = 0; p < panels; p++) {
            const W *values[CHUNK_PAGES], *next[CHUNK_PAGES];
            for (int64_t j = 0; j < pages; j++) values[j] = units[j].values(p);
            for (int64_t j = 0; j + 1 < pages; j++) next[j] = values[j + 1];
            next[pages - 1] = p + 1 < panels ? units[0].values(p + 1) : units[pages].keys;
            for (int64_t t = 0; t < tiles; t++) {
                const Range tile = tile_at(t);
                const auto* weights = reinterpret_cast<const E*>(rows.scores + tile.begin * CHUNK);
                float* out = rows.out + tile.begin * width + p * PANEL;
                with_rows(tile.end - tile.begin, [&](auto m) {
                    value_tile<m>(weights, values, keys, rows.decay + tile.begin, out, width,
                                  t == 0 ? next : nullptr);
                });
            }
        }
    }

    void finish();
    void keep();
};

// out [D] = x / sum, in the dtype of the result.
template <class T>
EK_INLINE void store_result(T* out, const float* x, float sum, int64_t head_dim) {
    const float factor = 1 / sum;
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(out + d, load(x + d) * factor);
    for (; d < head_dim; d++) out[d] = from_float<T>(x[d] * factor);
}

template <class W, class E>
void Attend<W, E>::finish() {
    with_dtype(shape.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t row = 0; row < count; row++) {
            const int64_t line = token(row) * shape.heads + head * group + row % group;
            store_result(static_cast<T*>(args.out) + line * head_dim, rows.out + row * width,
                         rows.sum[row], head_dim);
        }
    });
}

template <class W, class E>
void Attend<W, E>::keep() {
    const int64_t size = part_size(head_dim);
    float* part = args.plan->partials.get() + item.partial + head * count * size;
    for (int64_t row = 0; row < count; row++, part += size) {
        part[0] = rows.most[row];
        part[1] = rows.sum[row];
        std::copy_n(rows.out + row * width, width, part + PART_HEAD);
    }
}

// The whole result of one query from its parts.
template <class T>
void merge(const AttentionPlan& plan, const AttentionMerge& one, int64_t head, T* out, float* sum) {
    const int64_t head_dim = plan.shape.head_dim, group = plan.shape.group();
    const int64_t width = round_up(head_dim, PANEL);
    const auto part = [&](int32_t i) {
        const AttentionPart& found = plan.parts[size_t(one.first + i)];
        return plan.partials.get() + found.at + head / group * found.head_stride +
               head % group * part_size(head_dim);
    };
    float most = NO_SCORE, weight = 0;
    for (int32_t i = 0; i < one.count; i++) most = std::max(most, part(i)[0]);
    std::fill_n(sum, width, 0.0f);
    for (int32_t i = 0; i < one.count; i++) {
        const float* x = part(i);
        const float factor = std::exp2(x[0] - most);
        weight += x[1] * factor;
        for (int64_t d = 0; d < width; d += LANES)
            store(sum + d, load(sum + d) + load(x + PART_HEAD + d) * factor);
    }
    store_result(out, sum, weight, head_dim);
}

void merge_all(const Attention& args, Team& team) {
    const AttentionPlan& plan = *args.plan;
    const int64_t heads = plan.shape.heads, head_dim = plan.shape.head_dim;
    const Range mine = team.part(int64_t(plan.merges.size()) * heads);
    auto* sum = reinterpret_cast<float*>(team.own(size_t(round_up(head_dim, PANEL)) * 4));
    with_dtype(plan.shape.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const AttentionMerge& one = plan.merges[size_t(i / heads)];
            const int64_t head = i % heads;
            merge(plan, one, head,
                  static_cast<T*>(args.out) + (one.token * heads + head) * head_dim, sum);
        }
    });
}

template <class W, class E>
void attend_all(const Attention& args, Team& team) {
    AttentionPlan& plan = *args.plan;
    const int64_t heads = plan.shape.kv_heads, units = int64_t(plan.items.size()) * heads;
    std::byte* memory = team.own(Rows<E>::bytes(plan.most_rows, plan.shape.head_dim));
    const auto item = [&](int64_t i) {
        return Attend<W, E>(args, plan.items[size_t(i / heads)], i % heads, memory);
    };
    const auto claim = [&]() { return plan.next.fetch_add(1, std::memory_order_relaxed); };
    for (int64_t i = claim(), next; i < units; i = next) {
        next = claim();
        Unit<W> following{};
        if (next < units) {
            const Attend<W, E> other = item(next);
            following = other.unit(other.item.begin / PANEL);
        }
        item(i).run(following);
    }
}

template <class W>
void attention_of(const Attention& args, Team& team) {
    AttentionPlan& plan = *args.plan;
    if (team.rank == 0) plan.next.store(0, std::memory_order_relaxed);
    store_step<W>(args, team);
    team.barrier();
    if constexpr (EK_DOT_BF16 && std::is_same_v<W, bf16>) {
        if (plan.shape.dtype == Dtype::bf16)
            attend_all<W, uint32_t>(args, team);
        else
            attend_all<W, float>(args, team);
    } else {
        attend_all<W, float>(args, team);
    }
    if (plan.merges.empty()) return;
    team.barrier();
    merge_all(args, team);
}

void attention(const Attention& args, Team& team) {
    const AttentionShape& shape = args.plan->shape;
    const bool little = args.plan->work < ALONE;
    if (little && team.rank > 0) return;
    Team alone{0, 1, team.gate, team.shared, nullptr};
    with_kv_dtype(shape.kv_dtype,
                  [&](auto type) { attention_of<decltype(type)>(args, little ? alone : team); });
}

constexpr AttentionKernels attention_kernels{attention};
