// Scalar building blocks, written so that a compiler can turn loops over them into vector code.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "element.h"

namespace {

template <class Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

// exp(x) for x <= 0 with a relative error near one unit in the last place. exp(0) is exactly 1, exp(-inf) exactly 0,
// NaN stays NaN; results below the smallest normal number are 0.
//
// Cephes' expf: x = n ln2 + r with |r| <= ln2 / 2, a polynomial in r, and 2^n assembled from bits. Adding 1.5 * 2^23
// rounds to the nearest integer and leaves it in the low bits, without a conversion that is undefined for NaN.
inline float exp_nonpositive(float x) {
    constexpr float kRound = 12582912.0f;
    const float shifted = x * 1.44269504088896341f + kRound;
    const float n = shifted - kRound;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float poly = 1.9875691500e-4f;
    poly = poly * r + 1.3981999507e-3f;
    poly = poly * r + 8.3334519073e-3f;
    poly = poly * r + 4.1665795894e-2f;
    poly = poly * r + 1.6666665459e-1f;
    poly = poly * r + 5.0000001201e-1f;
    poly = poly * (r * r) + r + 1.0f;
    const float power = bit_cast<float>((bit_cast<std::uint32_t>(shifted) << 23) + 0x3F800000u);
    return x < -87.3f ? 0.0f : poly * power;
}

// log(x) for a normal x > 0, with a relative error near one unit in the last place. Cephes' logf: x = 2^n m with m in
// [sqrt(1/2), sqrt(2)) and a polynomial in m - 1.
inline float log_positive(float x) {
    const std::uint32_t bits = bit_cast<std::uint32_t>(x) - 0x3F3504F3u;
    const float n = float(std::int32_t(bits) >> 23);
    const float m = bit_cast<float>((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float poly = 7.0376836292e-2f;
    poly = poly * m - 1.1514610310e-1f;
    poly = poly * m + 1.1676998740e-1f;
    poly = poly * m - 1.2420140846e-1f;
    poly = poly * m + 1.4249322787e-1f;
    poly = poly * m - 1.6668057665e-1f;
    poly = poly * m + 2.0000714765e-1f;
    poly = poly * m - 2.4999993993e-1f;
    poly = poly * m + 3.3333331174e-1f;
    const float square = m * m;
    const float tail = poly * m * square + n * -2.12194440e-4f - 0.5f * square;
    return (m + tail) + n * 0.693359375f;
}

inline double log_positive(double x) { return std::log(x); }

// The double path serves gradient checks; libm is exact enough and fast enough there.
inline double exp_nonpositive(double x) { return std::exp(x); }

template <class Real>
struct Series;  // 1 / (k + 2)!, as many as |x| <= 1 needs for the type's precision

template <>
struct Series<float> {
    static constexpr int kTerms = 9;
};

template <>
struct Series<double> {
    static constexpr int kTerms = 17;
};

constexpr double kInverseFactorial[17] = {
    1.0 / 2,           1.0 / 6,           1.0 / 24,           1.0 / 120,           1.0 / 720,           1.0 / 5040,
    1.0 / 40320,       1.0 / 362880,      1.0 / 3628800,      1.0 / 39916800,      1.0 / 479001600.0,   1.0 / 6227020800.0,
    1.0 / 87178291200.0, 1.0 / 1307674368000.0, 1.0 / 20922789888000.0, 1.0 / 355687428096000.0, 1.0 / 6402373705728000.0,
};

// exp(x) - 1 - x for |x| <= 1, accurate relative to its own small size, where the plain subtraction has no digits left.
template <class Real>
inline Real exp_remainder(Real x) {
    Real sum = Real(kInverseFactorial[Series<Real>::kTerms - 1]);
    for (int k = Series<Real>::kTerms - 2; k >= 0; --k) sum = sum * x + Real(kInverseFactorial[k]);
    return sum * (x * x);
}

template <class Real>
inline bool is_small(Real x) {  // false for NaN and infinities
    return std::fabs(x) <= Real(1);
}

}  // namespace
