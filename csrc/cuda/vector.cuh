// Rows as 16-byte words. A row may start at any element: its frame cuts it into words as the student's memory lies, so
// that the first and the last word can be partly outside the row. Tensors that lie otherwise are read element by
// element.
#pragma once

#include "device.cuh"

namespace kd::cuda {

struct Bf16 {
    std::uint16_t bits;
};

struct Fp16 {
    std::uint16_t bits;
};

using Quad = float[4];  // the kernels compute with four logits at a time

// How logits of a type are stored: kWidth of them, that is kQuads quads, in a word.
template <class T>
struct Format;

template <>
struct Format<float> {
    static constexpr int kWidth = 4;
    static constexpr int kQuads = 1;
    static constexpr bool kHalf = false;
    static constexpr std::uint32_t kMinusInfinity = 0xFF800000u;
    using Bits = std::uint32_t;

    __device__ static void unpack(const uint4& word, int, Quad& x) {
        x[0] = float_of(word.x);
        x[1] = float_of(word.y);
        x[2] = float_of(word.z);
        x[3] = float_of(word.w);
    }
    __device__ static void pack(const Quad& x, int, uint4& word) {
        word = uint4{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])};
    }
    // The largest; NaN if any is.
    __device__ static float peak(const uint4& word) {
        return max_nan(max_nan(float_of(word.x), float_of(word.y)), max_nan(float_of(word.z), float_of(word.w)));
    }
    __device__ static float widen(Bits bits) { return float_of(bits); }
    __device__ static Bits load(const float* element) { return bits_of(*element); }
    __device__ static void store(float* element, Bits bits) { *element = float_of(bits); }
};

template <>
struct Format<Bf16> {
    static constexpr int kWidth = 8;
    static constexpr int kQuads = 2;
    static constexpr bool kHalf = true;
    static constexpr std::uint32_t kMinusInfinity = 0xFF80u;
    using Bits = std::uint16_t;

    __device__ static void unpack(const uint4& word, int quad, Quad& x) {
        const std::uint32_t first = quad == 0 ? word.x : word.z;
        const std::uint32_t second = quad == 0 ? word.y : word.w;
        x[0] = float_of(first << 16);
        x[1] = float_of(first & 0xFFFF0000u);
        x[2] = float_of(second << 16);
        x[3] = float_of(second & 0xFFFF0000u);
    }
    __device__ static void pack(const Quad& x, int quad, uint4& word) {
        const std::uint32_t first = pack_bf16x2(x[0], x[1]), second = pack_bf16x2(x[2], x[3]);
        word = quad == 0 ? uint4{first, second, word.z, word.w} : uint4{word.x, word.y, first, second};
    }
    __device__ static float peak(const uint4& word) {
        const std::uint32_t top = max_nan_bf16x2(max_nan_bf16x2(word.x, word.y), max_nan_bf16x2(word.z, word.w));
        return max_nan(float_of(top << 16), float_of(top & 0xFFFF0000u));
    }
    __device__ static float widen(Bits bits) { return float_of(std::uint32_t(bits) << 16); }
    __device__ static Bits load(const Bf16* element) { return element->bits; }
    __device__ static void store(Bf16* element, Bits bits) { element->bits = bits; }
};

template <>
struct Format<Fp16> {
    static constexpr int kWidth = 8;
    static constexpr int kQuads = 2;
    static constexpr bool kHalf = true;
    static constexpr std::uint32_t kMinusInfinity = 0xFC00u;
    using Bits = std::uint16_t;

    __device__ static void unpack(const uint4& word, int quad, Quad& x) {
        unpack_f16x2(quad == 0 ? word.x : word.z, x[0], x[1]);
        unpack_f16x2(quad == 0 ? word.y : word.w, x[2], x[3]);
    }
    __device__ static void pack(const Quad& x, int quad, uint4& word) {
        const std::uint32_t first = pack_f16x2(x[0], x[1]), second = pack_f16x2(x[2], x[3]);
        word = quad == 0 ? uint4{first, second, word.z, word.w} : uint4{word.x, word.y, first, second};
    }
    __device__ static float peak(const uint4& word) {
        float low, high;
        unpack_f16x2(max_nan_f16x2(max_nan_f16x2(word.x, word.y), max_nan_f16x2(word.z, word.w)), low, high);
        return max_nan(low, high);
    }
    __device__ static float widen(Bits bits) {
        float low, high;
        unpack_f16x2(bits, low, high);
        return low;
    }
    __device__ static Bits load(const Fp16* element) { return element->bits; }
    __device__ static void store(Fp16* element, Bits bits) { element->bits = bits; }
};

