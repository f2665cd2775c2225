// What the dispatcher and the per-instruction-set sources share.
#pragma once

#include <cstdint>

#include "kd/api.h"

namespace kd::cpu {

// A checked call: codes are known, pointers fit the terms, labels and indices lie in range, row_loss is never null;
// the weights hold their divisors, and a weight of 0 says that the term is off.
struct Call {
    const kd_loss_args* args;
    double ce_weight;
    double kl_weight;
    double* row_loss;
    int threads;
    bool stream;  // write gradients past the caches
};

struct LseCall {
    const void* logits;
    std::int64_t stride;
    std::int64_t rows;
    std::int64_t classes;
    double temperature;
    const double* row_temperature;
    double* lse;
    int threads;
};

// KD_OK or KD_NO_MEMORY.
using Kernel = kd_status (*)(const Call& call);
using LseKernel = kd_status (*)(const LseCall& call);

// One table per instruction set, indexed by kd_dtype.
struct KernelTable {
    Kernel loss[4];
    LseKernel log_sum_exp[4];
};

extern const KernelTable generic_kernels;
#ifdef KD_HAVE_AVX2
extern const KernelTable avx2_kernels;
#endif
#ifdef KD_HAVE_AVX512
extern const KernelTable avx512_kernels;
#endif

// Static, and so private to each object: a shared copy might be the one compiled for a wider instruction set.
static inline std::int64_t index_at(const void* indices, std::int32_t dtype, std::int64_t i) {
    if (dtype == KD_INT32) return static_cast<const std::int32_t*>(indices)[i];
    return static_cast<const std::int64_t*>(indices)[i];
}

}  // namespace kd::cpu
