// One row in single precision, by vectors: the way that nearly every row goes. Rows that it cannot do exactly (masks,
// NaN, a student that is close to its teacher) are noticed by their sums and left to exact_row.h.
//
// The row is walked in blocks that fit the first cache. Exponents are counted from the largest logit of the first
// block; a block that exceeds it by more than a few powers of two moves the origin, and what was summed before is
// rescaled. So logits come from memory once; the gradient is made of the exponentials, which stay in the cache.
#pragma once

#include <cstddef>

#include "row_view.h"

namespace {

template <class Element>
inline float block_peak(const Element* x, std::int64_t n) {
    const Vec lowest = broadcast(-INFINITY);
    Vec a = lowest, b = lowest;
    std::int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        a = max(load(x + i), a);
        b = max(load(x + i + kLanes), b);
    }
    for (; i < n; i += kLanes) a = max(load_first(x + i, int(smaller<std::int64_t>(kLanes, n - i)), lowest), a);
    return reduce_max(max(a, b));
}

inline double exp2_of(double x) { return x == 0.0 ? 1.0 : std::exp(x * kLn2); }

// log(1 + x) for 0 <= x <= 1 to twelve digits; the library's own, which has sixteen, takes twice as long.
inline double log_one_plus(double x) {
    if (x < 1e-4) return x * (1 - x * (0.5 - x * (1.0 / 3)));
    return std::log(1 + x);
}

// kHard: see HardTerm. kSoft: sum exp(s / T). kPair: the teacher as well. kSmooth: sum the exponents too.
template <class Student, class Teacher, int kHard, bool kSoft, bool kPair, bool kSmooth>
class FastPass {
  public:
    FastPass(const FastRow<Student, Teacher>& row, const FastScratch& scratch) : row_(row), scratch_(scratch) {
        ahead_student_ = row.next_student - row.student;
        if constexpr (kPair) ahead_teacher_ = row.next_teacher - row.teacher;
    }

    const RowSums& sums() {
        const float scale = float(kLog2e / row_.temperature);
        const std::int64_t n = row_.classes;
        for (std::int64_t b = 0; b < n; b += kBlock) {
            const std::int64_t end = smaller(n, b + kBlock);
            place_origins(b, end, scale);
            block(b, end);
        }
        if constexpr (kPair) {
            if (row_.teacher_lse != nullptr) {
                // From the peak, in double: relative to it everything is small.
                const float peak = total_.teacher.peak;
                total_.target = std::exp(*row_.teacher_lse - double(peak) / row_.temperature);
                total_.target *= exp2_of(total_.teacher.exponent(peak));
            }
        }
        if (kHard != kNoHard && row_.label >= 0) own_ = hard_at(row_.label);
        if constexpr (kSoft) per_soft_ = 1 / total_.soft;
        if constexpr (kPair) per_target_ = 1 / total_.target;
        if constexpr (kHard != kNoHard) per_hard_ = 1 / (total_.others + own_);
        return total_;
    }

    // Writes soft * q - target * p + hard * softmax(s) - level. At the label the hard part is less by `hard` (the one-hot
    // target), and formed from the other classes: q - 1 would lose its digits when q is nearly 1.
    void gradient(const TermWeights& weights) const {
        const std::int64_t n = row_.classes;
        const double label_value = row_.label < 0 ? 0.0 : at(row_.label, weights);
        for (std::int64_t b = 0, end; b < n; b = end) {
            const BlockOrigin from = scratch_.blocks[b / kBlock];
            end = smaller(n, b + kBlock);
            while (end < n && scratch_.blocks[end / kBlock] == from) end = smaller(n, end + kBlock);
            write(b, end, relative(weights, from));
        }
        if (row_.label >= 0) narrow(float(label_value), row_.grad + row_.label);
    }

    // The same for class c alone.
    double at(std::int64_t c, const TermWeights& weights) const {
        double g = 0;
        if constexpr (kSoft) g += weights.soft * soft_at(c);
        if constexpr (kPair) g -= weights.target * target_at(c);
        if constexpr (kHard != kNoHard) {
            if (c == row_.label) return g - weights.hard * (total_.others * per_hard_) + weights.label;
            g += weights.hard * (hard_at(c) * per_hard_);
        }
        return g - weights.level;
    }

