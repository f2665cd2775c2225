// See kd/pool.h.
#include "kd/pool.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#define KD_HAVE_MMAP 1
#endif

namespace {

constexpr std::size_t kPage = std::size_t(2) << 20;

// A buffer that this many requests did not want is not waiting for its own loop any more.
constexpr std::int64_t kPatience = 32;

void* system_take(std::size_t bytes) {
#ifdef KD_HAVE_MMAP
    char* const all = static_cast<char*>(
        mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED) return nullptr;
    const std::size_t head = (kPage - reinterpret_cast<std::uintptr_t>(all) % kPage) % kPage;
    if (head > 0) munmap(all, head);
    if (head < kPage) munmap(all + head + bytes, kPage - head);
#ifdef MADV_HUGEPAGE
    madvise(all + head, bytes, MADV_HUGEPAGE);  // a wish: small pages work too
#endif
    return all + head;
#else
    return std::aligned_alloc(kPage, bytes);
#endif
}

void system_give(void* buffer, std::size_t bytes) {
#ifdef KD_HAVE_MMAP
    munmap(buffer, bytes);
#else
    (void)bytes;
    std::free(buffer);
#endif
}

struct Idle {
    void* buffer;
    std::size_t bytes;
    std::int64_t since;  // the clock when it was given back
};

class Pool {
  public:
    void* take(std::size_t bytes) {
        const std::size_t whole = (bytes + kPage - 1) / kPage * kPage;
        const std::lock_guard<std::mutex> lock(mutex_);
        ++clock_;
        std::size_t best = idle_.size();
        for (std::size_t i = 0; i < idle_.size(); ++i) {
            const bool fits = idle_[i].bytes >= whole && idle_[i].bytes - whole <= whole / 2;
            // The latest of equals: it is the likeliest to be in a cache.
            if (fits && (best == idle_.size() || idle_[i].bytes <= idle_[best].bytes)) best = i;
        }
        if (best < idle_.size()) {
            const Idle found = idle_[best];
            idle_.erase(idle_.begin() + std::ptrdiff_t(best));
            state_.idle_bytes -= std::int64_t(found.bytes);
            state_.used_bytes += std::int64_t(found.bytes);
            ++state_.reused;
            used_[found.buffer] = found.bytes;
            drop_forgotten();
            return found.buffer;
        }
        drop_forgotten();
        void* const fresh = system_take(whole);
        if (fresh == nullptr) return nullptr;
        used_[fresh] = whole;
        state_.used_bytes += std::int64_t(whole);
        ++state_.allocated;
        return fresh;
    }

    void give(void* buffer) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = used_.find(buffer);
        if (found == used_.end()) return;
        const std::size_t bytes = found->second;
        used_.erase(found);
        state_.used_bytes -= std::int64_t(bytes);
        if (bytes > limit_) return system_give(buffer, bytes);
        idle_.push_back({buffer, bytes, clock_});
        state_.idle_bytes += std::int64_t(bytes);
        shrink();
    }

    void limit(std::size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = bytes;
        shrink();
    }

    void trim() {
        const std::lock_guard<std::mutex> lock(mutex_);
        drop([](const Idle&) { return true; });
    }

    kd_pool_state state() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return state_;
    }

  private:
    void drop_forgotten() {
        drop([this](const Idle& idle) { return clock_ - idle.since > kPatience; });
    }

    template <class Condition>
    void drop(Condition unwanted) {
        std::vector<Idle> kept;
        for (const Idle& idle : idle_) {
            if (unwanted(idle)) {
                system_give(idle.buffer, idle.bytes);
                state_.idle_bytes -= std::int64_t(idle.bytes);
            } else {
                kept.push_back(idle);
            }
        }
        idle_.swap(kept);
    }

    // Oldest first.
    void shrink() {
        while (state_.idle_bytes > std::int64_t(limit_)) {
            const Idle oldest = idle_.front();
            idle_.erase(idle_.begin());
            system_give(oldest.buffer, oldest.bytes);
            state_.idle_bytes -= std::int64_t(oldest.bytes);
        }
    }

    std::mutex mutex_;
    std::vector<Idle> idle_;
    std::unordered_map<void*, std::size_t> used_;
    std::int64_t clock_ = 0;
    std::size_t limit_ = std::size_t(2) << 30;
    kd_pool_state state_{};
};

// Never destroyed: tensors may outlive every other object of the process.
Pool& pool() {
    static Pool* const the = new Pool;
    return *the;
}

}  // namespace

extern "C" void* kd_pool_take(size_t bytes) {
    try {
        return pool().take(bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

extern "C" void kd_pool_give(void* buffer) { pool().give(buffer); }
extern "C" void kd_pool_limit(size_t bytes) { pool().limit(bytes); }
extern "C" void kd_pool_trim(void) { pool().trim(); }
extern "C" kd_pool_state kd_pool_statistics(void) { return pool().state(); }
