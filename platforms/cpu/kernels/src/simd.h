// Vectors of the instruction set that this file is compiled for: LANES floats in one register.
//
// Included inside `namespace ek::EK_ISA`. Arithmetic is GCC's vector extension, so that + * < and
// ?: work on all lanes; what has no such spelling (half precision, dot products) is below.
constexpr int LANES =
#if defined(__AVX512F__)
    16;
#elif defined(__AVX2__)
    8;
#else
    4;
#endif

// Vectors that the processor has at hand.
constexpr int REGISTERS =
#if defined(__AVX512F__) || defined(__aarch64__)
    32;
#else
    16;
#endif

#define EK_INLINE inline __attribute__((always_inline))
#define EK_LAMBDA __attribute__((always_inline))  // behind the parameters of a lambda

#if defined(__aarch64__)
typedef __fp16 Half;  // older compilers know the other name on x86 only
#else
typedef _Float16 Half;
#endif

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));
typedef Half H __attribute__((vector_size(2 * LANES)));
typedef float VAnywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t UAnywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t U16Anywhere __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// x - 0 is x also for -0, so the compiler need not compute it.
EK_INLINE V splat(float x) { return x - V{}; }
EK_INLINE U splat_bits(uint32_t x) { return U{} + x; }

// Memory of any dtype to floats and back. Addresses need the alignment of the element only.
EK_INLINE V load(const float* p) { return *reinterpret_cast<const VAnywhere*>(p); }
EK_INLINE V load(const bf16* p) {
    const U16 half = *reinterpret_cast<const U16Anywhere*>(p);
    return V(__builtin_convertvector(half, U) << 16);
}
EK_INLINE V load(const f16* p) {
#if defined(__AVX512F__)
    return V(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
    return V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(H(*reinterpret_cast<const U16Anywhere*>(p)), V);
#endif
}

// Rounds to the nearest, ties to even; NaN stays NaN.
EK_INLINE U to_bf16_bits(V x) {
    const U bits = U(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return I(x == x) ? rounded : (bits >> 16) | 0x40;
}
EK_INLINE void store(float* p, V x) { *reinterpret_cast<VAnywhere*>(p) = x; }
EK_INLINE void store(bf16* p, V x) {
    *reinterpret_cast<U16Anywhere*>(p) = __builtin_convertvector(to_bf16_bits(x), U16);
}
EK_INLINE void store(f16* p, V x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(x), 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(x), 0));
#else
    *reinterpret_cast<U16Anywhere*>(p) = U16(__builtin_convertvector(x, H));
#endif
}

EK_INLINE float to_float(float x) { return x; }
EK_INLINE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
EK_INLINE float to_float(f16 x) { return float(__builtin_bit_cast(Half, x.bits)); }
template <class T>
EK_INLINE T from_float(float x) {
    if constexpr (sizeof(T) == 4) {
        return x;
    } else if constexpr (__is_same(T, bf16)) {
        const uint32_t bits = __builtin_bit_cast(uint32_t, x);
        return bf16{uint16_t(x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
                                    : (bits >> 16) | 0x40)};
    } else {
        return f16{__builtin_bit_cast(uint16_t, Half(x))};
    }
}

EK_INLINE float sum(V x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}
EK_INLINE float maximum(V x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}
EK_INLINE V max(V a, V b) { return a > b ? a : b; }

// e^x to about 2 units in the last place; 0 below -87.3, where results would be subnormal. x is at
// most 88.7. NaN stays NaN. Range reduction and polynomial as in Cephes' expf.
EK_INLINE V exp(V x) {
    const V clipped = x < -87.3f ? splat(-87.3f) : x;
    const V shifted = clipped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const V n = shifted - 12582912.0f;
    const V r = (clipped - n * 0.693359375f) - n * -2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const V power = V((I(shifted) - I(splat(12582912.0f)) + 127) << 23);
    return x < -87.3f ? V{} : p * power;
}