    double soft_at(std::int64_t c) const {
        const double moved = scratch_.blocks[c / kBlock].student - total_.student.offset;
        return double(scratch_.soft[c]) * exp2_of(moved) * per_soft_;
    }
    // The sum of softmax(s / T) as it stands in the scratch.
    double soft_mass() const {
        double sum = 0;
        for (std::int64_t b = 0; b < row_.classes; b += kBlock) {
            Vec block = broadcast(0.0f);
            const std::int64_t end = smaller(row_.classes, b + kBlock);
            for (std::int64_t i = b; i < end; i += kLanes) block = block + load(scratch_.soft + i);
            sum += reduce_add(block) * exp2_of(scratch_.blocks[b / kBlock].student - total_.student.offset);
        }
        return sum * per_soft_;
    }
    double target_at(std::int64_t c) const {
        const double moved = scratch_.blocks[c / kBlock].teacher - total_.teacher.offset;
        return double(scratch_.target[c]) * exp2_of(moved) * per_target_;
    }

    // Weights broadcast for the exponentials of one block.
    struct Weights {
        Vec soft, target, hard, level;
    };

    // Weights of the stored exponentials of a block that counted from `from`.
    Weights relative(const TermWeights& weights, const BlockOrigin& from) const {
        Weights w{};
        if constexpr (kSoft) {
            const double factor = exp2_of(from.student - total_.student.offset);
            w.soft = broadcast(float(weights.soft * per_soft_ * factor));
        }
        if constexpr (kPair) {
            const double factor = exp2_of(from.teacher - total_.teacher.offset);
            w.target = broadcast(float(weights.target * per_target_ * factor));
        }
        if constexpr (kHard != kNoHard) {
            const double factor = exp2_of(from.hard - hard_offset());
            w.hard = broadcast(float(weights.hard * per_hard_ * factor));
        }
        if constexpr (kSmooth) w.level = broadcast(float(weights.level));
        return w;
    }

    // The hard term's share of the gradient at i.
    Vec hard_part(std::int64_t i, const Weights& w) const {
        if constexpr (kHard == kOwnExponential) return load(scratch_.hard + i) * w.hard;
        if constexpr (kHard != kNoHard) return hard_power<kHard>(load(scratch_.soft + i)) * w.hard;
        return broadcast(0.0f);
    }

    // -log softmax(s) of the label. Where the label has most of the mass, from what is left: that keeps its digits.
    double cross_entropy() const {
        if (own_ > total_.others) return log_one_plus(total_.others / own_);
        return std::log(total_.others + own_) - hard_exponent_of_label() * kLn2;
    }

    // The label's exponent in the hard term, in powers of two.
    double hard_exponent_of_label() const {
        const float s = widen(row_.student[row_.label]);
        if constexpr (kHard == kOwnExponential) return total_.hard.exponent(s);
        return total_.student.exponent(s) * kHard;
    }

  private:
    static constexpr double kSlack = 4.0;  // powers of two that a block may exceed the origin by

    struct Sums {
        Vec soft, target, gap, hard, exponents;
    };
    struct WideSums {
        WideSum soft, target, gap, hard, exponents;

        void add(const Sums& sums) {
            if constexpr (kSoft) soft.add(sums.soft);
            if constexpr (kPair) target.add(sums.target), gap.add(sums.gap);
            if constexpr (kHard != kNoHard) hard.add(sums.hard);
            if constexpr (kSmooth) exponents.add(sums.exponents);
        }
    };

    // exp(s) of class c in the unit of `others`.
    double hard_at(std::int64_t c) const {
        const double factor = exp2_of(scratch_.blocks[c / kBlock].hard - hard_offset());
        if constexpr (kHard == kOwnExponential) return double(scratch_.hard[c]) * factor;
        double power = 1;
        for (int k = 0; k < kHard; ++k) power *= double(scratch_.soft[c]);
        return power * factor;
    }

    double hard_offset() const {
        return kHard == kOwnExponential ? total_.hard.offset : total_.student.offset * kHard;
    }

