// Included inside `namespace ek::EK_ISA`, after panel.h. See pointwise.h.

// Calls f(i, count) for 0..width, LANES at a time; only the last call may have a smaller count.
template <class F>
EK_INLINE void by_vectors(int64_t width, F&& f) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) f(i, std::integral_constant<int64_t, LANES>{});
    if (i < width) f(i, width - i);
}

// `load` and `store` of `count` elements: LANES as a constant costs nothing.
template <class T, class Count>
EK_INLINE V load_count(const T* p, Count count) {
    if constexpr (!std::is_same_v<Count, int64_t>) {
        return load(p);
    } else {
        T whole[LANES] = {};
        for (int64_t i = 0; i < count; i++) whole[i] = p[i];
        return load(whole);
    }
}
template <class T, class Count>
EK_INLINE void store_count(T* p, V x, Count count) {
    if constexpr (!std::is_same_v<Count, int64_t>) {
        store(p, x);
    } else {
        T whole[LANES];
        store(whole, x);
        for (int64_t i = 0; i < count; i++) p[i] = whole[i];
    }
}

// Calls f(X{}, W{}): W is the type of the weights, that of x or float.
template <class F>
EK_INLINE void with_weight_dtype(Dtype dtype, Dtype weight_dtype, F&& f) {
    with_dtype(dtype, [&](auto type) {
        if (weight_dtype == Dtype::f32)
            f(type, float{});
        else
            f(type, type);
    });
}

// The sum of the squares of a row of numbers that `values(i, count)` gives.
template <class Values>
EK_INLINE float sum_of_squares(int64_t width, Values&& values) {
    V sums[4] = {};  // so that an addition need not wait for the one before
    int64_t i = 0;
    constexpr std::integral_constant<int64_t, LANES> whole{};
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int s = 0; s < 4; s++) {
            const V x = values(i + s * LANES, whole);
            sums[s] += x * x;
        }
    by_vectors(width - i, [&](int64_t offset, auto count) {
        const V x = values(i + offset, count);
        sums[0] += x * x;
    });
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class X, class W>
EK_INLINE void scale_row(const X* x, const W* weight, X* y, int64_t width, float scale) {
    by_vectors(width, [&](int64_t i, auto count) {
        store_count(y + i, load_count(x + i, count) * scale * load_count(weight + i, count), count);
    });
}

void rms_norm(const RmsNorm& args, int64_t tokens, Team& team) {
    with_weight_dtype(args.dtype, args.weight_dtype, [&](auto type, auto weight_type) {
        using X = decltype(type);
        const auto* weight = static_cast<const decltype(weight_type)*>(args.weight);
        const Range mine = team.part(tokens * args.rows);
        for (int64_t r = mine.begin; r < mine.end; r++) {
            const X* x = static_cast<const X*>(args.x) + r / args.rows * args.token_stride +
                         r % args.rows * args.row_stride;
            const float squares = sum_of_squares(
                args.width, [&](int64_t i, auto count) { return load_count(x + i, count); });
            const float scale = 1.0f / std::sqrt(squares / float(args.width) + args.eps);
            scale_row(x, weight, static_cast<X*>(args.y) + r * args.width, args.width, scale);
        }
    });
}

void add_rms_norm(const AddRmsNorm& args, int64_t tokens, Team& team) {
    with_weight_dtype(args.dtype, args.weight_dtype, [&](auto type, auto weight_type) {
        using X = decltype(type);
        const auto* weight = static_cast<const decltype(weight_type)*>(args.weight);
        const Range mine = team.part(tokens);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            const X* x = static_cast<const X*>(args.x) + t * args.x_stride;
            const X* residual = static_cast<const X*>(args.residual) + t * args.residual_stride;
            X* total = static_cast<X*>(args.total) + t * args.width;
            const float squares = sum_of_squares(args.width, [&](int64_t i, auto count) {
                store_count(total + i, load_count(x + i, count) + load_count(residual + i, count),
                            count);
                return load_count(total + i, count);  // as it was rounded
            });
            const float scale = 1.0f / std::sqrt(squares / float(args.width) + args.eps);
            scale_row(total, weight, static_cast<X*>(args.y) + t * args.width, args.width, scale);
        }
    });
}

// Sine and cosine to the last place of a float. Cody and Waite's reduction by multiples of pi/2, in
// three parts of 33 bits; the polynomials are the Taylor series up to the 13th and 14th degree.
EK_INLINE void sine_and_cosine(double x, double& sine, double& cosine) {
    const double shifted = x * 0.63661977236758134308 + 6755399441055744.0;  // rounds to an integer
    const double n = shifted - 6755399441055744.0;
    double r = x - n * 1.57079632673412561417e+00;
    r -= n * 6.07710050630396597660e-11;
    r -= n * 2.02226624879595063154e-21;
    const double z = r * r;
    double s = 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = s * z * r + r;
    double c = -1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = c * z + 1.0;
    const int64_t quadrant = __builtin_bit_cast(int64_t, shifted);
    const bool odd = quadrant & 1;
    const double first = odd ? c : s, second = odd ? s : c;
    sine = quadrant & 2 ? -first : first;
    cosine = (quadrant + 1) & 2 ? -second : second;
}

