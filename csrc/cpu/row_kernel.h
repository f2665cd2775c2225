// One row of logits: loss and gradient while the row is in cache. Included by one source file per instruction set.
//
// Numerics. With d_i = ((t_i - max t) - (s_i - max s)) / T, the "gap", and m = sum_i p_i d_i,
//
//     KL = m - log(Zt / Zs)                                 plain form
//     KL = log1p(sum_i p_i (exp(m - d_i) - 1 - (m - d_i)))  centred form, every term >= 0
//     q_i - p_i = p_i (exp(m - KL - d_i) - 1)
//
// where p = exp(t / T) / Zt is the teacher's and q = exp(s / T) / Zs the student's distribution. The plain form loses
// all digits when the two are close, which is what a high temperature or a well-trained student gives, and the factor
// T^2 then blows the rounding up; the centred form and the last line keep the error relative to the result.
#pragma once

#include "math.h"

namespace {

// What is the same for every row.
struct Problem {
    std::int64_t classes;
    double temperature;
    double ce_weight;
    double kl_weight;
};

// One row's view. teacher is null without a KL term, grad without a gradient; label is -1 without a CE term.
template <class Real>
struct Row {
    const Real* student;
    const Real* teacher;
    Real* grad;
    std::int64_t label;
};

// Space for one row of intermediate values; each thread owns one.
template <class Real>
struct Scratch {
    static constexpr int kArrays = 4;
    Real* hard;    // exp(s - max s)
    Real* soft;    // exp((s - max s) / T)
    Real* target;  // exp((t - max t) / T)
    Real* gap;     // d
};

template <class Real>
inline Real row_max(const Real* x, std::int64_t n) {
    Real peak = -kInfinity<Real>;
#pragma omp simd reduction(max : peak)
    for (std::int64_t i = 0; i < n; ++i) peak = x[i] > peak ? x[i] : peak;
    return peak;
}

// Writes exp((x - peak) * scale) and returns its sum. A row that is all -inf, or holds +inf or NaN, sums to NaN.
template <class Real>
inline double exp_row(const Real* __restrict x, Real peak, Real scale, std::int64_t n, Real* __restrict out) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) {
        const Real e = exp_nonpositive((x[i] - peak) * scale);
        out[i] = e;
        sum += double(e);
    }
    return sum;
}

// Writes the gaps and returns sum_i exp((t_i - max t) / T) d_i.
// A class that the teacher excludes (-inf) contributes 0; one that only the student excludes makes the sum infinite.
template <class Real>
inline double gap_row(const Row<Real>& row, Real student_peak, Real teacher_peak, Real scale, std::int64_t n,
                      const Scratch<Real>& scratch) {
    const Real* __restrict s = row.student;
    const Real* __restrict t = row.teacher;
    const Real* __restrict target = scratch.target;
    Real* __restrict gap = scratch.gap;
    const double offset = double(teacher_peak) - double(student_peak);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) {
        // In double: logits that are close to each other, or far from 0, must not lose their difference.
        const Real d = Real((double(t[i]) - double(s[i])) - offset) * scale;
        gap[i] = d;
        const Real weighted = target[i] * d;
        const Real excluded = s[i] == -kInfinity<Real> ? kInfinity<Real> : weighted;
        sum += double(t[i] == -kInfinity<Real> ? Real(0) : excluded);
    }
    return sum;
}

// The centred form's sum times Zt. Where m - d_i is not small the terms are formed without exp(m - d_i), which may
// overflow: exp((t_i - max t) / T) exp(m - d_i) = exp((s_i - max s) / T) exp(m).
template <class Real>
inline double centred_sum(const Scratch<Real>& scratch, double mean_gap, std::int64_t n) {
    const Real* __restrict soft = scratch.soft;
    const Real* __restrict target = scratch.target;
    const Real* __restrict gap = scratch.gap;
    const Real mean = Real(mean_gap);
    const Real growth = Real(std::exp(mean_gap));
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) {
        const Real x = mean - gap[i];
        const Real product = target[i] * x;
        const Real weighted = target[i] == Real(0) ? Real(0) : product;  // 0 log 0 = 0
        const Real near = target[i] * exp_remainder(x);
        const Real far = soft[i] * growth - target[i] - weighted;
        sum += double(is_small(x) ? near : far);
    }
    return sum;
}

