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

// A sum of each lane by itself, in double.
class WideSum {
  public:
    void add(Vec x) {
        low_ = _mm512_add_pd(low_, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        high_ = _mm512_add_pd(high_, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    double sum() const { return _mm512_reduce_add_pd(_mm512_add_pd(low_, high_)); }
    void store(double* to) const {
        _mm512_storeu_pd(to, low_);
        _mm512_storeu_pd(to + 8, high_);
    }

  private:
    __m512d low_ = _mm512_setzero_pd(), high_ = _mm512_setzero_pd();
};

inline Vec where_equal(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), yes);
}

inline Vec low_pairs(Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline Vec high_pairs(Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Lane j of m[i] becomes lane i of m[j].
inline void transpose(Vec (&m)[kLanes]) {
    Vec u[kLanes], v[kLanes];
    for (int i = 0; i < 16; i += 2) {
        u[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
        u[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // v[i + j]: column j of each quarter, of rows i to i + 3
        v[i] = low_pairs(u[i], u[i + 2]);
        v[i + 1] = high_pairs(u[i], u[i + 2]);
        v[i + 2] = low_pairs(u[i + 1], u[i + 3]);
        v[i + 3] = high_pairs(u[i + 1], u[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const Vec even_low = _mm512_shuffle_f32x4(v[j], v[4 + j], 0x88), odd_low = _mm512_shuffle_f32x4(v[j], v[4 + j], 0xDD);
        const Vec even_high = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0x88);
        const Vec odd_high = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0xDD);
        m[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        m[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        m[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        m[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
}

// yes where |x| <= 1, no elsewhere (and where x is NaN).
inline Vec where_small(Vec x, Vec yes, Vec no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(_mm512_abs_ps(x), broadcast(1.0f), _CMP_LE_OQ), yes);
}

inline Vec round_nearest(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// mantissa * 2^n for a whole n of any size.
inline Vec scale_by_power(Vec mantissa, Vec n) { return _mm512_scalef_ps(mantissa, n); }

}  // namespace
