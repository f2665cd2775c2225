// Checks a call, chooses a kernel, adds up the rows.
#include <algorithm>
#include <atomic>
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
constexpr std::int64_t kLogitsPerThread = 6144;

// A gradient larger than this leaves the caches before anybody reads it, and is written past them at once.
constexpr std::int64_t kStreamedBytes = 24 << 20;

constexpr std::int64_t kElementBytes[] = {4, 8, 2, 2};

bool sensible_teacher(const kd_loss_args& args) {
    if (args.teacher_count < 0 || args.teacher_count > KD_MAX_TEACHERS) return false;
    if (args.teacher_count == 0) return args.indices == nullptr;
    if (!args.row_temperature && !(args.temperature > 0 && std::isfinite(args.temperature))) return false;
    if (args.teacher_lse && args.teacher_count > 1) return false;
    for (int k = 0; k < args.teacher_count; ++k) {
        if (args.teachers[k] == nullptr && args.rows > 0) return false;
    }
    if (args.indices == nullptr) return true;
    if (args.teacher_count != 1 || args.listed < 1 || args.listed > args.classes) return false;
    if (args.index_dtype != KD_INT32 && args.index_dtype != KD_INT64) return false;
    if (args.tail < KD_TAIL_RENORMALISE || args.tail > KD_TAIL_BUCKET) return false;
    return args.tail == KD_TAIL_RENORMALISE || args.teacher_lse != nullptr || args.rows == 0;
}

bool sensible(const kd_loss_args& args, int threads) {
    if (args.rows < 0 || args.classes < 1 || threads < 1 || !(args.grad_scale > 0)) return false;
    if (args.dtype < KD_FLOAT32 || args.dtype > KD_FLOAT16) return false;
    if (args.labels != nullptr && args.label_dtype != KD_INT32 && args.label_dtype != KD_INT64) return false;
    return sensible_teacher(args) && (args.student != nullptr || args.rows == 0);
}

// Counts the rows that the CE term uses and finds the first label that is out of range (-1: none).
std::int64_t check_labels(const kd_loss_args& args, std::int64_t* valid_rows) {
    for (std::int64_t i = 0; i < args.rows; ++i) {
        const std::int64_t label = index_at(args.labels, args.label_dtype, i);
        if (label == args.ignore_index) continue;
        if (label < 0 || label >= args.classes) return i;
        ++*valid_rows;
    }
    return -1;
}

// The first row that lists a class outside the range, or one class twice (-1: none).
std::int64_t check_indices(const kd_loss_args& args) {
    std::vector<std::int64_t> last_row(std::size_t(args.classes), -1);  // that listed the class
    for (std::int64_t i = 0; i < args.rows; ++i) {
        for (std::int64_t k = 0; k < args.listed; ++k) {
            const std::int64_t c = index_at(args.indices, args.index_dtype, i * args.listed + k);
            if (c < 0 || c >= args.classes || last_row[std::size_t(c)] == i) return i;
            last_row[std::size_t(c)] = i;
        }
    }
    return -1;
}

int threads_for(std::int64_t rows, std::int64_t classes, int threads) {
#ifdef _OPENMP
    const std::int64_t useful = std::max<std::int64_t>(1, rows * classes / kLogitsPerThread);
    return int(std::min<std::int64_t>({threads, useful, std::max<std::int64_t>(1, rows)}));
#else
    return (void)rows, (void)classes, (void)threads, 1;
#endif
}

struct InstructionSet {
    const char* name;
    const KernelTable* kernels;
    bool here;  // on this machine
};

