// One row with all its digits, in float or double: the double path, and the rows that fast_row.h cannot do.
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

#include "exact_math.h"

namespace {

// Below this divergence the centred form is needed in single precision; above, the plain form has digits to spare.
constexpr double kNear = 0.03;

// One row as numbers of one type. teacher is null without a KL term, grad without a gradient; label is -1 without a
// CE term. grad may be the student's own memory.
template <class Real>
struct ExactRow {
    const Real* student;
    const Real* teacher;
    Real* grad;
    std::int64_t classes;
    std::int64_t label;
    double temperature;
    double ce_weight;
    double kl_weight;
    double label_share;
    double grad_scale;
};

// Space for one row of intermediate values; each thread owns one.
template <class Real>
struct ExactScratch {
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
inline double gap_row(const ExactRow<Real>& row, Real student_peak, Real teacher_peak, Real scale,
                      const ExactScratch<Real>& scratch) {
    const Real* __restrict s = row.student;
    const Real* __restrict t = row.teacher;
    const Real* __restrict target = scratch.target;
    Real* __restrict gap = scratch.gap;
    const double offset = double(teacher_peak) - double(student_peak);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < row.classes; ++i) {
        // In double: logits that are close to each other, or far from 0, must not lose their difference.
        const Real d = Real((double(t[i]) - double(s[i])) - offset) * scale;
        gap[i] = d;
        const Real product = target[i] * d;
        const Real weighted = target[i] == Real(0) ? Real(0) : product;  // d may have overflowed: masks of -3e38
        const Real excluded = s[i] == -kInfinity<Real> ? kInfinity<Real> : weighted;
        sum += double(t[i] == -kInfinity<Real> ? Real(0) : excluded);
    }
    return sum;
}

// The centred form's sum times Zt. Where m - d_i is not small the terms are formed without exp(m - d_i), which may
// overflow: exp((t_i - max t) / T) exp(m - d_i) = exp((s_i - max s) / T) exp(m).
template <class Real>
inline double centred_sum(const ExactScratch<Real>& scratch, double mean_gap, std::int64_t n) {
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
inline void soft_gradient(const ExactScratch<Real>& scratch, double student_sum, double teacher_sum, double shift,
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

// Adds weight * (softmax(s) - target) to grad, where the target is `share` at the label and `rest` elsewhere.
template <class Real>
inline void hard_gradient(const Real* __restrict hard, double sum, double weight, std::int64_t label, double share,
                          double rest, std::int64_t n, Real* __restrict grad) {
    const Real scale = Real(weight / sum);
    const Real level = Real(weight * rest);
    // The label's own entry is -(1 - q_y) + (1 - share): from the double sum it keeps its digits when q_y is nearly 1.
    const Real own = grad[label] + Real(weight * ((1 - share) - (sum - double(hard[label])) / sum));
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) grad[i] += hard[i] * scale - level;
    grad[label] = own;
}

// KL of one row, and its gradient if the row has a place for it.
template <class Real>
inline double soft_term(const ExactRow<Real>& row, Real student_peak, double student_sum,
                        const ExactScratch<Real>& scratch) {
    constexpr double kCentredBelow = 0.125;
    const std::int64_t n = row.classes;
    const Real scale = Real(1 / row.temperature);
    const Real teacher_peak = row_max(row.teacher, n);
    const double teacher_sum = exp_row(row.teacher, teacher_peak, scale, n, scratch.target);
    const double mean_gap = gap_row(row, student_peak, teacher_peak, scale, scratch) / teacher_sum;
    double kl = mean_gap - std::log(teacher_sum / student_sum);
    if (kl < kCentredBelow) kl = std::log1p(centred_sum(scratch, mean_gap, n) / teacher_sum);
    if (row.grad != nullptr) {
        soft_gradient(scratch, student_sum, teacher_sum, mean_gap - kl, row.grad_scale * row.kl_weight / row.temperature, n,
                      row.grad);
    }
    return kl;
}

// -sum of target log softmax(s), from exp(s - peak) and its sum.
template <class Real>
inline double hard_loss(const ExactRow<Real>& row, Real peak, double sum, double share, double rest) {
    const double log_sum = std::log(sum);
    // A weight of 0 must not meet an excluded class: 0 * inf.
    double loss = share == 0 ? 0 : share * (log_sum - (double(row.student[row.label]) - double(peak)));
    if (rest == 0) return loss;
    double below = 0;
#pragma omp simd reduction(+ : below)
    for (std::int64_t i = 0; i < row.classes; ++i) {
        below += i == row.label ? 0.0 : double(peak) - double(row.student[i]);
    }
    return loss + rest * (double(row.classes - 1) * log_sum + below);
}

// Weighted loss of one row; fills row.grad if it is there.
template <class Real>
inline double exact_loss(const ExactRow<Real>& row, const ExactScratch<Real>& scratch) {
    const std::int64_t n = row.classes;
    const bool with_soft = row.teacher != nullptr;
    const bool with_hard = row.label >= 0;
    const double share = n == 1 ? 1.0 : row.label_share;
    const double rest = n == 1 ? 0.0 : (1 - share) / double(n - 1);
    const Real peak = row_max(row.student, n);
    const bool shared = with_soft && row.temperature == 1.0;
    double loss = 0.0;
    double hard_sum = 0.0;
    // All that reads the student comes before the first write: the gradient may lie over it.
    if (with_hard) {
        hard_sum = exp_row(row.student, peak, Real(1), n, scratch.hard);
        loss += row.ce_weight * hard_loss(row, peak, hard_sum, share, rest);
    }
    if (with_soft) {
        double soft_sum = hard_sum;
        ExactScratch<Real> space = scratch;
        if (shared && with_hard) {
            space.soft = scratch.hard;
        } else {
            soft_sum = exp_row(row.student, peak, Real(1 / row.temperature), n, scratch.soft);
        }
        loss += row.kl_weight * soft_term(row, peak, soft_sum, space);
    } else if (row.grad != nullptr) {
        fill(row.grad, row.grad + n, Real(0));
    }
    if (with_hard && row.grad != nullptr) {
        hard_gradient(scratch.hard, hard_sum, row.grad_scale * row.ce_weight, row.label, share, rest, n, row.grad);
    }
    return loss;
}

}  // namespace
