// The second pass for a row whose student is close to its teacher: what fast_row.h found there has few digits left,
// since it is the difference of sums that are nearly equal. The formulas are those of exact_row.h, by vectors:
//
//     KL = (m - c) + log1p(sum_i p_i (exp(c - d_i) - 1 - (c - d_i)) + (c - m)),  d_i = (t_i - s_i - offset) / T
//     q_i - p_i = p_i (exp(m - KL - d_i) - 1)
//
// with m = sum_i p_i d_i. The centre c is m as the first pass found it; how far it is off is summed along the way.
#pragma once

#include "exact_math.h"
#include "fast_row.h"

namespace {

// exp(x) - 1 - x for |x| <= 1.
inline Vec exp_remainder(Vec x) {
    Vec sum = broadcast(float(kInverseFactorial[Series<float>::kTerms - 1]));
    for (int k = Series<float>::kTerms - 2; k >= 0; --k) sum = fma(sum, x, broadcast(float(kInverseFactorial[k])));
    return sum * (x * x);
}

// t - s - offset with the digits that a rounded difference of large numbers would lose. Half-precision logits have so
// few that their difference is exact as it is.
template <class Element>
struct Difference {
    Vec high, low;

    explicit Difference(double offset) : high(broadcast(float(offset))), low(broadcast(float(offset - float(offset)))) {}

    Vec of(Vec t, Vec s) const {
        const Vec x = t - s;
        if constexpr (sizeof(Element) == 2) return (x - high) - low;
        const Vec away = t - x;  // Knuth's two-sum: x + rest is t - s exactly
        const Vec rest = (t - (x + away)) + (away - s);
        return (x - high) + (rest - low);
    }
};

struct NearResult {
    double divergence;
    double shift;  // m - KL
};

template <class Pass, class Student, class Teacher>
class NearPass {
  public:
    NearPass(const Pass& pass, const RowSums& sums, const FastRow<Student, Teacher>& row, const FastScratch& scratch)
        : pass_(pass), sums_(sums), row_(row), scratch_(scratch), difference_(offset()) {}

    NearResult divergence() const {
        const double scale = sums_.student.scale;
        const double moved = (sums_.teacher.offset - sums_.student.offset) - offset() * scale;
        const double centre = (sums_.gap / sums_.target + moved) * kLn2;
        double bowl = 0, slip = 0;
        const std::int64_t n = row_.classes;
        for (std::int64_t b = 0; b < n; b += kBlock) {
            const BlockOrigin& from = scratch_.blocks[b / kBlock];
            // Both in the unit of the final sums: counted from a block's own origins the second may overflow, where the
            // student has a block that the teacher all but excludes.
            const double factor = exp2_of(from.teacher - sums_.teacher.offset);
            const double growth = std::exp(centre + (from.student - sums_.teacher.offset + offset() * scale) * kLn2);
            const Vec none = broadcast(0.0f);
            Sums found{none, none};
            const std::int64_t end = smaller(n, b + kBlock);
            const Step step{broadcast(float(centre)), broadcast(float(factor)), broadcast(float(growth)),
                            broadcast(float(1 / row_.temperature))};
            for (std::int64_t i = b; i < end; i += kLanes) {
                add(i, int(smaller<std::int64_t>(kLanes, end - i)), step, found);
            }
            bowl += reduce_add(found.bowl);
            slip += reduce_add(found.slip);
        }
        // float(centre) is the centre; slip is c - m.
        const double off = slip / sums_.target;
        const double divergence = std::log1p(bowl / sums_.target + off) - off;
        return {divergence, (double(float(centre)) - off) - divergence};
    }

    // Writes weight * (q - p), plus the hard term as Pass does it.
    void gradient(const NearResult& result, const TermWeights& weights) const {
        const double label_value = row_.label < 0 ? 0.0 : at_label(result, weights);
        const std::int64_t n = row_.classes;
        const Vec shift = broadcast(float(result.shift));
        for (std::int64_t b = 0; b < n; b += kBlock) {
            const std::int64_t end = smaller(n, b + kBlock);
            const auto w = pass_.relative(weights, scratch_.blocks[b / kBlock]);
            std::int64_t i = b;
            for (; i + kLanes <= end; i += kLanes) store(row_.grad + i, value(i, shift, w));
            if (i < end) store_first(row_.grad + i, int(end - i), value(i, shift, w));
        }
        if (row_.label >= 0) narrow(float(label_value), row_.grad + row_.label);
    }

  private:
    struct Sums {
        Vec bowl, slip;
    };

    // What is the same for all of a block.
    struct Step {
        Vec centre, factor, growth, per_degree;
    };

    double offset() const { return double(sums_.teacher.peak) - double(sums_.student.peak); }

    void add(std::int64_t i, int n, const Step& step, Sums& sums) const {
        const Vec s = n == kLanes ? load(row_.student + i) : load_first(row_.student + i, n, broadcast(0.0f));
        const Vec t = n == kLanes ? load(row_.teacher + i) : load_first(row_.teacher + i, n, broadcast(0.0f));
        const Vec e = load(scratch_.soft + i), p = load(scratch_.target + i) * step.factor;
        const Vec d = difference_.of(t, s) * step.per_degree;
        store(scratch_.gap + i, d);
        const Vec x = step.centre - d;
        // Where x is large exp(x) may overflow; p exp(x) is exp(s / T) but for a factor, and does not.
        const Vec near = p * exp_remainder(x);
        const Vec far = fms(e, step.growth, fma(p, x, p));
        const Vec bowl = where_small(x, near, far);
        const Vec slip = p * x;
        sums.bowl = sums.bowl + (n == kLanes ? bowl : keep_first(bowl, n));
        sums.slip = sums.slip + (n == kLanes ? slip : keep_first(slip, n));
    }

    template <class Weights>
    Vec value(std::int64_t i, Vec shift, const Weights& w) const {
        const Vec u = shift - load(scratch_.gap + i);
        const Vec target = load(scratch_.target + i) * w.target;
        const Vec near = target * (u + exp_remainder(u));
        const Vec far = load(scratch_.soft + i) * w.soft - target;
        return where_small(u, near, far) + pass_.hard_part(i, w);
    }

    double at_label(const NearResult& result, const TermWeights& weights) const {
        const double u = result.shift - double(scratch_.gap[row_.label]);
        TermWeights hard = weights;
        hard.soft = hard.target = 0;
        const double p = pass_.target_at(row_.label);
        const double soft = u <= 1 ? p * std::expm1(u) : pass_.soft_at(row_.label) - p;
        return weights.target * soft + pass_.at(row_.label, hard);
    }

    const Pass& pass_;
    const RowSums& sums_;
    const FastRow<Student, Teacher>& row_;
    const FastScratch& scratch_;
    const Difference<Student> difference_;
};

}  // namespace
