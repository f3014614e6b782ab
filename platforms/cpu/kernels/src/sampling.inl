// Included inside `namespace ek::EK_ISA`, after panel.h. See sampling.h.

namespace sampling {

constexpr int64_t PIECE = 16384;  // of a row: few rows too are shared by the team
constexpr int64_t BLOCK = 128;    // tokens that are passed over together
constexpr int64_t CHUNK = 512;    // as the core's reference draws

struct Best {
    float highest;
    bool nan;
    int64_t id;
};

// The highest of `count` scores; id counts from their first.
Best best_of(const float* scores, int64_t count) {
    V most = splat(-std::numeric_limits<float>::infinity());
    I nan = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const V x = load(scores + i);
        most = max(most, x);
        nan |= I(x != x);
    }
    Best best{maximum(most), false, 0};
    for (int lane = 0; lane < LANES; lane++) best.nan |= nan[lane] != 0;
    for (; i < count; i++) {
        best.highest = std::max(best.highest, scores[i]);
        best.nan |= scores[i] != scores[i];
    }
    // The second look ends early, and finds what the first one brought into the cache.
    const V wanted = splat(best.highest);
    for (i = 0; i + LANES <= count; i += LANES) {
        const I found = I(load(scores + i) == wanted);
        int64_t any = 0;
        for (int lane = 0; lane < LANES; lane++) any |= found[lane];
        if (any) break;
    }
    while (i < count && scores[i] != best.highest) i++;
    best.id = i < count ? i : 0;
    return best;
}

void argmax(const Argmax& args, int64_t tokens, Team& team) {
    const int64_t pieces = ceil_div(args.vocabulary, PIECE);
    Best* parts = reinterpret_cast<Best*>(team.shared);
    const Range mine = team.part(tokens * pieces);
    for (int64_t p = mine.begin; p < mine.end; p++) {
        const int64_t start = p % pieces * PIECE;
        parts[p] = best_of(args.scores + p / pieces * args.stride + start,
                           std::min(PIECE, args.vocabulary - start));
        parts[p].id += start;
    }
    team.barrier();
    const Range rows = team.part(tokens);
    for (int64_t t = rows.begin; t < rows.end; t++) {
        Best best = parts[t * pieces];
        for (int64_t p = 1; p < pieces; p++) {
            const Best& other = parts[t * pieces + p];
            best.nan |= other.nan;
            if (other.highest > best.highest) {
                best.highest = other.highest;
                best.id = other.id;
            }
        }
        args.highest[t] = best.nan ? std::numeric_limits<float>::quiet_NaN() : best.highest;
        args.ids[t] = best.id;
    }
}

size_t argmax_shared_bytes(const Argmax& args, int64_t tokens) {
    return size_t(tokens * ceil_div(args.vocabulary, PIECE)) * sizeof(Best);
}

// One row while it is filtered. Weights are never stored: to compute one again is as quick as to
// read it, and most blocks are passed over because their highest is too low.
struct RowSampler {
    const float* scores;
    int64_t vocabulary;
    float highest, temperature;
    float cutoff, floor;  // scores and weights under these are left out
    float* block_most;    // [blocks]: the highest score, later the highest weight
    double* chunk_sums;   // [chunks]
    float* list;          // [vocabulary + BLOCK]

    // Weights of up to LANES tokens from i on, count of them.
    template <class Count>
    EK_INLINE V weights(int64_t i, Count count) const {
        const V score = load_count(scores + i, count);
        V weight = exp((score - highest) / temperature);
        weight = score >= cutoff ? weight : V{};
        return weight >= floor ? weight : V{};
    }

    int64_t blocks() const { return ceil_div(vocabulary, BLOCK); }
    int64_t size_of(int64_t block) const { return std::min(BLOCK, vocabulary - block * BLOCK); }

    void filter(int64_t top_k, float top_p, float min_p);
    int64_t draw(float first, float second);
    float score_of_rank(int64_t k);
    double weigh(const float* least);
    float nucleus(double total, float top_p);
    int64_t collect(float least);
};

