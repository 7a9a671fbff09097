// The vectors of one level and their operations; included once per level by simd_foreach.h, no include guard.
//
//   Vec<T>              kLanes<T> accumulators: double for double, float for float, Half and BFloat16
//                       + - * / comparisons and mask ? a : b come with the language, between vectors and with scalars
//   load, store         kLanes<T> values of T at any address, converted (to nearest even; NaN stays NaN)
//   load_partial, store_partial   the first `count` lanes, 0 <= count <= kLanes<T>; the others read as zero
//   broadcast<T>, fma, max, min, sqrt, first_lanes, lane_numbers, shuffle, rotated, reduce_add, reduce_max, reduce_min,
//   exp, sigmoid, sigmoid_gradient, silu
//   stream_copy, stream_fence     memory to memory past the caches
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

inline constexpr int kVectorBytes = SIMD_LEVEL_NUMBER == 2 ? 64 : SIMD_LEVEL_NUMBER == 1 ? 32 : 16;
template <class T>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(Accumulator<T>);

typedef float Float __attribute__((vector_size(kVectorBytes)));
typedef double Double __attribute__((vector_size(kVectorBytes)));
typedef int32_t Int32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t Int64 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Uint16 __attribute__((vector_size(kVectorBytes / 2)));  // as many lanes as Float
typedef uint32_t Uint32 __attribute__((vector_size(kVectorBytes)));
typedef uint64_t Uint64 __attribute__((vector_size(kVectorBytes)));

template <class T>
using Vec = std::conditional_t<std::is_same_v<T, double>, Double, Float>;

template <class T>
SIMD_INLINE Vec<T> broadcast(Accumulator<T> value) {
  return value - Vec<T>{};  // not +, which would change -0 and so cost an instruction
}

// ---- arithmetic that the language's operators do not give

// x86's intrinsic of this level, and its types.
#if SIMD_LEVEL_NUMBER == 2
#define SIMD_X86(name) _mm512_##name
typedef __m512 NativeFloat;
typedef __m512d NativeDouble;
#elif SIMD_LEVEL_NUMBER == 1
#define SIMD_X86(name) _mm256_##name
typedef __m256 NativeFloat;
typedef __m256d NativeDouble;
#elif defined(__x86_64__)
#define SIMD_X86(name) _mm_##name
typedef __m128 NativeFloat;
typedef __m128d NativeDouble;
#endif

// a * b + c, fused where the level has it
SIMD_INLINE Float fma(Float a, Float b, Float c) {
#if SIMD_LEVEL_NUMBER >= 1
  return Float(SIMD_X86(fmadd_ps)(NativeFloat(a), NativeFloat(b), NativeFloat(c)));
#else
  return a * b + c;
#endif
}
SIMD_INLINE Double fma(Double a, Double b, Double c) {
#if SIMD_LEVEL_NUMBER >= 1
  return Double(SIMD_X86(fmadd_pd)(NativeDouble(a), NativeDouble(b), NativeDouble(c)));
#else
  return a * b + c;
#endif
}

// Lanes of two bfloat16 each: low(a) low(b) + high(a) high(b) + c. Spelled out, as the level does not have it: only
// where Level::kAvx512Bf16 is in force.
#if SIMD_LEVEL_NUMBER == 2
SIMD_INLINE Float fma(Uint32 a, Uint32 b, Float c) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif

// max: a > b ? a : b, min: a < b ? a : b; so b where either is NaN: max(zero, x) is a ReLU that keeps NaN
#ifdef SIMD_X86
SIMD_INLINE Float max(Float a, Float b) { return Float(SIMD_X86(max_ps)(NativeFloat(a), NativeFloat(b))); }
SIMD_INLINE Double max(Double a, Double b) { return Double(SIMD_X86(max_pd)(NativeDouble(a), NativeDouble(b))); }
SIMD_INLINE Float min(Float a, Float b) { return Float(SIMD_X86(min_ps)(NativeFloat(a), NativeFloat(b))); }
SIMD_INLINE Double min(Double a, Double b) { return Double(SIMD_X86(min_pd)(NativeDouble(a), NativeDouble(b))); }
SIMD_INLINE Float sqrt(Float v) { return Float(SIMD_X86(sqrt_ps)(NativeFloat(v))); }
SIMD_INLINE Double sqrt(Double v) { return Double(SIMD_X86(sqrt_pd)(NativeDouble(v))); }
#else
template <class V>
SIMD_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
SIMD_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
SIMD_INLINE Float sqrt(Float v) { return Float(vsqrtq_f32(float32x4_t(v))); }
SIMD_INLINE Double sqrt(Double v) { return Double(vsqrtq_f64(float64x2_t(v))); }
#endif

