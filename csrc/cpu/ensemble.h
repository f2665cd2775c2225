// Several teachers as one: the row of logits whose softmax at T is the mean of theirs.
#pragma once

#include "exact_row.h"
#include "kd/api.h"

namespace {

// Space for one row; each thread owns one.
template <class Real>
struct EnsembleScratch {
    static constexpr int kArrays = 3;
    Real* mixture;  // the result
    Real* top;      // max_k log p_k
    Real* mass;     // sum_k w_k exp(log p_k - top)
};

template <class Real>
struct Ensemble {
    std::int64_t count;
    std::int64_t classes;
    double temperature;
    const double* weights;
    double lse[KD_MAX_TEACHERS];
};

// log sum_c exp(x_c / T).
template <class Element, class Real>
inline double row_log_sum_exp(const Element* x, double temperature, std::int64_t n, Real*) {
    Real peak = -kInfinity<Real>;
    for (std::int64_t i = 0; i < n; ++i) peak = larger(Real(widen(x[i])), peak);
    const Real scale = Real(1 / temperature);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) sum += double(exp_nonpositive((Real(widen(x[i])) - peak) * scale));
    return double(peak) / temperature + std::log(sum);
}

// 0 - where both are -inf: a class that every teacher excludes must stay excluded and not become NaN.
template <class Real>
inline Real below(Real x, Real top) {
    return top == -kInfinity<Real> ? Real(0) : x - top;
}

// Fills scratch.mixture with T log sum_k w_k p_k.
template <class Element, class Real>
inline void mix(Ensemble<Real>& e, const Element* const* teachers, const EnsembleScratch<Real>& scratch) {
    Real* __restrict top = scratch.top;
    Real* __restrict mass = scratch.mass;
    fill(top, top + e.classes, -kInfinity<Real>);
    fill(mass, mass + e.classes, Real(0));
    for (std::int64_t k = 0; k < e.count; ++k) {
        e.lse[k] = row_log_sum_exp(teachers[k], e.temperature, e.classes, top);
        const Element* const t = teachers[k];
        const double lse = e.lse[k];
#pragma omp simd
        for (std::int64_t i = 0; i < e.classes; ++i) {
            const Real log_p = Real(double(widen(t[i])) / e.temperature - lse);
            top[i] = log_p > top[i] || log_p != log_p ? log_p : top[i];
        }
    }
    for (std::int64_t k = 0; k < e.count; ++k) {
        const Element* const t = teachers[k];
        const double lse = e.lse[k];
        const Real weight = Real(e.weights[k]);
#pragma omp simd
        for (std::int64_t i = 0; i < e.classes; ++i) {
            const Real log_p = Real(double(widen(t[i])) / e.temperature - lse);
            mass[i] += weight * exp_nonpositive(below(log_p, top[i]));
        }
    }
    for (std::int64_t i = 0; i < e.classes; ++i) {
        scratch.mixture[i] = Real(e.temperature) * (top[i] + log_positive(mass[i]));
    }
}

// sum_k w_k KL(p_k || sum_j w_j p_j): what the mean of the teachers' losses has over the loss of their mean. It does
// not depend on the student, so both have the same gradient.
template <class Element, class Real>
inline double disagreement(const Ensemble<Real>& e, const Element* const* teachers,
                           const EnsembleScratch<Real>& scratch) {
    double total = 0;
    for (std::int64_t k = 0; k < e.count; ++k) {
        double sum = 0;
        for (std::int64_t i = 0; i < e.classes; ++i) {
            const Real log_p = Real(double(widen(teachers[k][i])) / e.temperature - e.lse[k]);
            if (log_p == -kInfinity<Real>) continue;
            const Real log_mixture = scratch.top[i] + log_positive(scratch.mass[i]);
            sum += double(exp_nonpositive(smaller(log_p, Real(0)))) * (double(log_p) - double(log_mixture));
        }
        total += e.weights[k] * sum;
    }
    return total;
}

}  // namespace
