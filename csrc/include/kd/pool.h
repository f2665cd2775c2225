// Memory for large gradients. A fresh allocation of this size is zeroed by the system page by page, at several times
// the cost of the kernel that fills it; a training loop asks for the same size again and again. So buffers are kept
// when they are given back, and lie on huge pages where the system has them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Requests below this are better served by malloc, which reuses its own memory up to about this size.
#define KD_POOL_SMALLEST (1 << 20)

// At least `bytes` bytes, aligned to 2 MiB; contents are undefined. Null: no memory. Thread-safe.
void* kd_pool_take(size_t bytes);

// Gives a buffer back. It is kept for later requests of about its size, within the limit.
void kd_pool_give(void* buffer);

// Most bytes that lie idle; more are returned to the system. Idle buffers that later requests pass over go as well.
void kd_pool_limit(size_t bytes);

// Returns all idle buffers to the system.
void kd_pool_trim(void);

typedef struct kd_pool_state {
    int64_t idle_bytes;
    int64_t used_bytes;
    int64_t reused;     // requests served from kept buffers
    int64_t allocated;  // requests that went to the system
} kd_pool_state;

kd_pool_state kd_pool_statistics(void);

#ifdef __cplusplus
}  // extern "C"
#endif
