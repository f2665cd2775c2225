// 2^z on vectors, and the origin that exponents are counted from. Include one of simd_*.h first.
#pragma once

#include <cmath>

namespace {

constexpr double kLn2 = 0.693147180559945309417;
constexpr double kLog2e = 1.442695040888963407360;

// 2^z with a relative error below 1.5e-7. Minus infinity and NaN give NaN; results below 2^-126 are 0 or, where the
// instruction set offers it, subnormal.
inline Vec pow2(Vec z) {
    const Vec n = round_nearest(z);
    const Vec r = z - n;
    // Minimax on [-1/2, 1/2]: 7.5e-8, about as much as the rounding of z and of the steps themselves.
    Vec p = broadcast(1.32764719793e-3f);
    p = fma(p, r, broadcast(9.67554133421e-3f));
    p = fma(p, r, broadcast(5.55071327354e-2f));
    p = fma(p, r, broadcast(2.40221197238e-1f));
    p = fma(p, r, broadcast(6.93146967065e-1f));
    p = fma(p, r, broadcast(1.00000007165f));
    return scale_by_power(p, n);
}

// Logits x become exponents z = x * scale - offset, in powers of two. What matters is that z is small, and so precise,
// where the probability is large; the offset itself cancels between numerator and sum.
struct Origin {
    float peak;
    float scale;
    double offset;  // the exact number that exponent() subtracts

    static Origin at(float peak, float scale) {
        const float rounded = peak * scale;
        return {peak, scale, kFused ? double(rounded) : double(peak) * double(scale)};
    }
    double exponent(float x) const { return double(x) * double(scale) - offset; }
};

// Broadcast once a block, used for every vector of it.
struct VecOrigin {
    Vec scale;
    Vec shift;  // fused: minus the offset; else the peak, since x * scale alone would lose the digits of z

    explicit VecOrigin(const Origin& o) : scale(broadcast(o.scale)), shift(broadcast(kFused ? -o.peak * o.scale : o.peak)) {}
    Vec exponent(Vec x) const {
        if constexpr (kFused) return fma(x, scale, shift);
        return (x - shift) * scale;
    }
};

}  // namespace
