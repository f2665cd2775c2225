// A teacher that lists some classes only: its probabilities, the loss, and what the gradient is made of.
#pragma once

#include "exact_row.h"
#include "loss.h"

namespace {

template <class Element>
struct SparseTeacher {
    const Element* logits;  // [listed]
    const void* indices;
    std::int64_t first;  // of this row, in indices
    std::int32_t index_dtype;
    std::int64_t listed;
    std::int32_t tail;
    double temperature;
    double lse;  // over all classes; unused to renormalise

    std::int64_t at(std::int64_t k) const { return kd::cpu::index_at(indices, index_dtype, first + k); }
};

// dL/ds_c = inside * q_c - p_c for listed classes and outside * q_c for others, times the weight over T.
struct SparseTerms {
    double loss;
    double inside;
    double outside;
    double rest;  // the teacher's probability of all others (bucket)
};

// Fills p with the teacher's probabilities of the listed classes.
template <class Element>
inline void listed_probabilities(const SparseTeacher<Element>& teacher, double* p) {
    double lse = teacher.lse;
    if (teacher.tail == KD_TAIL_RENORMALISE) {
        double peak = -kInfinity<double>;
        for (std::int64_t k = 0; k < teacher.listed; ++k) peak = larger(double(widen(teacher.logits[k])), peak);
        double sum = 0;
        for (std::int64_t k = 0; k < teacher.listed; ++k) {
            sum += std::exp((double(widen(teacher.logits[k])) - peak) / teacher.temperature);
        }
        lse = peak / teacher.temperature + std::log(sum);
    }
    for (std::int64_t k = 0; k < teacher.listed; ++k) {
        p[k] = std::exp(double(widen(teacher.logits[k])) / teacher.temperature - lse);
    }
}

// log_q(c): the student's log-probability of class c at the temperature. log_rest_q(): that of all classes that are not
// listed, summed over them (1 - the others would lose its digits).
template <class Element, class LogQ, class LogRestQ>
inline SparseTerms sparse_terms(const SparseTeacher<Element>& teacher, std::int64_t classes, double* p, LogQ log_q,
                                LogRestQ log_rest_q) {
    listed_probabilities(teacher, p);
    double loss = 0, mass = 0;
    for (std::int64_t k = 0; k < teacher.listed; ++k) {
        const double lq = log_q(teacher.at(k));
        mass += p[k];
        // From the logit where there is one: p may have underflowed, and an excluded class is not an error.
        if (widen(teacher.logits[k]) == -kInfinity<float> && p[k] == 0) continue;  // NaN: all of them are excluded
        const bool excluded = lq == -kInfinity<double> && p[k] == p[k];
        loss += excluded ? kInfinity<double> : p[k] == 0 ? 0.0 : p[k] * (std::log(p[k]) - lq);
    }
    SparseTerms terms{loss, 1.0, 1.0, 0.0};
    if (teacher.tail == KD_TAIL_UNNORMALISED) {
        terms.inside = terms.outside = mass;
    } else if (teacher.tail == KD_TAIL_BUCKET && teacher.listed < classes) {
        terms.rest = larger(1 - mass, 0.0);
        const double log_rest = log_rest_q();
        if (terms.rest > 0) {
            terms.loss += terms.rest * (std::log(terms.rest) - log_rest);
            terms.outside = 1 - terms.rest / std::exp(log_rest);
        }
    }
    if (loss != loss) terms.inside = terms.outside = loss;  // a NaN row is NaN in every class
    return terms;
}

// What `sum` finds while the listed entries of e are 0. `kept` is space for them.
template <class Element, class Sum>
inline double sum_of_others(const SparseTeacher<Element>& teacher, float* e, double* kept, Sum sum) {
    for (std::int64_t k = 0; k < teacher.listed; ++k) {
        kept[k] = double(e[teacher.at(k)]);
        e[teacher.at(k)] = 0.0f;
    }
    const double others = sum();
    for (std::int64_t k = 0; k < teacher.listed; ++k) e[teacher.at(k)] = float(kept[k]);
    return others;
}

// The student's distribution over the classes that are not listed: exp((s - peak) / T), 0 where listed, into `others`,
// and its sum. Relative to its own peak, since all of it may be far below the row's.
template <class Real, class Element>
inline double others_alone(const ExactRow<Real>& row, const SparseTeacher<Element>& teacher, Real* others, Real* peak) {
    for (std::int64_t i = 0; i < row.classes; ++i) others[i] = row.student[i];
    for (std::int64_t k = 0; k < teacher.listed; ++k) others[teacher.at(k)] = -kInfinity<Real>;
    *peak = row_max(others, row.classes);
    if (*peak == -kInfinity<Real>) {
        fill(others, others + row.classes, Real(0));
        return 0;
    }
    const Real scale = Real(1 / row.temperature);
    double sum = 0;
    for (std::int64_t i = 0; i < row.classes; ++i) {
        others[i] = exp_nonpositive((others[i] - *peak) * scale);
        sum += double(others[i]);
    }
    return sum;
}

// The row in Real arithmetic, masks and all. `probabilities` is space for the listed classes.
template <class Real, class Element>
inline double exact_sparse_loss(const ExactRow<Real>& row, const SparseTeacher<Element>& teacher, double* probabilities,
                                const ExactScratch<Real>& scratch) {
    const std::int64_t n = row.classes;
    const Real peak = row_max(row.student, n);
    const double sum = exp_row(row.student, peak, Real(1 / row.temperature), n, scratch.soft);
    const double log_sum = std::log(sum) + double(peak) / row.temperature;
    const auto log_q = [&](std::int64_t c) { return double(row.student[c]) / row.temperature - log_sum; };
    double others_sum = 0;
    const auto log_rest_q = [&] {
        Real others_peak;
        others_sum = others_alone(row, teacher, scratch.gap, &others_peak);
        return std::log(others_sum) + (others_sum == 0 ? 0.0 : double(others_peak) / row.temperature - log_sum);
    };
    const SparseTerms terms = sparse_terms(teacher, n, probabilities, log_q, log_rest_q);
    double loss = row.kl_weight * terms.loss;
    double hard_sum = 0;
    if (row.label >= 0) {
        hard_sum = exp_row(row.student, peak, Real(1), n, scratch.hard);
        loss += row.ce_weight * hard_loss(row, peak, hard_sum, 1.0, 0.0);
    }
    if (row.grad == nullptr) return loss;
    const double weight = row.grad_scale * row.kl_weight / row.temperature;
    if (terms.rest > 0) {  // q - r q / r_q, where both q and r_q may have underflowed
        const Real per_q = Real(weight / sum), per_rest = Real(others_sum > 0 ? weight * terms.rest / others_sum : 0);
        for (std::int64_t i = 0; i < n; ++i) row.grad[i] = scratch.soft[i] * per_q - scratch.gap[i] * per_rest;
    } else {
        const Real outside = Real(weight * terms.outside / sum);
        for (std::int64_t i = 0; i < n; ++i) row.grad[i] = scratch.soft[i] * outside;
    }
    for (std::int64_t k = 0; k < teacher.listed; ++k) {
        const std::int64_t c = teacher.at(k);
        row.grad[c] = Real(weight * (terms.inside * (double(scratch.soft[c]) / sum) - probabilities[k]));
    }
    if (row.label >= 0) {
        hard_gradient(scratch.hard, hard_sum, row.grad_scale * row.ce_weight, row.label, 1.0, 0.0, n, row.grad);
    }
    return loss;
}

}  // namespace