// Widest first.
const InstructionSet* instruction_sets() {
    static const InstructionSet sets[] = {
#ifdef KD_HAVE_AVX512
        {"avx512", &avx512_kernels,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
#endif
#ifdef KD_HAVE_AVX2
        {"avx2", &avx2_kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
        {"generic", &generic_kernels, true},
    };
    return sets;
}

const InstructionSet* find(const char* name) {
    const InstructionSet* set = instruction_sets();
    for (;; ++set) {
        const bool wanted = name == nullptr || std::strcmp(name, set->name) == 0;
        if (wanted && set->here) return set;
        if (set->kernels == &generic_kernels) return nullptr;
    }
}

// KDBENCH_ISA in the environment begins with a narrower one, for tests; one that is not here is not obeyed.
std::atomic<const InstructionSet*>& chosen() {
    static std::atomic<const InstructionSet*> set = [] {
        const char* const wish = std::getenv("KDBENCH_ISA");
        const InstructionSet* const wished = wish != nullptr ? find(wish) : nullptr;
        return wished != nullptr ? wished : find(nullptr);
    }();
    return set;
}

double mean_over(double weight, std::int64_t count) { return count > 0 ? weight / double(count) : 0.0; }

double ce_weight(const kd_loss_args& args, std::int64_t valid_rows) {
    if (args.labels == nullptr) return 0;
    return args.flags & KD_CE_MEAN_VALID ? mean_over(args.ce_weight, valid_rows) : args.ce_weight;
}

double kl_weight(const kd_loss_args& args, std::int64_t valid_rows) {
    if (args.teacher_count == 0) return 0;
    const std::int64_t rows = args.flags & KD_KL_VALID_ROWS ? valid_rows : args.rows;
    double weight = args.flags & KD_KL_MEAN_ROWS ? mean_over(args.kl_weight, rows) : args.kl_weight;
    return args.flags & KD_KL_MEAN_CLASSES ? weight / double(args.classes) : weight;
}

kd_status run(const kd_loss_args& args, double* row_loss, int threads, kd_loss_result* result) {
    if (!sensible(args, threads)) return KD_BAD_ARGUMENT;
    std::int64_t valid_rows = 0;
    if (args.labels != nullptr) {
        result->bad_row = check_labels(args, &valid_rows);
        if (result->bad_row >= 0) return KD_BAD_LABEL;
    } else {
        valid_rows = args.rows;
    }
    if (args.indices != nullptr) {
        result->bad_row = check_indices(args);
        if (result->bad_row >= 0) return KD_BAD_INDEX;
    }
    std::vector<double> own_rows(row_loss == nullptr ? std::size_t(args.rows) : 0);
    Call call;
    call.args = &args;
    call.ce_weight = ce_weight(args, valid_rows);
    call.kl_weight = kl_weight(args, valid_rows);
    call.row_loss = row_loss != nullptr ? row_loss : own_rows.data();
    call.threads = threads_for(args.rows, args.classes, threads);
    const std::int64_t bytes = args.rows * args.classes * kElementBytes[args.dtype];
    call.stream = bytes >= kStreamedBytes && args.grad != args.student;
    const kd_status status = chosen().load()->kernels->loss[args.dtype](call);
    if (status != KD_OK) return status;
    for (std::int64_t i = 0; i < args.rows; ++i) result->loss += call.row_loss[i];
    return KD_OK;
}

}  // namespace
}  // namespace kd::cpu

extern "C" kd_status kd_loss_cpu(const kd_loss_args* args, double* row_loss, int threads, kd_loss_result* result) {
    *result = kd_loss_result{0.0, -1};
    try {
        return kd::cpu::run(*args, row_loss, threads, result);
    } catch (const std::bad_alloc&) {
        return KD_NO_MEMORY;
    }
}

extern "C" kd_status kd_log_sum_exp_cpu(const void* logits, int64_t stride, int32_t dtype, int64_t rows,
                                        int64_t classes, double temperature, const double* row_temperature, int threads,
                                        double* lse) {
    using namespace kd::cpu;
    const bool sized = rows >= 0 && classes >= 1 && threads >= 1 && dtype >= KD_FLOAT32 && dtype <= KD_FLOAT16;
    if (!sized || (rows > 0 && (logits == nullptr || lse == nullptr))) return KD_BAD_ARGUMENT;
    const int used = threads_for(rows, classes, threads);
    const LseCall call{logits, stride, rows, classes, temperature, row_temperature, lse, used};
    return chosen().load()->kernels->log_sum_exp[dtype](call);
}

extern "C" const char* kd_cpu_isa(void) { return kd::cpu::chosen().load()->name; }

extern "C" kd_status kd_cpu_force_isa(const char* name) {
    const auto* const set = kd::cpu::find(name);
    if (set == nullptr) return KD_BAD_ARGUMENT;
    kd::cpu::chosen().store(set);
    return KD_OK;
}

extern "C" int kd_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
