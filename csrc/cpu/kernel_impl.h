// The loop over rows and what is done with each, as templates. A source file includes one simd_*.h and then this, and
// is compiled for one instruction set.
#pragma once

#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "loss.h"
#include "near_row.h"
#include "space.h"
#include "sparse.h"
#include "tiny_row.h"

namespace {

// Rows of one call.
template <class Element>
class Rows {
  public:
    using Real = RealOf<Element>;
    static constexpr bool kFast = !std::is_same_v<Element, double>;

    Rows(const kd::cpu::Call& call, const Space<Element>& space) : call_(call), args_(*call.args), space_(space) {}

    // Losses of rows [begin, end).
    void losses(std::int64_t begin, std::int64_t end, double* out) const {
        if constexpr (kFast) {
            if (all_tiny()) return tiny_losses(begin, end, out);
        }
        for (std::int64_t i = begin; i < end; ++i) out[i] = loss(i);
    }

    double loss(std::int64_t i) const {
        const RowOptions row = options_at(call_, i);
        if (row.kl_weight == 0) return row.label < 0 ? nothing(i) : hard_only(row);
        if (args_.indices != nullptr) return sparse(row);
        if (args_.teacher_count > 1) return ensemble(row);
        const Element* const teacher = teacher_row(0, i);
        if constexpr (kFast) {
            double loss;
            if (fast_pair(row, teacher, teacher_row(0, next(i)), lse_of(i), &loss)) return loss;
        }
        return exact(row, as_real(teacher, space_.teacher));
    }

  private:
    const Element* student_row(std::int64_t i) const {
        return static_cast<const Element*>(args_.student) + i * args_.student_stride;
    }
    const Element* teacher_row(int k, std::int64_t i) const {
        return static_cast<const Element*>(args_.teachers[k]) + i * args_.teacher_strides[k];
    }
    Element* grad_row(std::int64_t i) const {
        return args_.grad == nullptr ? nullptr : static_cast<Element*>(args_.grad) + i * args_.grad_stride;
    }
    const double* lse_of(std::int64_t i) const { return args_.teacher_lse == nullptr ? nullptr : args_.teacher_lse + i; }
    std::int64_t next(std::int64_t i) const { return smaller(i + 1, args_.rows - 1); }

    // Whether every row fits one vector and has one dense teacher at one temperature.
    bool all_tiny() const {
        return args_.classes > 1 && args_.classes <= kLanes && args_.teacher_count == 1 && args_.indices == nullptr &&
               args_.teacher_lse == nullptr && args_.row_temperature == nullptr && call_.kl_weight != 0;
    }

    void tiny_losses(std::int64_t begin, std::int64_t end, double* out) const {
        const bool hard = args_.labels != nullptr && call_.ce_weight != 0;
        switch (hard ? hard_term(args_.temperature) : int(kNoHard)) {
            case 0: return tiny_losses_as<0>(begin, end, out);
            case 1: return tiny_losses_as<1>(begin, end, out);
            case 2: return tiny_losses_as<2>(begin, end, out);
            case 3: return tiny_losses_as<3>(begin, end, out);
            case 4: return tiny_losses_as<4>(begin, end, out);
            default: return tiny_losses_as<kOwnExponential>(begin, end, out);
        }
    }

    template <int kHard>
    void tiny_losses_as(std::int64_t begin, std::int64_t end, double* out) const {
        TinyGroup<kHard, Element, Element> group(int(args_.classes), args_.temperature, args_.grad_scale);
        for (std::int64_t b = begin; b < end; b += kGroup) {
            TinyRow<Element, Element> rows[kGroup];
            const int count = int(smaller<std::int64_t>(kGroup, end - b));
            bool plain[kGroup];
            for (int k = 0; k < count; ++k) {
                const RowOptions row = options_at(call_, b + k);
                plain[k] = row.kl_weight != 0 && (row.label < 0 || row.label_share == 1);
                rows[k] = {student_row(b + k), teacher_row(0, b + k), plain[k] ? grad_row(b + k) : nullptr,
                           row.label,          row.ce_weight,         row.kl_weight,
                           0,                  false};
            }
            group.run(rows, count);
            for (int k = 0; k < count; ++k) out[b + k] = rows[k].done && plain[k] ? rows[k].loss : loss(b + k);
        }
    }

