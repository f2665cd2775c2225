// One row of the losses of kd/api.h, straight from the formulas, for the native test programs. In more than double
// precision: a divergence of 1e-11 is a difference of numbers near 10.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kd/api.h"

namespace kd::test {

constexpr double kInf = std::numeric_limits<double>::infinity();

using Numbers = std::vector<double>;
using Exact = long double;
using Exacts = std::vector<Exact>;

// What a row asks for; weights are those of kd/api.h, with their divisors.
struct RowCase {
    Numbers student;
    std::vector<Numbers> teachers;  // of all classes, or of the listed ones
    Numbers teacher_weights;
    std::vector<std::int64_t> listed;
    int tail = KD_TAIL_RENORMALISE;
    double teacher_lse = 0;
    double temperature = 1;
    std::int64_t label = -1;
    double share = 1;
    double ce_weight = 0, kl_weight = 0;
    bool mean_of_losses = false;
};

struct RowResult {
    double loss = 0;
    Numbers grad;
    double scale = 0;  // of what the loss is a difference of; rounding is relative to it
};

template <class Number>
Exact log_sum_exp(const std::vector<Number>& x, Exact temperature) {
    Exact top = -kInf, sum = 0;
    for (Exact each : x) top = std::isnan(each) ? each : std::max(top, each);
    for (Exact each : x) sum += std::exp((each - top) / temperature);
    return top / temperature + std::log(sum);
}

inline Exacts log_softmax(const Numbers& x, Exact temperature) {
    const Exact lse = log_sum_exp(x, temperature);
    Exacts out;
    for (Exact each : x) out.push_back(each / temperature - lse);
    return out;
}

// sum p log(p / q), 0 where p is 0 and infinite where q alone excludes a class.
inline Exact relative_entropy(const Exacts& log_p, const Exacts& log_q) {
    Exact sum = 0;
    for (std::size_t i = 0; i < log_p.size(); ++i) {
        if (log_p[i] == -kInf) continue;
        sum += log_q[i] == -kInf ? kInf : std::exp(log_p[i]) * (log_p[i] - log_q[i]);
    }
    return sum;
}

struct Divergence {
    Exact value = 0;
    Exacts slope;  // with respect to s / T
};

inline Divergence from_listed(const RowCase& row, const Exacts& log_q) {
    const Numbers& t = row.teachers[0];
    Exacts log_p = log_softmax(t, row.temperature), listed_q;
    if (row.tail != KD_TAIL_RENORMALISE) {
        for (std::size_t k = 0; k < t.size(); ++k) log_p[k] = Exact(t[k]) / row.temperature - row.teacher_lse;
    }
    std::vector<bool> outside(log_q.size(), true);
    Exact mass = 0;
    for (std::size_t k = 0; k < t.size(); ++k) {
        listed_q.push_back(log_q[std::size_t(row.listed[k])]);
        outside[std::size_t(row.listed[k])] = false;
        mass += std::exp(log_p[k]);
    }
    Exacts others;
    for (std::size_t c = 0; c < log_q.size(); ++c) {
        if (outside[c]) others.push_back(log_q[c]);
    }
    const bool bucket = row.tail == KD_TAIL_BUCKET && !others.empty();
    const Exact rest = bucket ? std::max(1 - mass, Exact(0)) : 0;
    const Exact log_rest_q = bucket ? log_sum_exp(others, 1) : 0;
    Divergence out;
    out.value = relative_entropy(log_p, listed_q) + (rest > 0 ? rest * (std::log(rest) - log_rest_q) : 0);
    for (std::size_t c = 0; c < log_q.size(); ++c) {
        const Exact q = std::exp(log_q[c]) * (row.tail == KD_TAIL_UNNORMALISED ? mass : 1);
        out.slope.push_back(outside[c] && rest > 0 ? q - rest * std::exp(log_q[c] - log_rest_q) : q);
    }
    for (std::size_t k = 0; k < t.size(); ++k) out.slope[std::size_t(row.listed[k])] -= std::exp(log_p[k]);
    return out;
}

// log(exp(a) + exp(b))
inline Exact log_add(Exact a, Exact b) {
    const Exact top = std::max(a, b);
    return top == -kInf ? top : top + std::log(std::exp(a - top) + std::exp(b - top));
}

inline Divergence from_dense(const RowCase& row, const Exacts& log_q) {
    Divergence out;
    Exacts log_mean(log_q.size(), -kInf);
    for (std::size_t k = 0; k < row.teachers.size(); ++k) {
        const Exact weight = row.teachers.size() > 1 ? Exact(row.teacher_weights[k]) : 1;
        if (weight == 0) continue;
        const Exacts log_p = log_softmax(row.teachers[k], row.temperature);
        out.value += weight * relative_entropy(log_p, log_q);
        for (std::size_t c = 0; c < log_q.size(); ++c) log_mean[c] = log_add(log_mean[c], log_p[c] + std::log(weight));
    }
    for (std::size_t c = 0; c < log_q.size(); ++c) out.slope.push_back(std::exp(log_q[c]) - std::exp(log_mean[c]));
    if (row.teachers.size() > 1 && !row.mean_of_losses) out.value = relative_entropy(log_mean, log_q);
    return out;
}

inline Exact cross_entropy(const RowCase& row, const Exacts& log_q, Exacts* slope) {
    const std::size_t classes = log_q.size();
    const Exact share = classes == 1 ? 1 : Exact(row.share);
    const Exact other = classes == 1 ? 0 : (1 - share) / Exact(classes - 1);
    Exact value = 0;
    for (std::size_t c = 0; c < classes; ++c) {
        const Exact target = std::int64_t(c) == row.label ? share : other;
        if (target != 0) value -= target * log_q[c];
        slope->push_back(std::exp(log_q[c]) - target);
    }
    return value;
}

inline RowResult reference(const RowCase& row) {
    RowResult out;
    out.grad.assign(row.student.size(), 0);
    double size = 1 + std::log(double(row.student.size()));
    for (double s : row.student) {
        if (std::isfinite(s)) size = std::max(size, std::fabs(s));
    }
    if (row.label >= 0 && row.ce_weight != 0) {
        Exacts slope;
        out.loss += row.ce_weight * double(cross_entropy(row, log_softmax(row.student, 1), &slope));
        out.scale += std::fabs(row.ce_weight) * size;
        for (std::size_t c = 0; c < slope.size(); ++c) out.grad[c] += row.ce_weight * double(slope[c]);
    }
    if (!row.teachers.empty() && row.kl_weight != 0) {
        const Exacts log_q = log_softmax(row.student, row.temperature);
        const Divergence d = row.listed.empty() ? from_dense(row, log_q) : from_listed(row, log_q);
        out.loss += row.kl_weight * double(d.value);
        out.scale += std::fabs(row.kl_weight) * (1 + size / row.temperature);
        for (std::size_t c = 0; c < d.slope.size(); ++c)
            out.grad[c] += row.kl_weight / row.temperature * double(d.slope[c]);
    }
    return out;
}

}  // namespace kd::test