template <class T>
__device__ __forceinline__ float load_number(const T* element) {
    return Format<T>::widen(Format<T>::load(element));
}

template <class T>
__device__ __forceinline__ void store_number(T* element, float x) {
    uint4 word{};
    const Quad quad = {x, 0.0f, 0.0f, 0.0f};
    Format<T>::pack(quad, 0, word);
    Format<T>::store(element, typename Format<T>::Bits(word.x));
}

// Bits of the element at `lane` of a word.
template <class T>
__device__ __forceinline__ typename Format<T>::Bits bits_at(const uint4& word, int lane) {
    const std::uint32_t registers[4] = {word.x, word.y, word.z, word.w};
    constexpr int kPerRegister = Format<T>::kWidth / 4;
    return typename Format<T>::Bits(registers[lane / kPerRegister] >> (16 * (lane % kPerRegister)));
}

// Word v covers the elements [v * width - pad, (v + 1) * width - pad) of the row.
struct Frame {
    int classes;
    int pad;
    int words;
};

template <class T>
__device__ __forceinline__ int offset_in_word(const T* pointer) {
    return int(reinterpret_cast<std::uintptr_t>(pointer) / sizeof(T) % Format<T>::kWidth);
}

template <class T>
__device__ __forceinline__ Frame frame_of(const T* row, int classes) {
    constexpr int kWidth = Format<T>::kWidth;
    const int pad = offset_in_word(row);
    return Frame{classes, pad, (pad + classes + kWidth - 1) / kWidth};
}

// First element of word v, which is negative in a word that starts before the row.
template <class T>
__device__ __forceinline__ int first_of(const Frame& frame, int v) {
    return v * Format<T>::kWidth - frame.pad;
}

__device__ __forceinline__ bool inside(const Frame& frame, int element) {
    return unsigned(element) < unsigned(frame.classes);
}

template <class T>
__device__ __forceinline__ bool whole(const Frame& frame, int v) {
    const int first = first_of<T>(frame, v);
    return first >= 0 && first + Format<T>::kWidth <= frame.classes;
}

template <class T>
__device__ __forceinline__ const uint4* word_at(const T* row, const Frame& frame, int v) {
    return reinterpret_cast<const uint4*>(row + first_of<T>(frame, v));
}

// Word v of a row, gathered from its elements; those outside the row are -inf.
template <class T>
__device__ uint4 gather_word(const T* row, const Frame& frame, int v) {
    constexpr int kWidth = Format<T>::kWidth;
    constexpr int kPerRegister = kWidth / 4;
    const int first = first_of<T>(frame, v);
    std::uint32_t registers[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
        const std::uint32_t bits =
            inside(frame, first + j) ? Format<T>::load(row + first + j) : Format<T>::kMinusInfinity;
        registers[j / kPerRegister] |= bits << (16 * (j % kPerRegister));
    }
    return uint4{registers[0], registers[1], registers[2], registers[3]};
}

template <class T>
__device__ __forceinline__ uint4 load_word(const T* row, const Frame& frame, int v, bool aligned) {
    return aligned && whole<T>(frame, v) ? *word_at(row, frame, v) : gather_word(row, frame, v);
}

// Writes the elements of word v that are inside the row and whose bit in `skipped` is not set.
template <class T>
__device__ __forceinline__ void store_word(T* row, const Frame& frame, int v, bool aligned, const uint4& word,
                                           std::uint32_t skipped = 0) {
    const int first = first_of<T>(frame, v);
    if (aligned && skipped == 0 && whole<T>(frame, v)) {
        store_streaming(reinterpret_cast<uint4*>(row + first), word);
        return;
    }
#pragma unroll
    for (int j = 0; j < Format<T>::kWidth; ++j) {
        if (inside(frame, first + j) && (skipped >> j & 1u) == 0)
            Format<T>::store(row + first + j, bits_at<T>(word, j));
    }
}

}  // namespace kd::cuda