    // The row itself, or a widened copy in `space`.
    const Real* as_real(const Element* row, Real* space) const {
        if constexpr (std::is_same_v<Element, Real>) {
            (void)space;
            return row;
        } else {
            for (std::int64_t i = 0; i < args_.classes; ++i) space[i] = widen(row[i]);
            return space;
        }
    }

    double nothing(std::int64_t i) const {
        Element* const grad = grad_row(i);
        if (grad != nullptr) fill(grad, grad + args_.classes, Element{});
        return 0;
    }

    template <class Teacher>
    FastRow<Element, Teacher> fast_row(const RowOptions& row, const Teacher* teacher, const Teacher* next_teacher) const {
        FastRow<Element, Teacher> view;
        view.student = student_row(row.index);
        view.teacher = teacher;
        view.grad = grad_row(row.index);
        view.next_student = student_row(next(row.index));
        view.next_teacher = next_teacher;
        view.classes = args_.classes;
        view.label = row.label;
        view.temperature = row.temperature;
        view.teacher_lse = nullptr;
        view.stream = call_.stream || view.grad == nullptr;
        return view;
    }

    // Loss of a dense teacher, or false where this row needs the exact way.
    template <class Teacher>
    bool fast_pair(const RowOptions& row, const Teacher* teacher, const Teacher* next_teacher, const double* lse,
                   double* loss) const {
        if (args_.classes == 1 || (row.label >= 0 && row.label_share != 1)) return false;
        FastRow<Element, Teacher> view = fast_row(row, teacher, next_teacher);
        view.teacher_lse = lse;
        switch (row.label < 0 ? int(kNoHard) : hard_term(row.temperature)) {
            case 0: return fast_pair_as<0>(row, view, loss);
            case 1: return fast_pair_as<1>(row, view, loss);
            case 2: return fast_pair_as<2>(row, view, loss);
            case 3: return fast_pair_as<3>(row, view, loss);
            case 4: return fast_pair_as<4>(row, view, loss);
            default: return fast_pair_as<kOwnExponential>(row, view, loss);
        }
    }

    template <int kHard, class Teacher>
    bool fast_pair_as(const RowOptions& row, const FastRow<Element, Teacher>& view, double* loss) const {
        using Pass = FastPass<Element, Teacher, kHard, true, true, false>;
        Pass pass(view, space_.fast);
        const RowSums& sums = pass.sums();
        double kl = sums.gap / sums.target * kLn2 - std::log(sums.target / sums.soft);
        if (!(kl < kInfinity<double>)) return false;
        *loss = 0;
        TermWeights weights;
        weights.soft = weights.target = args_.grad_scale * row.kl_weight / row.temperature;
        if constexpr (kHard != kNoHard) {
            const double ce = pass.cross_entropy();
            if (!(ce < kInfinity<double>)) return false;
            *loss = row.ce_weight * ce;
            weights.hard = args_.grad_scale * row.ce_weight;
        }
        if (is_near(kl, sums.target)) {
            const NearPass<Pass, Element, Teacher> near(pass, sums, view, space_.fast);
            const NearResult result = near.divergence();
            if (view.grad != nullptr) near.gradient(result, weights);
            kl = result.divergence;
        } else if (view.grad != nullptr) {
            pass.gradient(weights);
        }
        *loss += row.kl_weight * kl;
        return true;
    }

    double hard_only(const RowOptions& row) const {
        if constexpr (kFast) {
            double loss;
            if (row.label_share == 1 ? fast_hard<false>(row, &loss) : fast_hard<true>(row, &loss)) return loss;
        }
        return exact(row, static_cast<const Real*>(nullptr));
    }

