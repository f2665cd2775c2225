// Checks a call, chooses a kernel, adds up the rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "loss.h"

namespace kd::cpu {
namespace {

// Starting threads costs some microseconds; below this many logits a thread they do not earn it back.
constexpr std::int64_t kLogitsPerThread = 8192;

bool sensible(const kd_loss_args& args) {
    if (args.rows < 0 || args.classes < 1 || args.threads < 1) return false;
    if (args.dtype != KD_FLOAT32 && args.dtype != KD_FLOAT64) return false;
    if (args.labels != nullptr && args.label_dtype != KD_INT32 && args.label_dtype != KD_INT64) return false;
    if (args.teacher != nullptr && !(args.temperature > 0 && std::isfinite(args.temperature))) return false;
    return args.student != nullptr || args.rows == 0;
}

// Counts the rows that the CE term uses and finds the first label that is out of range (-1: none).
std::int64_t check_labels(const kd_loss_args& args, std::int64_t* valid_rows) {
    for (std::int64_t i = 0; i < args.rows; ++i) {
        const std::int64_t label = label_at(args.labels, args.label_dtype, i);
        if (label == args.ignore_index) continue;
        if (label < 0 || label >= args.classes) return i;
        ++*valid_rows;
    }
    return -1;
}

int threads_for(const kd_loss_args& args) {
#ifdef _OPENMP
    const std::int64_t useful = std::max<std::int64_t>(1, args.rows * args.classes / kLogitsPerThread);
    return int(std::min<std::int64_t>({args.threads, useful, std::max<std::int64_t>(1, args.rows)}));
#else
    return (void)args, 1;
#endif
}

struct InstructionSet {
    const char* name;
    const KernelTable* kernels;
};

// The widest one that this machine has. KDBENCH_ISA=generic in the environment keeps to the narrowest, for tests.
InstructionSet choose() {
    const char* const wish = std::getenv("KDBENCH_ISA");
    const bool narrow = wish != nullptr && std::strcmp(wish, "generic") == 0;
#ifdef KD_HAVE_AVX2
    if (!narrow && __builtin_cpu_supports("avx2")) return {"avx2", &avx2_kernels};
#endif
    (void)narrow;
    return {"generic", &generic_kernels};
}

const InstructionSet& chosen() {
    static const InstructionSet once = choose();
    return once;
}

double ce_weight(const kd_loss_args& args, std::int64_t valid_rows) {
    if ((args.flags & KD_CE_MEAN_OVER_VALID_ROWS) == 0) return args.ce_weight;
    return valid_rows > 0 ? args.ce_weight / double(valid_rows) : 0.0;
}

kd_status run(const kd_loss_args& args, kd_loss_result* result) {
    if (!sensible(args)) return KD_BAD_ARGUMENT;
    if (args.labels != nullptr) {
        result->bad_row = check_labels(args, &result->valid_rows);
        if (result->bad_row >= 0) return KD_BAD_LABEL;
    }
    std::vector<double> own_rows(args.row_loss == nullptr ? std::size_t(args.rows) : 0);
    Call call;
    call.args = &args;
    call.ce_weight = ce_weight(args, result->valid_rows);
    // A weight of 0 switches its term off altogether: 0 * inf must not reach the loss.
    call.teacher = args.kl_weight == 0.0 ? nullptr : args.teacher;
    call.labels = call.ce_weight == 0.0 ? nullptr : args.labels;
    call.row_loss = args.row_loss != nullptr ? args.row_loss : own_rows.data();
    call.threads = threads_for(args);
    const kd_status status = chosen().kernels->by_dtype[args.dtype](call);
    if (status != KD_OK) return status;
    for (std::int64_t i = 0; i < args.rows; ++i) result->loss += call.row_loss[i];
    return KD_OK;
}

}  // namespace
}  // namespace kd::cpu

extern "C" kd_status kd_loss_cpu(const kd_loss_args* args, kd_loss_result* result) {
    *result = kd_loss_result{0.0, 0, -1};
    try {
        return kd::cpu::run(*args, result);
    } catch (const std::bad_alloc&) {
        return KD_NO_MEMORY;
    }
}

extern "C" const char* kd_cpu_isa(void) { return kd::cpu::chosen().name; }

extern "C" int kd_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
