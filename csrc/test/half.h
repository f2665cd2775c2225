// Half-precision numbers on a host that has none: bits to float, and float to bits rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kd::test {

inline float float_from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline std::uint32_t bits_from_float(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float bf16_to_float(std::uint32_t half) { return float_from_bits(half << 16); }

inline std::uint32_t float_to_bf16(float x) {
    if (x != x) return 0x7FFFu;
    const std::uint32_t bits = bits_from_float(x);
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

inline float f16_to_float(std::uint32_t half) {
    const int exponent = int(half >> 10 & 31u);
    const float fraction = float(half & 1023u);
    const float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(1024 + fraction, exponent - 25);
    return half & 0x8000u ? -size : size;
}

inline std::uint32_t float_to_f16(float x) {
    const std::uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
    const float size = std::fabs(x);
    if (x != x) return 0x7FFFu;
    if (size >= 65520.0f) return sign | 0x7C00u;
    if (size < 6.103515625e-05f) return sign | std::uint32_t(std::nearbyint(std::ldexp(size, 24)));
    int exponent;
    std::frexp(size, &exponent);  // size = fraction 2^exponent, fraction in [0.5, 1)
    const std::uint32_t digits = std::uint32_t(std::nearbyint(std::ldexp(size, 11 - exponent)));  // in [1024, 2048]
    return sign | (std::uint32_t(exponent + 13) * 1024u + digits);
}

}  // namespace kd::test
