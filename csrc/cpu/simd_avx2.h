// Vectors of floats for AVX2 with FMA and F16C; the interface is described in simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "element.h"

namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr bool kFused = true;

inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

inline __m128i load_bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Bfloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(p)), 16));
}
inline Vec load(const Float16* p) { return _mm256_cvtph_ps(load_bits(p)); }

inline __m256i lanes_below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec load_first(const float* p, int n, Vec fill) {
    const __m256i mask = lanes_below(n);
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}

template <class Half>
inline Vec load_first(const Half* p, int n, Vec fill) {
    Half padded[kLanes] = {};
    for (int i = 0; i < n; ++i) padded[i] = p[i];
    return _mm256_blendv_ps(fill, load(padded), _mm256_castsi256_ps(lanes_below(n)));
}

inline __m128i narrow_bits(Vec x, const Bfloat16*) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7FC0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
}
inline __m128i narrow_bits(Vec x, const Float16*) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
template <class Half>
inline void store(Half* p, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bits(x, p));
}

inline void store_first(float* p, int n, Vec x) { _mm256_maskstore_ps(p, lanes_below(n), x); }
template <class Half>
inline void store_first(Half* p, int n, Vec x) {
    Half padded[kLanes];
    store(padded, x);
    for (int i = 0; i < n; ++i) p[i] = padded[i];
}

inline void stream(float* p, Vec x) { _mm256_stream_ps(p, x); }
template <class Half>
inline void stream(Half* p, Vec x) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow_bits(x, p));
}
inline void stream_fence() { _mm_sfence(); }

inline Vec keep_first(Vec x, int n) { return _mm256_and_ps(x, _mm256_castsi256_ps(lanes_below(n))); }
inline Vec clear_lane(Vec x, int lane) {
    const __m256i here = _mm256_cmpeq_epi32(_mm256_set1_epi32(lane), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_andnot_ps(_mm256_castsi256_ps(here), x);
}

inline float reduce_max(Vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline double reduce_add(Vec x) {
    const __m256d y = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)),
                                    _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    const __m128d z = _mm_add_pd(_mm256_castpd256_pd128(y), _mm256_extractf128_pd(y, 1));
    return _mm_cvtsd_f64(_mm_add_sd(z, _mm_unpackhi_pd(z, z)));
}

class WideSum {
  public:
    void add(Vec x) {
        low_ = _mm256_add_pd(low_, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        high_ = _mm256_add_pd(high_, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    double sum() const {
        const __m256d both = _mm256_add_pd(low_, high_);
        const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
        return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    }
    void store(double* to) const {
        _mm256_storeu_pd(to, low_);
        _mm256_storeu_pd(to + 4, high_);
    }

  private:
    __m256d low_ = _mm256_setzero_pd(), high_ = _mm256_setzero_pd();
};

inline Vec where_equal(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

inline Vec low_pairs(Vec a, Vec b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline Vec high_pairs(Vec a, Vec b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}

inline void transpose(Vec (&m)[kLanes]) {
    Vec u[kLanes], v[kLanes];
    for (int i = 0; i < 8; i += 2) {
        u[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        u[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = low_pairs(u[i], u[i + 2]);
        v[i + 1] = high_pairs(u[i], u[i + 2]);
        v[i + 2] = low_pairs(u[i + 1], u[i + 3]);
        v[i + 3] = high_pairs(u[i + 1], u[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        m[j] = _mm256_permute2f128_ps(v[j], v[4 + j], 0x20);
        m[4 + j] = _mm256_permute2f128_ps(v[j], v[4 + j], 0x31);
    }
}

inline Vec where_small(Vec x, Vec yes, Vec no) {
    const Vec size = _mm256_andnot_ps(broadcast(-0.0f), x);
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(size, broadcast(1.0f), _CMP_LE_OQ));
}

inline Vec round_nearest(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// The exponent is added as an integer, which holds for normal results; smaller ones become 0. Results stay far below
// the largest float (the caller's exponents do), and n = NaN keeps the NaN of the mantissa.
inline Vec scale_by_power(Vec mantissa, Vec n) {
    const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const Vec scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(mantissa), shift));
    const Vec vanished = _mm256_cmp_ps(n, broadcast(-126.0f), _CMP_LT_OQ);
    const Vec finite = _mm256_andnot_ps(vanished, scaled);
    return _mm256_blendv_ps(finite, mantissa, _mm256_cmp_ps(mantissa, mantissa, _CMP_UNORD_Q));
}

}  // namespace