    void place_origins(std::int64_t b, std::int64_t end, float scale) {
        const float peak = block_peak(row_.student + b, end - b);
        const float widest = kHard == kOwnExponential ? larger(scale, float(kLog2e)) : scale * float(larger(kHard, 1));
        if (b == 0) {
            total_.student = Origin::at(peak, scale);
            if constexpr (kHard == kOwnExponential) total_.hard = Origin::at(peak, float(kLog2e));
        } else if ((peak - total_.student.peak) * widest > kSlack) {
            move_student(Origin::at(peak, scale));
        }
        if constexpr (kPair) {
            const float top = block_peak(row_.teacher + b, end - b);
            if (b == 0) {
                total_.teacher = Origin::at(top, scale);
            } else if ((top - total_.teacher.peak) * scale > kSlack) {
                move_teacher(Origin::at(top, scale));
            }
        }
        scratch_.blocks[b / kBlock] = {total_.student.offset, total_.teacher.offset, hard_offset()};
    }

    void move_student(const Origin& to) {
        const double by = total_.student.offset - to.offset;
        total_.soft *= exp2_of(by);
        total_.gap -= total_.target * by;
        total_.exponents += by * double(counted_);
        total_.student = to;
        if constexpr (kHard == kOwnExponential) {
            const Origin own = Origin::at(to.peak, float(kLog2e));
            total_.others *= exp2_of(total_.hard.offset - own.offset);
            total_.hard = own;
        } else if constexpr (kHard != kNoHard) {
            total_.others *= exp2_of(by * kHard);
        }
    }

    void move_teacher(const Origin& to) {
        const double by = total_.teacher.offset - to.offset;
        total_.gap = (total_.gap + total_.target * by) * exp2_of(by);
        total_.target *= exp2_of(by);
        total_.teacher = to;
    }

    void block(std::int64_t b, std::int64_t end) {
        const VecOrigin student(total_.student), teacher(kPair ? total_.teacher : total_.student);
        const VecOrigin hard(kHard == kOwnExponential ? total_.hard : total_.student);
        // The label's own exp(s) is left out of the sum, and its vector done by itself.
        const bool here = (kHard != kNoHard) && row_.label >= b && row_.label < end;
        const std::int64_t full = b + (end - b) / kLanes * kLanes;
        const std::int64_t hot = here ? b + (row_.label - b) / kLanes * kLanes : full;
        WideSums wide;
        Sums sums = nothing();
        std::int64_t i = stretch(b, smaller(hot, full), student, teacher, hard, sums, wide);
        if (here) {
            part(i, int(smaller<std::int64_t>(kLanes, end - i)), int(row_.label - i), student, teacher, hard, sums);
            i = stretch(i + kLanes, full, student, teacher, hard, sums, wide);
        }
        if (i < end) part(i, int(end - i), -1, student, teacher, hard, sums);
        wide.add(sums);
        if constexpr (kSoft) total_.soft += wide.soft.sum();
        if constexpr (kPair) total_.target += wide.target.sum(), total_.gap += wide.gap.sum();
        if constexpr (kHard != kNoHard) total_.others += wide.hard.sum();
        if constexpr (kSmooth) total_.exponents += wide.exponents.sum();
        counted_ += (end - b) - (here ? 1 : 0);
    }

    static Sums nothing() {
        const Vec zero = broadcast(0.0f);
        return {zero, zero, zero, zero, zero};
    }

    // Whole vectors from i to end. Now and then the sums go on to double: the divergence is the difference of two of them.
    std::int64_t stretch(std::int64_t i, std::int64_t end, const VecOrigin& student, const VecOrigin& teacher,
                         const VecOrigin& hard, Sums& sums, WideSums& wide) {
        constexpr std::int64_t kAtOnce = 16 * kLanes;
        while (end - i > kAtOnce) {
            i = whole(i, i + kAtOnce, student, teacher, hard, sums);
            wide.add(sums);
            sums = nothing();
        }
        return whole(i, end, student, teacher, hard, sums);
    }