// The integers of as many lanes as V has.
template <class V>
using Integers = std::conditional_t<std::is_same_v<V, Double>, Int64, Int32>;

// The lanes of these numbers, counted through a and then b.
template <int... Lane, class V>
SIMD_INLINE V shuffle(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Lane...);
#else  // g++ has clang's spelling only from version 12 on
  return __builtin_shuffle(a, b, Integers<V>{Lane...});
#endif
}

// The lanes in another order: lane i is what was i + kBy, counted around.
template <int kBy, class V>
SIMD_INLINE V rotated(V v) {
  constexpr int kCount = sizeof(v) / sizeof(v[0]);
  return [v]<int... Lane>(std::integer_sequence<int, Lane...>) SIMD_INLINE_LAMBDA {
    return shuffle<((Lane + kBy) % kCount)...>(v, v);
  }(std::make_integer_sequence<int, kCount>());
}

// Folds all lanes by halves: the order is fixed.
template <class V, class Operation, int kBy = kVectorBytes / 2 / sizeof(V{}[0])>
SIMD_INLINE auto fold(V v, Operation operation) {
  v = operation(v, rotated<kBy>(v));
  if constexpr (kBy > 1)
    return fold<V, Operation, kBy / 2>(v, operation);
  else
    return v[0];
}
SIMD_INLINE float reduce_add(Float v) {
#if SIMD_LEVEL_NUMBER == 2
  return _mm512_reduce_add_ps(__m512(v));
#elif defined(__x86_64__)
#if SIMD_LEVEL_NUMBER == 1
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(__m256(v)), _mm256_extractf128_ps(__m256(v), 1));
#else
  const __m128 quarter = __m128(v);
#endif
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
#else
  return fold(v, [](Float a, Float b) { return a + b; });
#endif
}
SIMD_INLINE double reduce_add(Double v) {
#if SIMD_LEVEL_NUMBER == 2
  return _mm512_reduce_add_pd(__m512d(v));
#else
  return fold(v, [](Double a, Double b) { return a + b; });
#endif
}
// The largest and the smallest lane, where none is NaN.
template <class V>
SIMD_INLINE auto reduce_max(V v) {
  return fold(v, [](V a, V b) { return max(a, b); });
}
template <class V>
SIMD_INLINE auto reduce_min(V v) {
  return fold(v, [](V a, V b) { return min(a, b); });
}

// ---- conversions between the 16-bit formats and float

SIMD_INLINE Uint32 widen(Uint16 v) {
#if SIMD_LEVEL_NUMBER == 2
  return Uint32(_mm512_cvtepu16_epi32(__m256i(v)));
#elif SIMD_LEVEL_NUMBER == 1
  return Uint32(_mm256_cvtepu16_epi32(__m128i(v)));
#elif defined(__x86_64__)
  __m128i low = _mm_setzero_si128();
  memcpy(&low, &v, sizeof(v));
  return Uint32(_mm_unpacklo_epi16(low, _mm_setzero_si128()));
#else
  return __builtin_convertvector(v, Uint32);
#endif
}
// The upper halves of the lanes.
SIMD_INLINE Uint16 upper_halves(Uint32 v) {
#if SIMD_LEVEL_NUMBER == 2
  const __m512i odd_words = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015, 0x130011, 0xf000d,
                                             0xb0009, 0x70005, 0x30001);
  return Uint16(_mm512_castsi512_si256(_mm512_permutexvar_epi16(odd_words, __m512i(v))));
