// What the dispatcher and the per-instruction-set sources share.
#pragma once

#include <cstdint>

#include "kd/api.h"

namespace kd::cpu {

// A checked call: pointers fit the terms, labels lie in range, row_loss is never null, ce_weight holds its reduction,
// a null teacher or null labels mean that the term is off.
struct Call {
    const kd_loss_args* args;
    const void* teacher;
    const void* labels;
    double ce_weight;
    double* row_loss;
    int threads;
};

// Fills call.row_loss and, where asked, the gradient. Returns KD_OK or KD_NO_MEMORY.
using Kernel = kd_status (*)(const Call& call);

// One table per instruction set, indexed by kd_dtype.
struct KernelTable {
    Kernel by_dtype[2];
};

extern const KernelTable generic_kernels;
#ifdef KD_HAVE_AVX2
extern const KernelTable avx2_kernels;
#endif

// Static, and so private to each object: a shared copy might be the one compiled for a wider instruction set.
static inline std::int64_t label_at(const void* labels, std::int32_t label_dtype, std::int64_t row) {
    if (label_dtype == KD_INT32) return static_cast<const std::int32_t*>(labels)[row];
    return static_cast<const std::int64_t*>(labels)[row];
}

}  // namespace kd::cpu
