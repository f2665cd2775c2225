// Vectors of four floats in the compiler's own vector extension, for whatever instruction set it targets by default;
// the interface is described in simd_avx512.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "element.h"

namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef std::int32_t Bits __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr bool kFused = false;

inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec fms(Vec a, Vec b, Vec c) { return a * b - c; }
inline Vec choose(Bits mask, Vec yes, Vec no) { return Vec((Bits(yes) & mask) | (Bits(no) & ~mask)); }
inline Vec max(Vec a, Vec b) { return choose(Bits(a > b), a, b); }

template <class Element>
inline Vec load(const Element* p) {
    return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}

template <class Element>
inline Vec load_first(const Element* p, int n, Vec fill) {
    for (int i = 0; i < n; ++i) fill[i] = widen(p[i]);
    return fill;
}

template <class Element>
inline void store_first(Element* p, int n, Vec x) {
    for (int i = 0; i < n; ++i) narrow(x[i], p + i);
}

template <class Element>
inline void store(Element* p, Vec x) {
    store_first(p, kLanes, x);
}

template <class Element>
inline void stream(Element* p, Vec x) {
    store(p, x);
}
inline void stream_fence() {}

inline Vec keep_first(Vec x, int n) {
    for (int i = n; i < kLanes; ++i) x[i] = 0.0f;
    return x;
}
inline Vec clear_lane(Vec x, int lane) {
    x[lane] = 0.0f;
    return x;
}

inline float reduce_max(Vec x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}
inline double reduce_add(Vec x) { return (double(x[0]) + double(x[1])) + (double(x[2]) + double(x[3])); }

class WideSum {
  public:
    void add(Vec x) {
        for (int i = 0; i < kLanes; ++i) lanes_[i] += double(x[i]);
    }
    double sum() const { return (lanes_[0] + lanes_[1]) + (lanes_[2] + lanes_[3]); }
    void store(double* to) const {
        for (int i = 0; i < kLanes; ++i) to[i] = lanes_[i];
    }

  private:
    double lanes_[kLanes] = {};
};

inline Vec where_equal(Vec a, Vec b, Vec yes, Vec no) { return choose(Bits(a == b), yes, no); }

inline void transpose(Vec (&m)[kLanes]) {
    Vec t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = Vec{m[0][i], m[1][i], m[2][i], m[3][i]};
    for (int i = 0; i < kLanes; ++i) m[i] = t[i];
}

inline Vec where_small(Vec x, Vec yes, Vec no) {
    return choose(Bits(x <= broadcast(1.0f)) & Bits(x >= broadcast(-1.0f)), yes, no);
}

// Adding 1.5 * 2^23 leaves the nearest whole number; larger numbers than that trick holds for come out as they may
// (scale_by_power then gives 0, as it should).
inline Vec round_nearest(Vec x) {
    const Vec magic = broadcast(12582912.0f);
    return (x + magic) - magic;
}

// See simd_avx2.h. n is clamped before it becomes an integer: the conversion of larger numbers is undefined.
inline Vec scale_by_power(Vec mantissa, Vec n) {
    const Bits vanished = Bits(n < broadcast(-126.0f));
    const Vec clamped = choose(Bits(n > broadcast(-127.0f)), n, broadcast(-127.0f));
    const Bits shift = __builtin_convertvector(clamped, Bits) << 23;
    const Vec scaled = Vec(Bits(mantissa) + shift);
    const Vec finite = choose(vanished, broadcast(0.0f), scaled);
    return choose(Bits(mantissa != mantissa), mantissa, finite);
}

}  // namespace