#elif SIMD_LEVEL_NUMBER == 1
  const __m256i high = _mm256_srai_epi32(__m256i(v), 16);
  const __m256i packed =
      _mm256_packs_epi32(high, high);  // signed: what was shifted in arithmetically does not saturate
  return Uint16(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#elif defined(__x86_64__)
  const __m128i high = _mm_srai_epi32(__m128i(v), 16);
  const __m128i packed = _mm_packs_epi32(high, high);
  Uint16 result;
  memcpy(&result, &packed, sizeof(result));
  return result;
#else
  return __builtin_convertvector(v >> 16, Uint16);
#endif
}

SIMD_INLINE Float to_float(Uint16 v, BFloat16) {
#if SIMD_LEVEL_NUMBER == 2  // one permutation that fills the lower halves with zeros
  const __m512i word = _mm512_set_epi32(0xf0000, 0xe0000, 0xd0000, 0xc0000, 0xb0000, 0xa0000, 0x90000, 0x80000, 0x70000,
                                        0x60000, 0x50000, 0x40000, 0x30000, 0x20000, 0x10000, 0);
  return Float(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, word, _mm512_zextsi256_si512(__m256i(v))));
#else
  return Float(widen(v) << 16);
#endif
}

SIMD_INLINE Uint16 from_float(Float v, BFloat16) {
#if SIMD_LEVEL_NUMBER == 2  // the same in fewer instructions: NaN made one with an even, short payload, a masked carry
  const __m512i nan_to_indefinite = _mm512_set1_epi32(0x11111133);
  const __m512i bits = _mm512_castps_si512(_mm512_fixupimm_ps(__m512(v), __m512(v), nan_to_indefinite, 0));
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return upper_halves(Uint32(_mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1))));
#else
  const Uint32 bits = Uint32(v);
  const Uint32 nearest_even = bits + 0x7fff + ((bits >> 16) & 1);
  return upper_halves(v == v ? nearest_even : bits | 0x400000);  // a NaN's payload must not round to infinity
#endif
}

SIMD_INLINE Float to_float(Uint16 v, Half) {
#if SIMD_LEVEL_NUMBER == 2
  return Float(_mm512_cvtph_ps(__m256i(v)));
#elif SIMD_LEVEL_NUMBER == 1
  return Float(_mm256_cvtph_ps(__m128i(v)));
#elif defined(__aarch64__)
  return Float(vcvt_f32_f16(float16x4_t(v)));
#else
  const Int32 bits = Int32(widen(v)), magnitude = bits & 0x7fff;
  const Int32 bias = Int32{} + (112 << 23);  // 127 - 15, the exponents' biases
  const Int32 normal = (magnitude << 13) + bias;
  const Int32 infinite = normal + bias;                                 // the largest exponent stays the largest
  const Int32 subnormal = Int32(Float(magnitude + 0x3f000000) - 0.5f);  // a subnormal counts units of 2^-24: ulp of 0.5
  const Int32 value = magnitude < 0x400 ? subnormal : magnitude < 0x7c00 ? normal : infinite;
  return Float(value | ((bits & 0x8000) << 16));
#endif
}

