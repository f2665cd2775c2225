// What a row asks for, and the memory that a thread works in.
#pragma once

#include <cstdlib>
#include <type_traits>

#include "ensemble.h"
#include "exact_row.h"
#include "fast_row.h"
#include "loss.h"

namespace {

template <class Element>
using RealOf = std::conditional_t<std::is_same_v<Element, double>, double, float>;

// What a row asks for, apart from its logits.
struct RowOptions {
    std::int64_t index;
    std::int64_t label;  // -1: no hard term
    double temperature;
    double ce_weight;
    double kl_weight;
    double label_share;
};

inline RowOptions options_at(const kd::cpu::Call& call, std::int64_t i) {
    const kd_loss_args& a = *call.args;
    const auto factor = [i](const double* rows, double one) { return rows != nullptr ? rows[i] : one; };
    RowOptions row;
    row.index = i;
    row.temperature = factor(a.row_temperature, a.temperature);
    row.ce_weight = call.ce_weight == 0 ? 0 : call.ce_weight * factor(a.row_ce_weight, 1.0);
    row.kl_weight = call.kl_weight == 0 ? 0 : call.kl_weight * factor(a.row_kl_weight, 1.0);
    row.label_share = a.classes == 1 ? 1.0 : factor(a.row_label_share, a.label_share);
    row.label = a.labels != nullptr ? kd::cpu::index_at(a.labels, a.label_dtype, i) : -1;
    const bool ignored = a.labels != nullptr && row.label == a.ignore_index;
    if (ignored && (a.flags & KD_KL_VALID_ROWS) != 0) row.kl_weight = 0;
    if (ignored || row.ce_weight == 0) row.label = -1;
    return row;
}

// One thread's space. `Real` arrays are of whole rows, padded so that vectors may overlap the end.
template <class Element>
struct Space {
    using Real = RealOf<Element>;
    FastScratch fast;
    ExactScratch<Real> exact;
    EnsembleScratch<Real> ensemble;
    Real* student;  // a widened copy, for element types that are not Real
    Real* teacher;
    Real* grad;
    double* probabilities;  // of the classes that a sparse teacher lists
    double* kept;

    static std::size_t bytes(const kd_loss_args& args) { return lay_out(nullptr, args, nullptr); }
    void place(char* memory, const kd_loss_args& args) { lay_out(memory, args, this); }

  private:
    static std::size_t lay_out(char* memory, const kd_loss_args& args, Space* space) {
        std::size_t used = 0;
        const auto take = [&](auto** where, std::int64_t count) {
            using Item = std::remove_reference_t<decltype(**where)>;
            if (space != nullptr) *where = reinterpret_cast<Item*>(memory + used);
            used += (std::size_t(count) * sizeof(Item) + 63) / 64 * 64;
        };
        Space unused;
        Space& s = space != nullptr ? *space : unused;
        const std::int64_t row = args.classes + kLanes;
        take(&s.fast.soft, row), take(&s.fast.target, row), take(&s.fast.hard, row), take(&s.fast.gap, row);
        take(&s.fast.blocks, (args.classes + kBlock - 1) / kBlock);
        take(&s.exact.hard, row), take(&s.exact.soft, row), take(&s.exact.target, row), take(&s.exact.gap, row);
        take(&s.ensemble.mixture, row), take(&s.ensemble.top, row), take(&s.ensemble.mass, row);
        take(&s.student, row), take(&s.teacher, row), take(&s.grad, row);
        take(&s.probabilities, larger<std::int64_t>(args.listed, 1)), take(&s.kept, larger<std::int64_t>(args.listed, 1));
        return used;
    }
};

// Space that the calling thread keeps from call to call: small losses come by the thousand.
class Kept {
  public:
    ~Kept() { std::free(memory_); }

    char* at_least(std::size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = static_cast<char*>(std::aligned_alloc(4096, bytes));
            size_ = memory_ != nullptr ? bytes : 0;
        }
        return memory_;
    }

  private:
    char* memory_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace
