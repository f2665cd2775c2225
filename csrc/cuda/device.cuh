// What the kernels ask of the machine, an instruction or two a function. csrc/test/cuda_shim.h gives the same names to
// a host compiler, so that the kernels can be executed, slowly, where there is no device.
#pragma once

#ifdef KD_EMULATE
#include "cuda_shim.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

namespace kd::cuda {

constexpr bool kEmulated = false;

// Thread block clusters came with compute capability 9.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// 2^x with a relative error of about two units in the last place. 2^-inf is exactly 0, 2^0 exactly 1.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger one; NaN if either is.
__device__ __forceinline__ float max_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

__device__ __forceinline__ std::uint32_t max_nan_bf16x2(std::uint32_t a, std::uint32_t b) {
    std::uint32_t y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

__device__ __forceinline__ std::uint32_t max_nan_f16x2(std::uint32_t a, std::uint32_t b) {
    std::uint32_t y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

__device__ __forceinline__ float float_of(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ std::uint32_t bits_of(float x) { return __float_as_uint(x); }

__device__ __forceinline__ void unpack_f16x2(std::uint32_t pair, float& low, float& high) {
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}

// Two numbers rounded to nearest, the first one in the low half.
__device__ __forceinline__ std::uint32_t pack_f16x2(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ std::uint32_t pack_bf16x2(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// A product that the compiler must not fuse with an addition.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }

// ---- memory --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
    return std::uint32_t(__cvta_generic_to_shared(pointer));
}

// Starts copying 16 bytes, which pass through no register; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(uint4* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// Closes a group of copies; waits until all but the last kPending groups of this thread have arrived.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A store of what nobody reads again soon.
__device__ __forceinline__ void store_streaming(uint4* global, uint4 words) { __stcs(global, words); }

__device__ __forceinline__ std::uint32_t set_bits(std::uint32_t* word, std::uint32_t bits) {
    return atomicOr(word, bits);
}

__device__ __forceinline__ void add_to(int* global, int x) { atomicAdd(global, x); }

// ---- threads -------------------------------------------------------------------------------------------------------

// x of the lane whose number differs by `mask`, among the lanes whose bits are set in `members`: all of these call.
template <class Number>
__device__ __forceinline__ Number shuffle_xor(std::uint32_t members, Number x, int mask) {
    return __shfl_xor_sync(members, x, mask);
}

__device__ __forceinline__ void sync_lanes(std::uint32_t members) { __syncwarp(members); }
__device__ __forceinline__ void sync_block() { __syncthreads(); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() {
    std::uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return int(rank);
}

// The two halves of a barrier over the cluster: what was written before `arrive` is seen after `wait`.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Writes a word where another block of the cluster has the variable that `shared` is here.
__device__ __forceinline__ void push(std::uint32_t* shared, int rank, std::uint32_t word) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.u32 [there], %2; }" ::"r"(
            shared_address(shared)),
        "r"(rank), "r"(word)
        : "memory");
}
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
__device__ __forceinline__ void push(std::uint32_t*, int, std::uint32_t) {}
#endif

}  // namespace kd::cuda

#endif  // KD_EMULATE