SIMD_INLINE Uint16 from_float(Float v, Half) {
#if SIMD_LEVEL_NUMBER == 2
  return Uint16(_mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif SIMD_LEVEL_NUMBER == 1
  return Uint16(_mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
  return Uint16(vcvt_f16_f32(float32x4_t(v)));
#else
  const Int32 bits = Int32(v), magnitude = bits & 0x7fffffff;
  const Int32 normal = Int32((Uint32(magnitude) + 0xfff + ((Uint32(magnitude) >> 13) & 1) - (112u << 23)) >> 13);
  const Int32 subnormal = Int32(Float(magnitude) + 0.5f) - 0x3f000000;  // the addition rounds at 2^-24
  const Int32 infinity = Int32{} + 0x7c00, nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const Int32 finite = magnitude < 0x38800000 ? subnormal : normal;  // 2^-14, the smallest normal
  const Int32 special = magnitude > 0x7f800000 ? nan : infinity;
  const Int32 value = magnitude < 0x477ff000 ? finite : special;  // 65520 rounds to infinity
  return upper_halves(Uint32((value | ((bits >> 16) & 0x8000)) << 16));
#endif
}

// 0, 1, 2, ...
template <class V>
SIMD_INLINE V lane_numbers() {
  V lane;
  for (int i = 0; i < int(sizeof(lane) / sizeof(lane[0])); ++i) lane[i] = i;
  return lane;
}

// v in the first `count` lanes, `others` in the others
template <class V>
SIMD_INLINE V first_lanes(V v, int64_t count, V others = V{}) {
  return lane_numbers<Integers<V>>() < int(count) ? v : others;
}

// One value, by the same conversion.
SIMD_INLINE float to_accumulator(float value) { return value; }
SIMD_INLINE double to_accumulator(double value) { return value; }
template <class T>
SIMD_INLINE float to_accumulator(T value) {
  return to_float(Uint16{} + value.bits, T{})[0];
}

// ---- memory

template <class V>
SIMD_INLINE V load_raw(const void* from) {
  V v;
  memcpy(&v, from, sizeof(v));
  return v;
}

SIMD_INLINE Float load(const float* from) { return load_raw<Float>(from); }
SIMD_INLINE Double load(const double* from) { return load_raw<Double>(from); }
template <class T>
SIMD_INLINE Float load(const T* from) {
  return to_float(load_raw<Uint16>(from), T{});
}

SIMD_INLINE void store(float* to, Float v) { memcpy(to, &v, sizeof(v)); }
SIMD_INLINE void store(double* to, Double v) { memcpy(to, &v, sizeof(v)); }
template <class T>
SIMD_INLINE void store(T* to, Float v) {
  const Uint16 narrow = from_float(v, T{});
  memcpy(to, &narrow, sizeof(narrow));
}

// memcpy of the first `count` of a vector's lanes, count < kLanes<T>, without a call
template <class T>
SIMD_INLINE void copy_lanes(T* to, const T* from, int64_t count) {
  if constexpr (kLanes<T> > 8)
    if (count & 8) memcpy(to, from, 8 * sizeof(T)), to += 8, from += 8;
  if constexpr (kLanes<T> > 4)
    if (count & 4) memcpy(to, from, 4 * sizeof(T)), to += 4, from += 4;
  if constexpr (kLanes<T> > 2)
    if (count & 2) memcpy(to, from, 2 * sizeof(T)), to += 2, from += 2;
  if (count & 1) memcpy(to, from, sizeof(T));
}

#if SIMD_LEVEL_NUMBER == 2

SIMD_INLINE Float load_partial(const float* from, int64_t count) {
  return Float(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from));
}
SIMD_INLINE Double load_partial(const double* from, int64_t count) {
  return Double(_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), from));
}
template <class T>
SIMD_INLINE Float load_partial(const T* from, int64_t count) {
  return to_float(Uint16(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), from)), T{});
}
SIMD_INLINE void store_partial(float* to, Float v, int64_t count) {
  _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), __m512(v));
}
SIMD_INLINE void store_partial(double* to, Double v, int64_t count) {
  _mm512_mask_storeu_pd(to, __mmask8((1u << count) - 1), __m512d(v));
}
template <class T>
SIMD_INLINE void store_partial(T* to, Float v, int64_t count) {
  _mm256_mask_storeu_epi16(to, __mmask16((1u << count) - 1), __m256i(from_float(v, T{})));
}

#else

template <class T>
SIMD_INLINE Vec<T> load_partial(const T* from, int64_t count) {
  if (count == kLanes<T>) return load(from);
  T lanes[kLanes<T>] = {};
  copy_lanes(lanes, from, count);
  return load(lanes);
}
template <class T>
SIMD_INLINE void store_partial(T* to, Vec<T> v, int64_t count) {
  if (count == kLanes<T>) return store(to, v);
  T lanes[kLanes<T>] = {};
  store(lanes, v);
  copy_lanes(to, lanes, count);
}

#endif

// Copies past the caches: the lines of `to` are not fetched before they are overwritten. Call stream_fence() before
// another thread may read them.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__x86_64__)
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const int64_t misaligned = -reinterpret_cast<intptr_t>(out) & 63;  // whole cache lines only
  const int64_t head = misaligned < bytes ? misaligned : bytes;
  memcpy(out, in, head);
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
#if SIMD_LEVEL_NUMBER == 2
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i), _mm512_loadu_si512(in + i));
#elif SIMD_LEVEL_NUMBER == 1
    for (int j = 0; j < 64; j += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i + j),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i + j)));
