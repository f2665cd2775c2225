// Executes the CUDA kernels on a CPU, for tests: stands in for csrc/cuda/device.cuh and the part of the CUDA runtime
// that the launchers use. Every thread of a block or cluster is a fiber; it runs until it waits for others, at a
// barrier or in a shuffle, and a fiber that waits for somebody who has left ends the program. Copies into shared memory
// arrive as late as their thread's waiting permits. Shared memory has exactly the size asked for and starts as NaN, so
// a build under AddressSanitizer finds what a memory checker on a device would; under ThreadSanitizer the fibers count
// as threads, and it finds the races.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

inline int min(int a, int b) { return a < b ? a : b; }

struct uint4 {
    std::uint32_t x, y, z, w;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace kd_shim {

constexpr int kLanes = 32;
constexpr std::size_t kStackBytes = 128 << 10;

// Threads wait here until `expected` of them have come.
struct Barrier {
    int expected = 0;
    int arrived = 0;
    unsigned turn = 0;
};

struct Warp {
    Barrier barriers[kLanes];  // each for the lanes from this one on that belong together
    std::uint64_t mail[2][kLanes];
};

struct Block {
    dim3 index;
    int rank = 0;  // in the cluster
    Barrier barrier;
    std::vector<Warp> warps;
    std::unique_ptr<std::uint32_t[]> memory;
};

struct Cluster {
    Barrier barrier;
    std::vector<Block> blocks;
};

struct Copy {
    void* to;
    const void* from;
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume_point;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    Block* block = nullptr;
    Warp* warp = nullptr;
    dim3 thread;
    int lane = 0;
    int shuffles = 0;
    Barrier* waits_for = nullptr;
    unsigned turn = 0;
    unsigned cluster_turn = 0;
    bool done = false;
    std::vector<std::vector<Copy>> copies;  // groups, oldest first; the last one is open
    void* sanitizer = nullptr;
};

struct Machine {
    dim3 grid, block;
    Cluster* cluster = nullptr;
    Fiber* current = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;
    ucontext_t scheduler;
    jmp_buf return_point;
    void* sanitizer = nullptr;
    std::function<void()> kernel;
};

inline Machine machine;

// While one lives, ThreadSanitizer does not look: at the shim's own bookkeeping, which only one fiber at a time
// touches.
class Unwatched {
  public:
#if defined(__SANITIZE_THREAD__)
    Unwatched() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Unwatched() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    Unwatched() {}
    ~Unwatched() {}
#endif
};

inline Fiber& me() {
    const Unwatched unwatched;
    return *machine.current;
}

// Everything before a release happens before everything after an acquire of the same address.
inline void acquire([[maybe_unused]] void* what) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(what);
#endif
}

inline void release([[maybe_unused]] void* what) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(what);
#endif
}

// Switching by ucontext costs two system calls; a jump does it once a fiber runs. Sanitizers do not follow jumps.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline void enter(Fiber& fiber) {
    machine.current = &fiber;
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&machine.scheduler, &fiber.context);
}

inline void leave() {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(machine.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&machine.current->context, &machine.scheduler);
}
#else
inline void enter(Fiber& fiber) {
    machine.current = &fiber;
    if (_setjmp(machine.return_point) != 0) return;
    if (fiber.begun) _longjmp(fiber.resume_point, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

inline void leave() {
    if (_setjmp(machine.current->resume_point) == 0) _longjmp(machine.return_point, 1);
}
#endif

inline unsigned arrive(Barrier& barrier) {
    const Unwatched unwatched;
    const unsigned turn = barrier.turn;
    release(&barrier);
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.turn;
    }
    return turn;
}

inline void wait_until_past(Barrier& barrier, unsigned turn) {
    const Unwatched unwatched;
    Fiber& fiber = *machine.current;
    fiber.waits_for = &barrier;
    fiber.turn = turn;
    while (barrier.turn == turn) leave();
    fiber.waits_for = nullptr;
    acquire(&barrier);
}

inline void meet(Barrier& barrier) { wait_until_past(barrier, arrive(barrier)); }

inline void fiber_main() {
    acquire(&machine);
    machine.kernel();
    release(&machine);
    const Unwatched unwatched;
    machine.current->done = true;
    for (;;) leave();
}

inline std::unique_ptr<Fiber> new_fiber() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.reset(new char[kStackBytes]);
#if defined(__SANITIZE_THREAD__)
    fiber->sanitizer = __tsan_create_fiber(0);
#endif
    return fiber;
}