    template <bool kSmooth>
    bool fast_hard(RowOptions row, double* loss) const {
        row.temperature = 1;  // of the hard term
        const FastRow<Element, Element> view = fast_row<Element>(row, nullptr, nullptr);
        FastPass<Element, Element, 1, false, false, kSmooth> pass(view, space_.fast);
        const RowSums& sums = pass.sums();
        double ce = pass.cross_entropy();
        TermWeights weights;
        weights.hard = args_.grad_scale * row.ce_weight;
        if constexpr (kSmooth) {
            // b (l - z_y) + r sum_{c != y} (l - z_c), with l - z_y = ce
            const double others = double(args_.classes - 1);
            const double rest = (1 - row.label_share) / others;
            const double log_sum = ce + pass.hard_exponent_of_label() * kLn2;
            ce = row.label_share * ce + rest * (others * log_sum - sums.exponents * kLn2);
            weights.level = weights.hard * rest;
            weights.label = weights.hard * (1 - row.label_share);
        }
        if (!(ce < kInfinity<double>)) return false;
        *loss = row.ce_weight * ce;
        if (view.grad != nullptr) pass.gradient(weights);
        return true;
    }

    double ensemble(const RowOptions& row) const {
        const Element* teachers[KD_MAX_TEACHERS];
        for (int k = 0; k < args_.teacher_count; ++k) teachers[k] = teacher_row(k, row.index);
        Ensemble<Real> e{args_.teacher_count, args_.classes, row.temperature, args_.teacher_weights, {}};
        mix(e, teachers, space_.ensemble);
        double extra = 0;
        if (args_.flags & KD_MEAN_OF_LOSSES) extra = row.kl_weight * disagreement(e, teachers, space_.ensemble);
        const Real* const mixture = space_.ensemble.mixture;
        if constexpr (kFast) {
            double loss;
            if (fast_pair(row, mixture, mixture, nullptr, &loss)) return loss + extra;
        }
        return exact(row, mixture) + extra;
    }

    double sparse(const RowOptions& row) const {
        SparseTeacher<Element> teacher;
        teacher.logits = teacher_row(0, row.index);
        teacher.indices = args_.indices;
        teacher.first = row.index * args_.listed;
        teacher.index_dtype = args_.index_dtype;
        teacher.listed = args_.listed;
        teacher.tail = args_.tail;
        teacher.temperature = row.temperature;
        teacher.lse = args_.teacher_lse != nullptr ? args_.teacher_lse[row.index] : 0.0;
        if constexpr (kFast) {
            double loss;
            bool done = false;  // one class carries nothing, to the last bit: that is the exact way's
            switch (args_.classes == 1 ? -1 : row.label < 0 ? int(kNoHard) : hard_term(row.temperature)) {
                case -1: break;
                case 0: done = fast_sparse<0>(row, teacher, &loss); break;
                case 1: done = fast_sparse<1>(row, teacher, &loss); break;
                case 2: done = fast_sparse<2>(row, teacher, &loss); break;
                case 3: done = fast_sparse<3>(row, teacher, &loss); break;
                case 4: done = fast_sparse<4>(row, teacher, &loss); break;
                default: done = fast_sparse<kOwnExponential>(row, teacher, &loss);
            }
            if (done) return loss;
        }
        const ExactRow<Real> view = exact_row(row, nullptr);
        const double loss = exact_sparse_loss(view, teacher, space_.probabilities, space_.exact);
        narrow_grad(row.index);
        return loss;
    }

    template <int kHard>
    bool fast_sparse(const RowOptions& row, const SparseTeacher<Element>& teacher, double* loss) const {
        const FastRow<Element, Element> view = fast_row<Element>(row, nullptr, nullptr);
        FastPass<Element, Element, kHard, true, false, false> pass(view, space_.fast);
        const RowSums& sums = pass.sums();
        const double log_sum = std::log(sums.soft);
        if (!(log_sum < kInfinity<double>)) return false;
        const auto log_q = [&](std::int64_t c) {
            return sums.student.exponent(widen(view.student[c])) * kLn2 - log_sum;
        };
        double rest = 1;
        const auto log_rest_q = [&] {
            rest = sum_of_others(teacher, space_.fast.soft, space_.kept, [&] { return pass.soft_mass(); });
            return std::log(rest);
        };
        const SparseTerms terms = sparse_terms(teacher, args_.classes, space_.probabilities, log_q, log_rest_q);
        if (rest < 1e-25) return false;  // too close to where single precision ends
        *loss = row.kl_weight * terms.loss;
        const double weight = args_.grad_scale * row.kl_weight / row.temperature;
        TermWeights weights;
        if constexpr (kHard != kNoHard) {
            *loss += row.ce_weight * pass.cross_entropy();
            weights.hard = args_.grad_scale * row.ce_weight;
        }
        if (!(*loss < kInfinity<double>)) return false;
        if (view.grad == nullptr) return true;
        weights.soft = weight * terms.outside;
        pass.gradient(weights);
        weights.soft = weight * terms.inside;
        for (std::int64_t k = 0; k < teacher.listed; ++k) {
            const std::int64_t c = teacher.at(k);
            narrow(float(pass.at(c, weights) - weight * space_.probabilities[k]), view.grad + c);
        }
        return true;
    }