#else
    for (int j = 0; j < 64; j += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + j)));
#endif
  }
  memcpy(out + i, in + i, bytes - i);
#else
  memcpy(to, from, bytes);
#endif
}
SIMD_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- transcendental functions

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; about 1 ulp; 0 and infinity beyond the range; NaN stays
// NaN. n is read off the low bits of x / ln 2 + 1.5 * 2^(fraction bits), whose ulp is 1.
SIMD_INLINE Float exp(Float x) {
  x = max(Float{} - 104.0f, x);  // exp rounds to 0 below
  x = min(Float{} + 89.0f, x);   // and to infinity above
  const Float magic = Float{} + 12582912.0f;
  const Float shifted = fma(x, Float{} + 1.44269504088896341f, magic);
  const Float n = shifted - magic;
  Float r = fma(n, Float{} - 0.693359375f, x);  // ln 2 in two parts, the first exact times n
  r = fma(n, Float{} + 2.12194440054690583e-4f, r);
  Float p = Float{} + 1.0f / 5040;  // the Taylor series: its error is 0.1 ulp at |r| = 0.35
  p = fma(p, r, Float{} + 1.0f / 720);
  p = fma(p, r, Float{} + 1.0f / 120);
  p = fma(p, r, Float{} + 1.0f / 24);
  p = fma(p, r, Float{} + 1.0f / 6);
  p = fma(p, r, Float{} + 0.5f);
  p = fma(p * r, r, r) + 1.0f;
#if SIMD_LEVEL_NUMBER == 2
  return Float(_mm512_scalef_ps(__m512(p), __m512(n)));
#else
  const Uint32 exponent = Uint32(shifted) - Uint32(magic), half = Uint32(Int32(exponent) >> 1);
  return p * Float((half + 127) << 23) * Float((exponent - half + 127) << 23);  // 2^n in two factors: n passes 127
#endif
}
SIMD_INLINE Double exp(Double x) {
  x = max(Double{} - 746.0, x);
  x = min(Double{} + 710.0, x);
  const Double magic = Double{} + 6755399441055744.0;
  const Double shifted = fma(x, Double{} + 1.4426950408889634074, magic);
  const Double n = shifted - magic;
  Double r = fma(n, Double{} - 0.693147180369123816490, x);
  r = fma(n, Double{} - 1.90821492927058770002e-10, r);
  Double p = Double{} + 1.0 / 6227020800.0;  // 1/13!
  p = fma(p, r, Double{} + 1.0 / 479001600.0);
  p = fma(p, r, Double{} + 1.0 / 39916800.0);
  p = fma(p, r, Double{} + 1.0 / 3628800.0);
  p = fma(p, r, Double{} + 1.0 / 362880.0);
  p = fma(p, r, Double{} + 1.0 / 40320.0);
  p = fma(p, r, Double{} + 1.0 / 5040.0);
  p = fma(p, r, Double{} + 1.0 / 720.0);
  p = fma(p, r, Double{} + 1.0 / 120.0);
  p = fma(p, r, Double{} + 1.0 / 24.0);
  p = fma(p, r, Double{} + 1.0 / 6.0);
  p = fma(p, r, Double{} + 0.5);
  p = fma(p * r, r, r) + 1.0;
  const Uint64 exponent = Uint64(shifted) - Uint64(magic), half = Uint64(Int64(exponent) >> 1);
  return p * Double((half + 1023) << 52) * Double((exponent - half + 1023) << 52);
}

// 1 / (1 + exp(-x))
template <class V>
SIMD_INLINE V sigmoid(V x) {
  return 1 / (exp(-x) + 1);
}
// the gradient of x from that of its sigmoid, y
template <class V>
SIMD_INLINE V sigmoid_gradient(V grad, V y) {
  return grad * y * (1 - y);
}

// x sigmoid(x)
template <class V>
SIMD_INLINE V silu(V x) {
  return x / (exp(-x) + 1);
}

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL

#undef SIMD_X86
