// Rows that fit one vector, as many of them as a vector has lanes: the matrix of logits is transposed, so that each lane
// has a row to itself and nothing is added up across lanes. With ten classes the time of fast_row.h goes into waiting
// for one result after the other. The mathematics is the same.
#pragma once

#include "exact_row.h"
#include "fast_row.h"

namespace {

constexpr int kGroup = kLanes;

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

    // count >= 1 rows.
    void run(TinyRow<Student, Teacher>* rows, int count) {
        add_up(rows, count);
        bool any = false;
        for (int k = 0; k < count; ++k) {
            weigh(rows[k], k);
            any = any || (rows[k].done && rows[k].grad != nullptr);
        }
        if (any) write(rows, count);
    }

  private:
    // Exponents of a column; the peaks are those of each lane's row.
    struct Column {
        Vec scale, peak, shift;
        Vec exponent(Vec x) const {
            if constexpr (kFused) return fms(x, scale, shift);
            return (x - peak) * scale;
        }
    };

    static Column column(const Vec* logits, int n, float scale) {
        Vec peak = logits[0];
        for (int c = 1; c < n; ++c) peak = max(logits[c], peak);
        return {broadcast(scale), peak, peak * broadcast(scale)};
    }

    void add_up(const TinyRow<Student, Teacher>* rows, int count) {
        Vec s[kLanes], t[kLanes];
        float labels[kLanes];
        for (int k = 0; k < kLanes; ++k) {
            const TinyRow<Student, Teacher>& row = rows[smaller(k, count - 1)];
            s[k] = load_first(row.student, classes_, broadcast(0.0f));
            t[k] = load_first(row.teacher, classes_, broadcast(0.0f));
            labels[k] = float(row.label);
        }
        transpose(s);
        transpose(t);
        label_ = load(labels);
        const Column student = column(s, classes_, scale_), teacher = column(t, classes_, scale_);
        const Column hard = kHard == kOwnExponential ? column(s, classes_, float(kLog2e)) : student;
        WideSum soft_sum, target_sum, gap_sum, others_sum;
        Vec own = broadcast(0.0f), label_exponent = own;
        for (int c = 0; c < classes_; ++c) {
            const Vec x = student.exponent(s[c]), y = teacher.exponent(t[c]);
            const Vec e = pow2(x), p = pow2(y);
            soft_[c] = e;
            target_[c] = p;
            soft_sum.add(e);
            target_sum.add(p);
            gap_sum.add(p * (y - x));
            if constexpr (kHard == kNoHard) continue;
            const Vec z = kHard == kOwnExponential ? hard.exponent(s[c]) : x;
            const Vec h = kHard == kOwnExponential ? pow2(z) : hard_power<kHard>(e);
            hard_[c] = h;
            const Vec here = where_equal(label_, broadcast(float(c)), h, broadcast(0.0f));
            own = own + here;
            others_sum.add(h - here);
            label_exponent = where_equal(label_, broadcast(float(c)), z, label_exponent);
        }
        soft_sum.store(soft_sums_);
        target_sum.store(target_sums_);
        gap_sum.store(gap_sums_);
        others_sum.store(others_);
        store(own_, own);
        store(label_exponents_, label_exponent);
    }

    void weigh(TinyRow<Student, Teacher>& row, int k) {
        const double soft = soft_sums_[k], target = target_sums_[k], others = others_[k];
        const double kl = gap_sums_[k] / target * kLn2 - std::log(target / soft);
        row.done = kl < kInfinity<double> && !is_near(kl, target);
        row.loss = row.kl_weight * kl;
        const double weight = grad_scale_ * row.kl_weight * per_degree_;
        soft_weights_[k] = float(weight / soft);
        target_weights_[k] = float(weight / target);
        hard_weights_[k] = label_parts_[k] = 0.0f;
        if (kHard == kNoHard || row.label < 0) return;
        const double own = double(own_[k]);
        const double sum = others + own;
        const double exponent = double(label_exponents_[k]) * (kHard == kOwnExponential ? 1 : kHard);
        const double ce = own > others ? log_one_plus(others / own) : std::log(sum) - exponent * kLn2;
        row.done = row.done && ce < kInfinity<double>;
        row.loss += row.ce_weight * ce;
        const double hard = grad_scale_ * row.ce_weight / sum;
        hard_weights_[k] = float(hard);
        label_parts_[k] = float(hard * others);
    }

    void write(const TinyRow<Student, Teacher>* rows, int count) const {
        const Vec soft_weight = load(soft_weights_), target_weight = load(target_weights_);
        const Vec hard_weight = load(hard_weights_), label_part = load(label_parts_);
        Vec out[kLanes];
        for (int c = 0; c < classes_; ++c) {
            const Vec soft = fms(soft_[c], soft_weight, target_[c] * target_weight);
            out[c] = soft;
            if constexpr (kHard == kNoHard) continue;
            const Vec away = fma(hard_[c], hard_weight, soft);
            // At the label from the other classes: q - 1 would lose its digits when q is nearly 1.
            out[c] = where_equal(label_, broadcast(float(c)), soft - label_part, away);
        }
        for (int c = classes_; c < kLanes; ++c) out[c] = broadcast(0.0f);
        transpose(out);
        for (int k = 0; k < count; ++k) {
            if (rows[k].done && rows[k].grad != nullptr) store_first(rows[k].grad, classes_, out[k]);
        }
    }

    const int classes_;
    const double per_degree_;
    const double grad_scale_;
    const float scale_;
    Vec label_;
    Vec soft_[kLanes], target_[kLanes], hard_[kLanes];  // exponentials, a class each
    // A row each.
    double soft_sums_[kLanes], target_sums_[kLanes], gap_sums_[kLanes], others_[kLanes];
    float own_[kLanes], label_exponents_[kLanes];
    float soft_weights_[kLanes], target_weights_[kLanes], hard_weights_[kLanes], label_parts_[kLanes];
};

}  // namespace
