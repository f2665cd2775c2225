// Vectors of floats for AVX-512 (F, BW, DQ, VL). The three simd_*.h have the same interface; a source file that is
// compiled for one instruction set includes one of them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "element.h"

namespace {

using Vec = __m512;  // + - * / are the compiler's
constexpr int kLanes = 16;
constexpr bool kFused = true;  // fma rounds once

inline __mmask16 lanes_below(int n) { return __mmask16((1u << n) - 1); }

inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }

inline Vec widen(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Bfloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// The first n lanes, 0 < n <= kLanes; the others hold `fill`. Nothing behind them is read.
inline Vec load_first(const float* p, int n, Vec fill) { return _mm512_mask_loadu_ps(fill, lanes_below(n), p); }
inline Vec load_first(const Bfloat16* p, int n, Vec fill) {
    const __m256i bits = _mm256_maskz_loadu_epi16(lanes_below(n), p);
    return _mm512_mask_mov_ps(fill, lanes_below(n), widen(bits));
}
inline Vec load_first(const Float16* p, int n, Vec fill) {
    return _mm512_mask_cvtph_ps(fill, lanes_below(n), _mm256_maskz_loadu_epi16(lanes_below(n), p));
}

inline __m256i narrow_bfloat16(Vec x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7FC0));
    return _mm512_cvtepi32_epi16(high);
}

inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(Bfloat16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(x)); }
inline void store(Float16* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline void store_first(float* p, int n, Vec x) { _mm512_mask_storeu_ps(p, lanes_below(n), x); }
inline void store_first(Bfloat16* p, int n, Vec x) { _mm256_mask_storeu_epi16(p, lanes_below(n), narrow_bfloat16(x)); }
inline void store_first(Float16* p, int n, Vec x) {
    _mm256_mask_storeu_epi16(p, lanes_below(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// Past the caches. p is aligned to kLanes elements.
inline void stream(float* p, Vec x) { _mm512_stream_ps(p, x); }
inline void stream(Bfloat16* p, Vec x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(x)); }
inline void stream(Float16* p, Vec x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void stream_fence() { _mm_sfence(); }

inline Vec keep_first(Vec x, int n) { return _mm512_maskz_mov_ps(lanes_below(n), x); }
inline Vec clear_lane(Vec x, int lane) { return _mm512_maskz_mov_ps(__mmask16(~(1u << lane)), x); }

inline float reduce_max(Vec x) { return _mm512_reduce_max_ps(x); }

inline double reduce_add(Vec x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

struct FourSums {
    double a, b, c, d;
};

inline __m512d halves_added(Vec x) {
    return _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}

// Four at once share most of their shuffles.
inline FourSums reduce_add(Vec a, Vec b, Vec c, Vec d) {
    const __m512d u = halves_added(a), v = halves_added(b), w = halves_added(c), x = halves_added(d);
    const __m512d uv = _mm512_add_pd(_mm512_unpacklo_pd(u, v), _mm512_unpackhi_pd(u, v));
    const __m512d wx = _mm512_add_pd(_mm512_unpacklo_pd(w, x), _mm512_unpackhi_pd(w, x));
    const __m256d uv4 = _mm256_add_pd(_mm512_castpd512_pd256(uv), _mm512_extractf64x4_pd(uv, 1));
    const __m256d wx4 = _mm256_add_pd(_mm512_castpd512_pd256(wx), _mm512_extractf64x4_pd(wx, 1));
    const __m128d ab = _mm_add_pd(_mm256_castpd256_pd128(uv4), _mm256_extractf128_pd(uv4, 1));
    const __m128d cd = _mm_add_pd(_mm256_castpd256_pd128(wx4), _mm256_extractf128_pd(wx4, 1));
    return {_mm_cvtsd_f64(ab), _mm_cvtsd_f64(_mm_unpackhi_pd(ab, ab)), _mm_cvtsd_f64(cd),
            _mm_cvtsd_f64(_mm_unpackhi_pd(cd, cd))};
}

// yes where |x| <= 1, no elsewhere (and where x is NaN).
inline Vec where_small(Vec x, Vec yes, Vec no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(_mm512_abs_ps(x), broadcast(1.0f), _CMP_LE_OQ), yes);
}

inline Vec round_nearest(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// mantissa * 2^n for a whole n of any size.
inline Vec scale_by_power(Vec mantissa, Vec n) { return _mm512_scalef_ps(mantissa, n); }

}  // namespace
