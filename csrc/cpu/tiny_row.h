// Rows that fit one vector, wholly in registers, several at a time: with ten classes nearly all of the time goes into
// waiting for one result after the other, and into guesses about branches. So a group of rows is taken through each step
// together. The mathematics is that of fast_row.h.
#pragma once

#include "exact_row.h"
#include "fast_row.h"

namespace {

constexpr int kGroup = 8;

// Where q - p is the difference of nearly equal numbers: everywhere if the divergence is small, at the likely classes if
// these have much of the mass.
inline bool is_near(double kl, double target_sum) {
    constexpr double kPeaked = 4.0;  // exp(t / T) relative to the largest sums to less: some p is above 1/4
    return kl < kNear || (kl < 8 * kNear && target_sum < kPeaked);
}

template <class Student, class Teacher>
struct TinyRow {
    const Student* student;
    const Teacher* teacher;
    Student* grad;
    std::int64_t label;  // -1: no hard term
    double ce_weight;
    double kl_weight;
    double loss;
    bool done;  // false: nothing was written, and the row needs another way
};

template <int kHard, class Student, class Teacher>
class TinyGroup {
  public:
    TinyGroup(int classes, double temperature, double grad_scale)
        : classes_(classes), per_degree_(1 / temperature), grad_scale_(grad_scale), scale_(float(kLog2e / temperature)) {}

    void run(TinyRow<Student, Teacher>* rows, int count) {
        for (int k = 0; k < count; ++k) add_up(rows[k], found_[k]);
        for (int k = 0; k < count; ++k) weigh(rows[k], found_[k]);
        for (int k = 0; k < count; ++k) {
            if (rows[k].done && rows[k].grad != nullptr) write(rows[k], found_[k]);
        }
    }

  private:
    struct Found {
        float soft[kLanes], target[kLanes], hard[kLanes];  // exponentials
        FourSums sums;                                     // of soft, target, gap and the hard ones but the label's
        double exponent;                                   // of the label in the hard term, in powers of two
        double soft_weight, target_weight, hard_weight;
    };

    void add_up(const TinyRow<Student, Teacher>& row, Found& found) const {
        const Vec lowest = broadcast(-INFINITY);
        const Vec s = load_first(row.student, classes_, lowest), t = load_first(row.teacher, classes_, lowest);
        const float peak = reduce_max(s);
        const Origin student = Origin::at(peak, scale_), teacher = Origin::at(reduce_max(t), scale_);
        const Vec x = VecOrigin(student).exponent(s), y = VecOrigin(teacher).exponent(t);
        const Vec e = keep_first(pow2(x), classes_), p = keep_first(pow2(y), classes_);
        Vec h = hard_power<kHard>(e);
        Origin hard = student;
        if constexpr (kHard == kOwnExponential) {
            hard = Origin::at(peak, float(kLog2e));
            h = keep_first(pow2(VecOrigin(hard).exponent(s)), classes_);
        }
        store(found.soft, e);
        store(found.target, p);
        Vec others = h;
        if constexpr (kHard != kNoHard) {
            store(found.hard, h);
            if (row.label >= 0) {
                others = clear_lane(h, int(row.label));
                found.exponent = hard.exponent(widen(row.student[row.label])) * (kHard == kOwnExponential ? 1 : kHard);
            }
        }
        found.sums = reduce_add(e, p, keep_first(p * (y - x), classes_), others);
    }

    void weigh(TinyRow<Student, Teacher>& row, Found& found) const {
        const double soft = found.sums.a, target = found.sums.b, others = found.sums.d;
        const double kl = found.sums.c / target * kLn2 - std::log(target / soft);
        row.done = kl < kInfinity<double> && !is_near(kl, target);
        row.loss = row.kl_weight * kl;
        const double weight = grad_scale_ * row.kl_weight * per_degree_;
        found.soft_weight = weight / soft;
        found.target_weight = weight / target;
        if (kHard == kNoHard || row.label < 0) return;
        const double own = double(found.hard[row.label]);
        const double sum = others + own;
        const double ce = own > others ? log_one_plus(others / own) : std::log(sum) - found.exponent * kLn2;
        row.done = row.done && ce < kInfinity<double>;
        row.loss += row.ce_weight * ce;
        found.hard_weight = grad_scale_ * row.ce_weight / sum;
    }

    void write(const TinyRow<Student, Teacher>& row, const Found& found) const {
        const Vec target = load(found.target) * broadcast(float(found.target_weight));
        const Vec soft = fms(load(found.soft), broadcast(float(found.soft_weight)), target);
        if (kHard == kNoHard || row.label < 0) return store_first(row.grad, classes_, soft);
        store_first(row.grad, classes_, fma(load(found.hard), broadcast(float(found.hard_weight)), soft));
        const std::int64_t y = row.label;
        const double own = found.soft_weight * double(found.soft[y]) - found.target_weight * double(found.target[y]);
        narrow(float(own - found.hard_weight * found.sums.d), row.grad + y);
    }

    const int classes_;
    const double per_degree_;
    const double grad_scale_;
    const float scale_;
    Found found_[kGroup];
};

}  // namespace
