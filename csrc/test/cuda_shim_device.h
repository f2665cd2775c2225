// The functions of csrc/cuda/device.cuh for a fiber of cuda_shim.h, which includes this.
#pragma once

#include "half.h"

namespace kd::cuda {

using test::bf16_to_float;
using test::f16_to_float;
using test::float_to_bf16;
using test::float_to_f16;

constexpr bool kEmulated = true;
constexpr bool kHasClusters = true;

inline float float_of(std::uint32_t bits) { return test::float_from_bits(bits); }
inline std::uint32_t bits_of(float x) { return test::bits_from_float(x); }

// The device's result is off by up to two units in the last place, and flushes denormal numbers.
inline float exp2_approx(float x) {
    const float y = float(std::exp2(double(x)));
    if (y == 1.0f || !(y > 0.0f) || y > 3e38f) return y;
    const float off = float_of(bits_of(y) + ((bits_of(x) >> 3) % 5u) - 2u);
    return off < 1.17549435e-38f ? 0.0f : off;
}

inline float max_nan(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }

inline std::uint32_t max_nan_bf16x2(std::uint32_t a, std::uint32_t b) {
    const auto top = [](std::uint32_t x, std::uint32_t y) {
        return float_to_bf16(max_nan(bf16_to_float(x), bf16_to_float(y)));
    };
    return top(a >> 16, b >> 16) << 16 | top(a & 0xFFFFu, b & 0xFFFFu);
}

inline std::uint32_t max_nan_f16x2(std::uint32_t a, std::uint32_t b) {
    const auto top = [](std::uint32_t x, std::uint32_t y) {
        return float_to_f16(max_nan(f16_to_float(x), f16_to_float(y)));
    };
    return top(a >> 16, b >> 16) << 16 | top(a & 0xFFFFu, b & 0xFFFFu);
}

inline void unpack_f16x2(std::uint32_t pair, float& low, float& high) {
    low = f16_to_float(pair & 0xFFFFu);
    high = f16_to_float(pair >> 16);
}

inline std::uint32_t pack_f16x2(float low, float high) { return float_to_f16(high) << 16 | float_to_f16(low); }
inline std::uint32_t pack_bf16x2(float low, float high) { return float_to_bf16(high) << 16 | float_to_bf16(low); }

inline float product(float a, float b) { return a * b; }

inline char* shared_memory() { return reinterpret_cast<char*>(kd_shim::me().block->memory.get()); }

inline void require_aligned(const void* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % 16 == 0) return;
    std::printf("a 16-byte access to %p\n", address);
    std::exit(1);
}

inline void copy_async(uint4* shared, const void* global) {
    require_aligned(shared);
    require_aligned(global);
    kd_shim::me().copies.back().push_back(kd_shim::Copy{shared, global});
}

inline void close_copies() { kd_shim::me().copies.emplace_back(); }

template <int kPending>
inline void wait_copies() {
    auto& groups = kd_shim::me().copies;
    while (int(groups.size()) - 1 > kPending) {
        for (const kd_shim::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
        groups.erase(groups.begin());
    }
}

inline void store_streaming(uint4* global, uint4 words) {
    require_aligned(global);
    *global = words;
}

inline std::uint32_t set_bits(std::uint32_t* word, std::uint32_t bits) {
    return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
}

inline void add_to(int* global, int x) { __atomic_fetch_add(global, x, __ATOMIC_RELAXED); }

inline kd_shim::Barrier& barrier_of(std::uint32_t members) {
    if ((members >> kd_shim::me().lane & 1u) == 0) {
        std::printf("a lane calls for others\n");
        std::exit(1);
    }
    kd_shim::Barrier& barrier = kd_shim::me().warp->barriers[__builtin_ctz(members)];
    const kd_shim::Unwatched unwatched;
    barrier.expected = __builtin_popcount(members);
    return barrier;
}

template <class Number>
Number shuffle_xor(std::uint32_t members, Number x, int mask) {
    kd_shim::Fiber& fiber = kd_shim::me();
    std::uint64_t* const mail = fiber.warp->mail[fiber.shuffles++ % 2];
    std::memcpy(&mail[fiber.lane], &x, sizeof x);
    kd_shim::meet(barrier_of(members));
    std::memcpy(&x, &mail[fiber.lane ^ mask], sizeof x);
    return x;
}

inline void sync_lanes(std::uint32_t members) { kd_shim::meet(barrier_of(members)); }
inline void sync_block() { kd_shim::meet(kd_shim::me().block->barrier); }

inline int cluster_rank() { return kd_shim::me().block->rank; }
inline void cluster_arrive() { kd_shim::me().cluster_turn = kd_shim::arrive(kd_shim::machine.cluster->barrier); }
inline void cluster_wait() { kd_shim::wait_until_past(kd_shim::machine.cluster->barrier, kd_shim::me().cluster_turn); }

inline void push(std::uint32_t* shared, int rank, std::uint32_t word) {
    const std::ptrdiff_t offset = shared - kd_shim::me().block->memory.get();
    kd_shim::machine.cluster->blocks[std::size_t(rank)].memory[offset] = word;
}

}  // namespace kd::cuda