    std::int64_t whole(std::int64_t i, std::int64_t end, const VecOrigin& student, const VecOrigin& teacher,
                       const VecOrigin& hard, Sums& sums) {
        for (; i < end; i += kLanes) {
            __builtin_prefetch(row_.student + i + ahead_student_);
            if constexpr (kPair) __builtin_prefetch(row_.teacher + i + ahead_teacher_);
            if (!row_.stream) __builtin_prefetch(row_.grad + i, 1);
            const Vec s = load(row_.student + i);
            const Vec x = student.exponent(s);
            const Vec e = pow2(x);
            store(scratch_.soft + i, e);
            if constexpr (kSoft) sums.soft = sums.soft + e;
            if constexpr (kPair) {
                const Vec y = teacher.exponent(load(row_.teacher + i));
                const Vec p = pow2(y);
                store(scratch_.target + i, p);
                sums.target = sums.target + p;
                sums.gap = fma(p, y - x, sums.gap);
            }
            if constexpr (kHard == kOwnExponential) {
                const Vec h = pow2(hard.exponent(s));
                store(scratch_.hard + i, h);
                sums.hard = sums.hard + h;
            } else if constexpr (kHard != kNoHard) {
                sums.hard = sums.hard + hard_power<kHard>(e);
            }
            if constexpr (kSmooth) sums.exponents = sums.exponents + x;
        }
        return i;
    }

    // The first n lanes at i; lane `hot` is the label's.
    void part(std::int64_t i, int n, int hot, const VecOrigin& student, const VecOrigin& teacher, const VecOrigin& hard,
              Sums& sums) {
        const auto without_label = [&](Vec x) { return hot < 0 ? x : clear_lane(x, hot); };
        const Vec s = load_first(row_.student + i, n, broadcast(total_.student.peak));
        const Vec x = student.exponent(s);
        const Vec e = keep_first(pow2(x), n);
        store(scratch_.soft + i, e);
        if constexpr (kSoft) sums.soft = sums.soft + e;
        if constexpr (kPair) {
            const Vec y = teacher.exponent(load_first(row_.teacher + i, n, broadcast(total_.teacher.peak)));
            const Vec p = keep_first(pow2(y), n);
            store(scratch_.target + i, p);
            sums.target = sums.target + p;
            sums.gap = fma(p, y - x, sums.gap);
        }
        if constexpr (kHard == kOwnExponential) {
            const Vec h = keep_first(pow2(hard.exponent(s)), n);
            store(scratch_.hard + i, h);
            sums.hard = sums.hard + without_label(h);
        } else if constexpr (kHard != kNoHard) {
            sums.hard = sums.hard + without_label(hard_power<kHard>(e));
        }
        if constexpr (kSmooth) sums.exponents = sums.exponents + without_label(keep_first(x, n));
    }

    Vec value(std::int64_t i, const Weights& w) const {
        const Vec e = load(scratch_.soft + i);
        Vec g = broadcast(0.0f);
        if constexpr (kPair) {
            g = fms(e, w.soft, load(scratch_.target + i) * w.target);
        } else if constexpr (kSoft) {
            g = e * w.soft;
        }
        if constexpr (kHard == kOwnExponential) {
            g = fma(load(scratch_.hard + i), w.hard, g);
        } else if constexpr (kHard != kNoHard) {
            g = fma(hard_power<kHard>(e), w.hard, g);
        }
        if constexpr (kSmooth) g = g - w.level;
        return g;
    }

    void write(std::int64_t i, std::int64_t end, const Weights& w) const {
        Student* const grad = row_.grad;
        if (row_.stream) {
            constexpr std::uintptr_t kBytes = kLanes * sizeof(Student);
            const std::uintptr_t over = reinterpret_cast<std::uintptr_t>(grad + i) % kBytes;
            const int head = int(smaller<std::int64_t>(end - i, over ? (kBytes - over) / sizeof(Student) : 0));
            if (head > 0) store_first(grad + i, head, value(i, w));
            for (i += head; i + kLanes <= end; i += kLanes) stream(grad + i, value(i, w));
        } else {
            for (; i + kLanes <= end; i += kLanes) store(grad + i, value(i, w));
        }
        if (i < end) store_first(grad + i, int(end - i), value(i, w));
    }

    const FastRow<Student, Teacher> row_;
    const FastScratch scratch_;
    std::ptrdiff_t ahead_student_ = 0;
    std::ptrdiff_t ahead_teacher_ = 0;
    std::int64_t counted_ = 0;
    double own_ = 0;  // exp(s) of the label in the unit of total_.others
    double per_soft_ = 0, per_target_ = 0, per_hard_ = 0;  // one over the sums
    RowSums total_{};
};

}  // namespace