// The k-th highest score, or -inf if fewer are above -inf. Leaves the highest of each block.
//
// `list` holds the highest scores so far. When it is full the k highest of it stay, and lower scores
// need not be looked at any more.
float RowSampler::score_of_rank(int64_t k) {
    const int64_t most = std::min(vocabulary, std::max<int64_t>(4 * k, 4096));
    float least = -std::numeric_limits<float>::infinity();
    int64_t length = 0;
    const auto shorten = [&] {
        std::nth_element(list, list + k - 1, list + length, std::greater<float>());
        length = k;
        least = list[k - 1];
    };
    for (int64_t b = 0; b < blocks(); b++) {
        const float* block = scores + b * BLOCK;
        V high = splat(-std::numeric_limits<float>::infinity());
        by_vectors(size_of(b), [&](int64_t i, auto count) {
            if constexpr (std::is_same_v<decltype(count), int64_t>)
                for (int64_t j = 0; j < count; j++) high[0] = std::max(high[0], block[i + j]);
            else
                high = max(high, load(block + i));
        });
        block_most[b] = maximum(high);
        if (!(block_most[b] > least)) continue;
        for (int64_t i = 0; i < size_of(b); i++) {
            list[length] = block[i];
            length += block[i] > least;
        }
        if (length > most && length > k) shorten();
    }
    if (length < k) return -std::numeric_limits<float>::infinity();
    shorten();
    return least;
}

// Sums of the chunks, and the highest weight of each block; returns the total. Blocks whose
// `block_most` is under `*least` are passed over, if `least` is given.
double RowSampler::weigh(const float* least) {
    double total = 0;
    constexpr int64_t blocks_of_chunk = CHUNK / BLOCK;
    for (int64_t c = 0; c * CHUNK < vocabulary; c++) {
        double chunk = 0;
        const int64_t end = std::min((c + 1) * blocks_of_chunk, blocks());
        for (int64_t b = c * blocks_of_chunk; b < end; b++) {
            if (least && block_most[b] < *least) {
                block_most[b] = 0;
                continue;
            }
            V added[2] = {}, high = {};
            by_vectors(size_of(b), [&](int64_t i, auto count) {
                V weight = weights(b * BLOCK + i, count);
                if constexpr (std::is_same_v<decltype(count), int64_t>)
                    for (int64_t lane = count; lane < LANES; lane++) weight[lane] = 0;
                added[i / LANES % 2] += weight;
                high = max(high, weight);
            });
            block_most[b] = maximum(high);
            chunk += double(sum(added[0] + added[1]));
        }
        chunk_sums[c] = chunk;
        total += chunk;
    }
    return total;
}

// Puts the weights from `least` on into `list`; returns how many.
int64_t RowSampler::collect(float least) {
    int64_t length = 0;
    for (int64_t b = 0; b < blocks(); b++) {
        if (!(block_most[b] >= least)) continue;
        by_vectors(size_of(b), [&](int64_t i, auto count) {
            const V weight = weights(b * BLOCK + i, count);
            for (int64_t lane = 0; lane < count; lane++) {
                list[length] = weight[lane];
                length += weight[lane] >= least;
            }
        });
    }
    return length;
}