void rotary_angles(const RotaryAngles& args, int64_t tokens, Team& team) {
    const Range mine = team.part(tokens);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const float position = float(args.positions[t]);
        float *cosines = args.cos + t * args.half, *sines = args.sin + t * args.half;
#pragma omp simd
        for (int64_t i = 0; i < args.half; i++) {
            const float angle = position * args.frequencies[i];  // in float, as models are trained
            double sine, cosine;
            sine_and_cosine(angle, sine, cosine);
            cosines[i] = float(cosine) * args.scale;
            sines[i] = float(sine) * args.scale;
        }
    }
}

template <class X>
EK_INLINE void rotate_head(const X* x, X* y, const float* cos, const float* sin, int64_t half,
                           int64_t head_dim) {
    by_vectors(half, [&](int64_t i, auto count) {
        const V first = load_count(x + i, count), second = load_count(x + half + i, count);
        const V c = load_count(cos + i, count), s = load_count(sin + i, count);
        store_count(y + i, first * c - second * s, count);
        store_count(y + half + i, second * c + first * s, count);
    });
    for (int64_t i = 2 * half; i < head_dim; i++) y[i] = x[i];
}

void rotary(const Rotary& args, int64_t tokens, Team& team) {
    with_dtype(args.dtype, [&](auto type) {
        using X = decltype(type);
        const int64_t heads = args.q.heads + args.k.heads;
        const Range mine = team.part(tokens * heads);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const int64_t t = i / heads, h = i % heads;
            const bool is_q = h < args.q.heads;
            const Heads& of = is_q ? args.q : args.k;
            const int64_t head = is_q ? h : h - args.q.heads;
            rotate_head(
                static_cast<const X*>(of.x) + t * of.token_stride + head * of.head_stride,
                static_cast<X*>(of.y) + (t * of.heads + head) * args.head_dim,
                args.cos + t * args.half, args.sin + t * args.half, args.half, args.head_dim);
        }
    });
}

// x / (1 + e^-z): the logistic function of z times x.
EK_INLINE V times_logistic(V x, V z) {
    constexpr float MOST = 88.0f;  // exp is asked for no more; beyond, the quotient is 0 or subnormal
    const V e = exp(-z > MOST ? splat(MOST) : -z);
    return x / (1.0f + (-z > MOST ? splat(std::numeric_limits<float>::infinity()) : e));
}

EK_INLINE V silu(V x) { return times_logistic(x, x); }

// 0.5 x (1 + tanh u) is x / (1 + e^-2u).
EK_INLINE V gelu_tanh(V x) {
    constexpr float FACTOR = 1.5957691216057308f;  // 2 sqrt(2 / pi)
    return times_logistic(x, x * FACTOR * (1.0f + 0.044715f * x * x));
}

template <class Activation>
EK_INLINE void gate(const Gate& args, int64_t tokens, Team& team, Activation&& activation) {
    constexpr int64_t GRAIN = 512;  // columns: one token too is shared by the team
    with_dtype(args.dtype, [&](auto type) {
        using X = decltype(type);
        const int64_t pieces = ceil_div(args.width, GRAIN);
        const Range mine = team.part(tokens * pieces);
        for (int64_t p = mine.begin; p < mine.end; p++) {
            const int64_t t = p / pieces, start = p % pieces * GRAIN;
            const X* x = static_cast<const X*>(args.x) + t * args.stride + start;
            X* y = static_cast<X*>(args.y) + t * args.width + start;
            by_vectors(std::min(GRAIN, args.width - start), [&](int64_t i, auto count) {
                const V up = load_count(x + args.width + i, count);
                store_count(y + i, activation(load_count(x + i, count)) * up, count);
            });
        }
    });
}

void silu_and_multiply(const Gate& args, int64_t tokens, Team& team) {
    gate(args, tokens, team, silu);
}

void gelu_tanh_and_multiply(const Gate& args, int64_t tokens, Team& team) {
    gate(args, tokens, team, gelu_tanh);
}

void embedding(const Embedding& args, int64_t tokens, Team& team) {
    const Range mine = team.part(tokens);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const int64_t id = args.ids[t];
        std::byte* y = args.y + t * args.bytes;
        if (id >= 0 && id < args.rows)
            std::memcpy(y, args.weight + id * args.stride, size_t(args.bytes));
        else
            std::memset(y, 0, size_t(args.bytes));
    }
}

constexpr PointwiseKernels pointwise_kernels{rms_norm,
                                             add_rms_norm,
                                             rotary_angles,
                                             rotary,
                                             silu_and_multiply,
                                             gelu_tanh_and_multiply,
                                             embedding};