inline void start_fiber(Fiber& fiber, Block& block, int number) {
    fiber.block = &block;
    fiber.thread = dim3(unsigned(number) % machine.block.x, unsigned(number) / machine.block.x, 0);
    fiber.warp = &block.warps[std::size_t(number / kLanes)];
    fiber.lane = number % kLanes;
    fiber.shuffles = 0;
    fiber.waits_for = nullptr;
    fiber.begun = false;
    fiber.done = false;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(fiber_main), 0);
}

// Round after round over the fibers that can go on, every other round backwards.
inline void run_fibers(int count) {
    const Unwatched unwatched;
    for (int round = 0;; ++round) {
        bool moved = false, left = false;
        for (int i = 0; i < count; ++i) {
            Fiber& fiber = *machine.fibers[std::size_t(round % 2 ? count - 1 - i : i)];
            if (fiber.done) continue;
            left = true;
            if (fiber.waits_for != nullptr && fiber.waits_for->turn == fiber.turn) continue;
            moved = true;
            enter(fiber);
        }
        if (!left) return;
        if (!moved) {
            std::printf("every thread waits for another one\n");
            std::exit(1);
        }
    }
}

inline void run_cluster(unsigned first_block, int blocks, std::size_t shared_bytes) {
    const int threads = int(machine.block.x * machine.block.y);
    Cluster cluster;
    cluster.barrier.expected = blocks * threads;
    cluster.blocks.resize(std::size_t(blocks));
    machine.cluster = &cluster;
    while (int(machine.fibers.size()) < blocks * threads) machine.fibers.push_back(new_fiber());
    for (int b = 0; b < blocks; ++b) {
        Block& block = cluster.blocks[std::size_t(b)];
        block.index = dim3(first_block + unsigned(b), 0, 0);
        block.rank = b;
        block.barrier.expected = threads;
        block.warps.resize(std::size_t(threads / kLanes));
        block.memory.reset(new std::uint32_t[(shared_bytes + 3) / 4]);
        std::memset(block.memory.get(), 0xFF, (shared_bytes + 3) / 4 * 4);
        for (int i = 0; i < threads; ++i) start_fiber(*machine.fibers[std::size_t(b * threads + i)], block, i);
    }
    release(&machine);
    run_fibers(blocks * threads);
    acquire(&machine);
}

inline void run_grid(dim3 grid, dim3 block, int blocks, std::size_t shared_bytes, std::function<void()> kernel) {
    machine.grid = grid;
    machine.block = block;
    machine.kernel = std::move(kernel);
#if defined(__SANITIZE_THREAD__)
    machine.sanitizer = __tsan_get_current_fiber();
#endif
    for (unsigned first = 0; first < grid.x; first += unsigned(blocks)) run_cluster(first, blocks, shared_bytes);
}

// An unsigned number that is looked up whenever it is used.
template <unsigned (*kLookUp)()>
struct Reading {
    operator unsigned() const { return kLookUp(); }
};

inline unsigned thread_x() { return me().thread.x; }
inline unsigned thread_y() { return me().thread.y; }
inline unsigned block_x() { return me().block->index.x; }
inline unsigned block_width() { return machine.block.x; }
inline unsigned block_height() { return machine.block.y; }
inline unsigned grid_width() { return machine.grid.x; }

}  // namespace kd_shim

constexpr struct {
    kd_shim::Reading<kd_shim::thread_x> x;
    kd_shim::Reading<kd_shim::thread_y> y;
} threadIdx;

constexpr struct {
    kd_shim::Reading<kd_shim::block_x> x;
} blockIdx;

constexpr struct {
    kd_shim::Reading<kd_shim::block_width> x;
    kd_shim::Reading<kd_shim::block_height> y;
} blockDim;

constexpr struct {
    kd_shim::Reading<kd_shim::grid_width> x;
} gridDim;

#include "cuda_shim_device.h"
#include "cuda_shim_runtime.h"