// The smallest weight of the nucleus, found without a sort; 0 if all are in it.
//
// Sums are taken in whole numbers, units of 2^-40 of the likeliest token, and do not depend on the
// order. The bits of a positive float order as the floats do: the floor's are found digit by digit.
float RowSampler::nucleus(double total, float top_p) {
    constexpr double UNITS = 1099511627776.0;
    constexpr int DIGITS = 1024;
    const int64_t target = std::max<int64_t>(int64_t(double(top_p) * total * UNITS), 1);
    // All weights under this together are less than what may be left out.
    const double spare = (1.0 - double(top_p)) * total;
    float least = float(0.999 * spare / double(vocabulary));
    int64_t length = 0, reached = 0;
    while (true) {
        if (least < 1e-30f) least = 0;
        length = collect(least);
        for (int64_t i = 0; i < length; i++) reached += int64_t(double(list[i]) * UNITS);
        if (reached >= target || least == 0) break;
        least = reached = 0;  // rounding left the target out of reach
    }
    if (reached < target) return 0;
    uint32_t found = 0;
    int64_t above = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        int64_t sums[DIGITS] = {};
        const auto digit_of = [&](float weight) {
            return (__builtin_bit_cast(uint32_t, weight) >> shift) % DIGITS;
        };
        for (int64_t i = 0; i < length; i++)
            sums[digit_of(list[i])] += int64_t(double(list[i]) * UNITS);
        uint32_t digit = DIGITS - 1;
        while (digit > 0 && above + sums[digit] < target) above += sums[digit--];
        int64_t kept = 0;
        for (int64_t i = 0; i < length; i++) {
            list[kept] = list[i];
            kept += digit_of(list[i]) == digit;
        }
        length = kept;
        found = found << 10 | digit;
    }
    return __builtin_bit_cast(float, found);
}

void RowSampler::filter(int64_t top_k, float top_p, float min_p) {
    cutoff = -std::numeric_limits<float>::infinity();
    floor = 0;
    const bool with_k = top_k > 0 && top_k < vocabulary;
    if (with_k) cutoff = score_of_rank(top_k);
    if (!(top_p < 1)) {
        floor = min_p;
        weigh(with_k ? &cutoff : nullptr);
        return;
    }
    const double total = weigh(with_k ? &cutoff : nullptr);
    floor = std::max(nucleus(total, top_p), min_p);
    weigh(&floor);
}

// Index of the first positive weight at which the running sum exceeds its share.
template <class T>
int64_t pick(const T* weights, int64_t count, float uniform) {
    double total = 0, running = 0;
    for (int64_t i = 0; i < count; i++) total += double(weights[i]);
    for (int64_t i = 0; i < count; i++) {
        running += double(weights[i]);
        if (running > double(uniform) * total && weights[i] > 0) return i;
    }
    return std::max_element(weights, weights + count) - weights;
}

int64_t RowSampler::draw(float first, float second) {
    const int64_t start = pick(chunk_sums, ceil_div(vocabulary, CHUNK), first) * CHUNK;
    const int64_t size = std::min(CHUNK, vocabulary - start);
    float inside[CHUNK];
    by_vectors(size, [&](int64_t i, auto count) {
        store_count(inside + i, weights(start + i, count), count);
    });
    return start + pick(inside, size, second);
}

void sample(const Sample& args, int64_t tokens, Team& team) {
    const Range mine = team.part(tokens);
    if (mine.begin == mine.end) return;
    const int64_t size = args.vocabulary;
    const size_t sums_bytes = size_t(ceil_div(size, CHUNK)) * sizeof(double);
    const size_t most_bytes = size_t(ceil_div(size, BLOCK)) * sizeof(float);
    std::byte* own = team.own(sums_bytes + most_bytes + size_t(size + BLOCK) * sizeof(float));
    for (int64_t n = mine.begin; n < mine.end; n++) {
        const int64_t place = args.places[n];
        if (!std::isfinite(args.highest[place])) {
            args.ids[n] = 0;
            continue;
        }
        RowSampler row{args.scores + place * args.stride,
                       size,
                       args.highest[place],
                       args.temperature[n],
                       0,
                       0,
                       reinterpret_cast<float*>(own + sums_bytes),
                       reinterpret_cast<double*>(own),
                       reinterpret_cast<float*>(own + sums_bytes + most_bytes)};
        row.filter(args.top_k[n], args.top_p[n], args.min_p[n]);
        args.ids[n] = row.draw(args.uniforms[2 * n], args.uniforms[2 * n + 1]);
    }
}

}  // namespace sampling

constexpr SamplingKernels sampling_kernels{sampling::argmax, sampling::argmax_shared_bytes,
                                           sampling::sample};
