// The pool of gradient buffers from several threads at once, for builds under the address and the thread sanitizer.
// Exits with 1 where a buffer is handed out twice, is not what was asked for, or the books do not balance.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "kd/pool.h"

namespace {

constexpr std::size_t kMegabyte = std::size_t(1) << 20;

void require(bool good, const char* what) {
    if (good) return;
    std::printf("%s\n", what);
    std::exit(1);
}

// Takes a few buffers of different sizes, writes its own mark into each, and finds the mark again before it gives back.
void work(unsigned char mark) {
    std::uint32_t random = 77u * mark;
    std::vector<std::pair<unsigned char*, std::size_t>> held;
    for (int step = 0; step < 200; ++step) {
        random = random * 1664525u + 1013904223u;
        if (held.size() == 4 || (random >> 30 == 0 && !held.empty())) {
            const auto [buffer, bytes] = held.front();
            held.erase(held.begin());
            const bool own = buffer[0] == mark && buffer[bytes / 2] == mark && buffer[bytes - 1] == mark;
            require(own, "a buffer had two owners");
            kd_pool_give(buffer);
            continue;
        }
        const std::size_t bytes = kMegabyte * (1 + (random >> 8) % 5) + (random >> 16) % 4096;
        auto* const buffer = static_cast<unsigned char*>(kd_pool_take(bytes));
        require(buffer != nullptr, "no memory");
        require(reinterpret_cast<std::uintptr_t>(buffer) % (2 * kMegabyte) == 0, "a buffer is not aligned");
        buffer[0] = buffer[bytes / 2] = buffer[bytes - 1] = mark;
        held.push_back({buffer, bytes});
        if (step % 50 == 49) kd_pool_trim();
        if (step % 70 == 69) kd_pool_limit(step % 140 == 69 ? 8 * kMegabyte : 64 * kMegabyte);
        require(kd_pool_statistics().used_bytes >= std::int64_t(bytes), "a buffer is not in the books");
    }
    for (const auto& [buffer, bytes] : held) kd_pool_give(buffer);
}

void check_threads() {
    std::vector<std::thread> threads;
    for (unsigned char mark = 1; mark <= 2; ++mark) threads.emplace_back(work, mark);
    for (std::thread& thread : threads) thread.join();
    require(kd_pool_statistics().used_bytes == 0, "buffers are still in use");
    kd_pool_trim();
    require(kd_pool_statistics().idle_bytes == 0, "buffers are still kept");
}

void check_order() {
    kd_pool_limit(64 * kMegabyte);
    void* const first = kd_pool_take(3 * kMegabyte);
    void* const second = kd_pool_take(3 * kMegabyte);
    require(first != second, "one buffer for two");
    kd_pool_give(first);
    kd_pool_give(first);  // twice: the second time it is nobody's
    kd_pool_give(nullptr);
    require(kd_pool_statistics().idle_bytes == std::int64_t(4 * kMegabyte), "the idle bytes");
    require(kd_pool_take(4 * kMegabyte) == first, "the kept buffer is not reused");
    require(kd_pool_take(4 * kMegabyte) != first, "a buffer in use is handed out");
    kd_pool_give(second);
    kd_pool_limit(0);
    require(kd_pool_statistics().idle_bytes == 0, "the limit");
    kd_pool_give(first);
    require(kd_pool_statistics().idle_bytes == 0, "the limit, later");
    require(kd_pool_take(std::size_t(1) << 60) == nullptr, "memory that is not there");
}

// A buffer that nobody asks for any more goes back to the system while others come and go.
void check_patience() {
    kd_pool_limit(64 * kMegabyte);
    kd_pool_give(kd_pool_take(32 * kMegabyte));
    for (int i = 0; i < 40; ++i) kd_pool_give(kd_pool_take(kMegabyte));
    require(kd_pool_statistics().idle_bytes == std::int64_t(2 * kMegabyte), "a forgotten buffer is kept");
    kd_pool_trim();
}

}  // namespace

int main() {
    check_threads();
    check_order();
    check_patience();
    std::printf("ok\n");
    return 0;
}
