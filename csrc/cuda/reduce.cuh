// Sums and maxima over the threads that share a row: lanes of a warp, warps of a block, blocks of a cluster. The three
// levels do the same thing with different mail, in a fixed order, and every thread ends up with the same bits.
#pragma once

#include <cstring>

#include "device.cuh"

namespace kd::cuda {

constexpr int kLanes = 32;
constexpr int kMostThreads = 320;
constexpr int kMostWarps = kMostThreads / kLanes;
constexpr int kMostBlocks = 16;  // of a cluster; more than 8 only where the device allows it

// One value of each warp and of each block, twice: a thread may post its next value while another still reads this one.
constexpr int kSlotWords = 8;
constexpr int kTurnWords = (kMostWarps + kMostBlocks) * kSlotWords;
constexpr int kSlotBytes = 2 * kTurnWords * 4;

__device__ __forceinline__ int lane_of_thread() { return int(threadIdx.x % kLanes); }  // among those of its team
__device__ __forceinline__ int warp_of_thread() { return int(threadIdx.x / kLanes); }

// Lanes of a warp that belong to one team, and which they are.
__device__ __forceinline__ int lanes_of_team() { return int(blockDim.x) < kLanes ? int(blockDim.x) : kLanes; }
__device__ __forceinline__ std::uint32_t members_of_team() {
    const int lanes = lanes_of_team();
    const std::uint32_t first = threadIdx.y * blockDim.x % kLanes;
    return lanes == kLanes ? 0xFFFFFFFFu : ((1u << lanes) - 1u) << first;
}

// The threads that share a row: `blocks` blocks of blockDim.x threads. Beside each other in a block there can be
// blockDim.y teams, which are then single warps or, where blockDim.x is a smaller power of 2, parts of one.
struct Team {
    int blocks;     // of the cluster
    int turn;       // which half of the slots is next
    bool gathered;  // whether all blocks of the cluster are known to run

    __device__ explicit Team(int cluster_blocks)
        : blocks(kHasClusters ? cluster_blocks : 1), turn(0), gathered(blocks == 1) {
        if (!gathered) cluster_arrive();
    }

    __device__ int warps() const { return int(blockDim.x / kLanes); }
    __device__ int block() const { return kHasClusters && blocks > 1 ? cluster_rank() : 0; }
    __device__ int rank() const { return block() * int(blockDim.x) + int(threadIdx.x); }  // of this thread
    __device__ int size() const { return blocks * int(blockDim.x); }                      // threads

    // A block that has not started has no shared memory to write to.
    __device__ void gather() {
        if (!gathered) cluster_wait();
        gathered = true;
    }
};

template <class Value>
__device__ __forceinline__ void post(std::uint32_t* slot, const Value& value) {
    static_assert(sizeof(Value) % 4 == 0 && sizeof(Value) <= kSlotWords * 4, "a value must fit its slot");
    std::uint32_t words[sizeof(Value) / 4];
    memcpy(words, &value, sizeof value);
#pragma unroll
    for (int i = 0; i < int(sizeof(Value) / 4); ++i) slot[i] = words[i];
}

template <class Value>
__device__ __forceinline__ Value collect(const std::uint32_t* slot) {
    std::uint32_t words[sizeof(Value) / 4];
#pragma unroll
    for (int i = 0; i < int(sizeof(Value) / 4); ++i) words[i] = slot[i];
    Value value;
    memcpy(&value, words, sizeof value);
    return value;
}

// The team's value in every thread. join(value) replaces the lanes' values by theirs together; `nothing` is neutral.
template <class Value, class Join>
__device__ __forceinline__ Value all_reduce(Team& team, Value value, const Value& nothing, const Join& join) {
    sync_lanes(members_of_team());  // whatever the lanes read before, others may overwrite after
    value = join(value);
    const int lane = lane_of_thread();
    std::uint32_t* const slots = reinterpret_cast<std::uint32_t*>(shared_memory()) + team.turn * kTurnWords;
    if (team.warps() > 1) {
        if (lane == 0) post(slots + warp_of_thread() * kSlotWords, value);
        sync_block();
        value = join(lane < team.warps() ? collect<Value>(slots + lane * kSlotWords) : nothing);
    }
    if (kHasClusters && team.blocks > 1) {
        std::uint32_t* const mail = slots + kMostWarps * kSlotWords;
        team.gather();
        if (warp_of_thread() == 0 && lane < team.blocks) {
            std::uint32_t words[sizeof(Value) / 4];
            memcpy(words, &value, sizeof value);
#pragma unroll
            for (int i = 0; i < int(sizeof(Value) / 4); ++i) {
                push(mail + team.block() * kSlotWords + i, lane, words[i]);
            }
        }
        cluster_arrive();
        cluster_wait();
        value = join(lane < team.blocks ? collect<Value>(mail + lane * kSlotWords) : nothing);
    }
    team.turn ^= 1;
    return value;
}

template <class Number>
__device__ __forceinline__ Number lanes_sum(Number x) {
    const std::uint32_t members = members_of_team();
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) {
        if (mask < lanes_of_team()) x += shuffle_xor(members, x, mask);
    }
    return x;
}

__device__ __forceinline__ float lanes_max(float x) {
    const std::uint32_t members = members_of_team();
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) {
        if (mask < lanes_of_team()) x = max_nan(x, shuffle_xor(members, x, mask));
    }
    return x;
}

// float, double or int
template <class Number>
__device__ __forceinline__ Number team_sum(Team& team, Number x) {
    return all_reduce(team, x, Number(0), [](Number y) { return lanes_sum(y); });
}

// The largest; NaN if any is.
__device__ __forceinline__ float team_max(Team& team, float x) {
    return all_reduce(team, x, -__builtin_huge_valf(), [](float y) { return lanes_max(y); });
}

}  // namespace kd::cuda