    ExactRow<Real> exact_row(const RowOptions& row, const Real* teacher) const {
        ExactRow<Real> view;
        view.student = as_real(student_row(row.index), space_.student);
        view.teacher = teacher;
        if constexpr (std::is_same_v<Element, Real>) {
            view.grad = grad_row(row.index);
        } else {
            view.grad = args_.grad == nullptr ? nullptr : space_.grad;
        }
        view.classes = args_.classes;
        view.label = row.label;
        view.temperature = row.temperature;
        view.ce_weight = row.ce_weight;
        view.kl_weight = row.kl_weight;
        view.label_share = row.label_share;
        view.grad_scale = args_.grad_scale;
        return view;
    }

    void narrow_grad(std::int64_t i) const {
        if constexpr (!std::is_same_v<Element, Real>) {
            Element* const grad = grad_row(i);
            if (grad == nullptr) return;
            for (std::int64_t c = 0; c < args_.classes; ++c) narrow(space_.grad[c], grad + c);
        } else {
            (void)i;
        }
    }

    double exact(const RowOptions& row, const Real* teacher) const {
        const double loss = exact_loss(exact_row(row, teacher), space_.exact);
        narrow_grad(row.index);
        return loss;
    }

    const kd::cpu::Call& call_;
    const kd_loss_args& args_;
    const Space<Element>& space_;
};

inline std::int64_t thread_index() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// How many threads there are; a system may grant fewer than were asked for.
inline std::int64_t team_size() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

// Each row is computed whole by one thread and its loss goes to its own place, so that the result cannot depend on
// how many threads there are. Space is claimed before they start: an exception must not leave a parallel region.
template <class Element>
kd_status run_rows(const kd::cpu::Call& call) {
    const std::size_t bytes = (Space<Element>::bytes(*call.args) + 4095) / 4096 * 4096;
    static thread_local Kept kept;
    char* const memory = kept.at_least(std::size_t(call.threads) * bytes);
    if (memory == nullptr) return KD_NO_MEMORY;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        Space<Element> space;
        space.place(memory + std::size_t(thread_index()) * bytes, *call.args);
        Rows<Element> rows(call, space);
        const std::int64_t share = (call.args->rows + team_size() - 1) / team_size();
        const std::int64_t begin = smaller(thread_index() * share, call.args->rows);
        rows.losses(begin, smaller(begin + share, call.args->rows), call.row_loss);
        if (call.stream) stream_fence();
    }
    return KD_OK;
}

template <class Element>
kd_status run_log_sum_exp(const kd::cpu::LseCall& call) {
#pragma omp parallel for num_threads(call.threads) if (call.threads > 1) schedule(static)
    for (std::int64_t i = 0; i < call.rows; ++i) {
        const double temperature = call.row_temperature != nullptr ? call.row_temperature[i] : call.temperature;
        const Element* const row = static_cast<const Element*>(call.logits) + i * call.stride;
        call.lse[i] = row_log_sum_exp(row, temperature, call.classes, static_cast<RealOf<Element>*>(nullptr));
    }
    return KD_OK;
}

}  // namespace

// The table of this instruction set, in the order of kd_dtype.
#define KD_KERNEL_TABLE                                                                            \
    {                                                                                              \
        {run_rows<float>, run_rows<double>, run_rows<Bfloat16>, run_rows<Float16>}, {              \
            run_log_sum_exp<float>, run_log_sum_exp<double>, run_log_sum_exp<Bfloat16>,            \
                run_log_sum_exp<Float16>                                                           \
        }                                                                                          \
    }
