// The element types of logits, and their way to float and back, one value at a time.
//
// Anonymous namespace on purpose, here and in every header below: these inlines are compiled once per instruction set,
// and a shared symbol would let the linker hand the widest version to a machine that cannot run it.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Bfloat16 {
    std::uint16_t bits;
};

struct Float16 {
    std::uint16_t bits;
};

// Own copies of three of the standard library's: those are weak symbols wherever they are not inlined.
template <class T>
inline T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
inline T larger(T a, T b) {
    return a < b ? b : a;
}

template <class T>
inline void fill(T* first, T* last, T value) {
    for (; first != last; ++first) *first = value;
}

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "only the type may change");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bfloat16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }

inline float widen(Float16 x) {
    const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
    const std::uint32_t rest = x.bits & 0x7FFFu;
    if (rest >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity, NaN
    // As if the 5-bit exponent were an 8-bit one with the wrong bias; 2^112 mends it and makes subnormals normal.
    return bit_cast<float>(sign | bit_cast<std::uint32_t>(bit_cast<float>(rest << 13) * 5.192296858534828e33f));
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }

inline void narrow(float x, Bfloat16* to) {
    const std::uint32_t bits = bit_cast<std::uint32_t>(x);
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    const std::uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);  // to nearest, ties to even
    to->bits = nan ? std::uint16_t(0x7FC0) : std::uint16_t(rounded >> 16);
}

inline void narrow(float x, Float16* to) {
    const std::uint32_t bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = bits >> 16 & 0x8000u;
    const std::uint32_t size = bits & 0x7FFFFFFFu;
    std::uint32_t half;
    if (size > 0x7F800000u) {
        half = 0x7E00u;
    } else if (size >= 0x477FF000u) {  // rounds to 65536 or more
        half = 0x7C00u;
    } else if (size < 0x38800000u) {
        // Subnormal: adding 0.5 leaves the value in the low bits, in units of 2^-24 and correctly rounded.
        half = bit_cast<std::uint32_t>(bit_cast<float>(size) + 0.5f) - 0x3F000000u;
    } else {
        half = (size + 0xFFFu + (size >> 13 & 1u) - 0x38000000u) >> 13;
    }
    to->bits = std::uint16_t(sign | half);
}

}  // namespace