template <class Real>
inline void soft_gradient(const Scratch<Real>& scratch, double student_sum, double teacher_sum, double shift,
                          double weight, std::int64_t n, Real* __restrict grad) {
    const Real* __restrict soft = scratch.soft;
    const Real* __restrict target = scratch.target;
    const Real* __restrict gap = scratch.gap;
    const Real per_student = Real(1 / student_sum);
    const Real per_teacher = Real(1 / teacher_sum);
    const Real offset = Real(shift);
    const Real c = Real(weight);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
        const Real q = soft[i] * per_student;
        const Real p = target[i] * per_teacher;
        const Real u = offset - gap[i];
        const Real near = p * (u + exp_remainder(u));
        const Real far = q - p;
        // c * (q - p), never c*q - c*p: equal logits must give exactly 0.
        grad[i] = c * (is_small(u) ? near : far);
    }
}

// Adds weight * (softmax(s) - onehot(label)) to grad, or sets grad to it.
template <class Real>
inline void hard_gradient(const Real* __restrict hard, double sum, double weight, std::int64_t label, bool add,
                          std::int64_t n, Real* __restrict grad) {
    const Real scale = Real(weight / sum);
    // The label's own entry is -(1 - q_y): taken from the double sum it keeps its digits when q_y is nearly 1.
    const Real own = (add ? grad[label] : Real(0)) - Real(weight * ((sum - double(hard[label])) / sum));
    if (add) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) grad[i] += hard[i] * scale;
    } else {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) grad[i] = hard[i] * scale;
    }
    grad[label] = own;
}

// KL of one row, and its gradient if the row has a place for it.
template <class Real>
inline double soft_term(const Problem& problem, const Row<Real>& row, Real student_peak, double student_sum,
                        const Scratch<Real>& scratch) {
    // From here the centred form is the more accurate one; above, the plain form has digits to spare.
    constexpr double kCentredBelow = 0.125;
    const std::int64_t n = problem.classes;
    const Real scale = Real(1 / problem.temperature);
    const Real teacher_peak = row_max(row.teacher, n);
    const double teacher_sum = exp_row(row.teacher, teacher_peak, scale, n, scratch.target);
    const double mean_gap = gap_row(row, student_peak, teacher_peak, scale, n, scratch) / teacher_sum;
    double kl = mean_gap - std::log(teacher_sum / student_sum);
    if (kl < kCentredBelow) kl = std::log1p(centred_sum(scratch, mean_gap, n) / teacher_sum);
    if (row.grad != nullptr) {
        soft_gradient(scratch, student_sum, teacher_sum, mean_gap - kl, problem.kl_weight / problem.temperature, n,
                      row.grad);
    }
    return kl;
}

// Weighted loss of one row; fills row.grad if it is there.
template <class Real>
inline double row_loss(const Problem& problem, const Row<Real>& row, const Scratch<Real>& scratch) {
    const std::int64_t n = problem.classes;
    const bool with_soft = row.teacher != nullptr;
    const bool with_hard = row.label >= 0;
    if (!with_soft && !with_hard) {
        if (row.grad != nullptr) {
            for (std::int64_t i = 0; i < n; ++i) row.grad[i] = Real(0);
        }
        return 0.0;
    }
    const Real peak = row_max(row.student, n);
    const bool shared = with_soft && problem.temperature == 1.0;
    double loss = 0.0;
    double soft_sum = 0.0;
    if (with_soft) {
        soft_sum = exp_row(row.student, peak, Real(1 / problem.temperature), n, scratch.soft);
        loss += problem.kl_weight * soft_term(problem, row, peak, soft_sum, scratch);
    }
    if (with_hard) {
        const Real* hard = shared ? scratch.soft : scratch.hard;
        const double sum = shared ? soft_sum : exp_row(row.student, peak, Real(1), n, scratch.hard);
        loss += problem.ce_weight * (std::log(sum) - double(row.student[row.label] - peak));
        if (row.grad != nullptr) hard_gradient(hard, sum, problem.ce_weight, row.label, with_soft, n, row.grad);
    }
    return loss;
}

}  // namespace
