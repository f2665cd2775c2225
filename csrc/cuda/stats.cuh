// The sums over a row that its loss and gradient are made of, gathered in one pass over the logits.
//
// With a base B near the row's largest scaled logit, x = s log2(e) / T - B is formed by one fused multiply-add, whose
// only rounding is relative to x, and exp((s - max s) / T) is 2^x up to a factor that all classes share.
#pragma once

#include "task.cuh"

namespace kd::cuda {

// The bases that belong to the largest logit `top` of some elements; 0 while there is no finite one, so that -inf - 0
// gives 2^-inf = 0. The hard base is used only where the hard exponentials are no powers of the soft ones.
struct Base {
    float soft, hard;
};

__device__ __forceinline__ Base base_of(float top, const Task& task) {
    const bool none = top == -kInfinity;
    return Base{none ? 0.0f : product(top, task.soft_scale), none ? 0.0f : product(top, kLog2e)};
}

__device__ __forceinline__ float exponent(float logit, float scale, float base) { return fmaf(logit, scale, -base); }

__device__ __forceinline__ float power_of(float x, int power) {  // of 1, 2 or 4
    const float square = product(x, x);
    return power == 1 ? x : power == 2 ? square : product(square, square);
}

// What turns sums of exponentials with the base `from` into sums with the base `to`.
struct Factors {
    float soft, hard;
};

__device__ __forceinline__ Factors rebase_factors(const Base& from, const Base& to, const Task& task) {
    const float soft = exp2_approx(from.soft - to.soft);
    return Factors{soft, task.power == 0 ? exp2_approx(from.hard - to.hard) : power_of(soft, task.power)};
}

struct Stats {
    float student_max, teacher_max;
    float student_sum;   // of 2^x over all classes
    float teacher_sum;   // the same of the teacher
    float gap_sum;       // of 2^x_t (x_t - x_s): not finite where a logit is -inf
    float other_sum;     // of the hard exponentials of all classes but the label
    float other_logits;  // of s_c - s_y over all classes but the label; where b = 1 unused

    __device__ static Stats nothing() { return Stats{-kInfinity, -kInfinity, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}; }
};

// The student's sums with another base. A side without a finite logit has only zeros to offer.
__device__ __forceinline__ void rebase_student(Stats& stats, bool none, const Base& from, const Base& to,
                                               const Task& task) {
    const Factors factors = rebase_factors(from, to, task);
    stats.student_sum = none ? 0.0f : product(stats.student_sum, factors.soft);
    stats.other_sum = none ? 0.0f : product(stats.other_sum, factors.hard);
    stats.gap_sum -= product(from.soft - to.soft, stats.teacher_sum);
}

__device__ __forceinline__ void rebase_teacher(Stats& stats, bool none, float from, float to) {
    const float factor = none ? 0.0f : exp2_approx(from - to);
    stats.gap_sum = product(stats.gap_sum + product(from - to, stats.teacher_sum), factor);
    stats.teacher_sum = product(stats.teacher_sum, factor);
}

// Brings the sums to the bases of the maxima given.
template <bool kTeacher>
__device__ __forceinline__ void rebase(Stats& stats, const Base& student, const Base& teacher, float student_max,
                                       float teacher_max, const Task& task) {
    rebase_student(stats, stats.student_max == -kInfinity, student, base_of(student_max, task), task);
    stats.student_max = student_max;
    if (kTeacher) {
        rebase_teacher(stats, stats.teacher_max == -kInfinity, teacher.soft, base_of(teacher_max, task).soft);
        stats.teacher_max = teacher_max;
    }
}

// Of how much the exponentials relative to the student's base exceed those relative to its maximum, the binary
// logarithm.
__device__ __forceinline__ float soft_excess(const Task& task, const Stats& stats) {
    return exponent(stats.student_max, task.soft_scale, base_of(stats.student_max, task).soft);
}

__device__ __forceinline__ float hard_excess(const Task& task, const Stats& stats) {
    if (task.power > 0) return soft_excess(task, stats) * float(task.power);
    return exponent(stats.student_max, kLog2e, base_of(stats.student_max, task).hard);
}

// Joins the sums of the lanes, each of which has the bases of its own maxima.
template <bool kTeacher>
struct JoinStats {
    const Task& task;

    __device__ Stats operator()(Stats stats) const {
        const float student_max = lanes_max(stats.student_max);
        const float teacher_max = kTeacher ? lanes_max(stats.teacher_max) : 0.0f;
        rebase<kTeacher>(stats, base_of(stats.student_max, task), base_of(stats.teacher_max, task), student_max,
                         teacher_max, task);
        stats.student_sum = lanes_sum(stats.student_sum);
        if (kTeacher) {
            stats.teacher_sum = lanes_sum(stats.teacher_sum);
            stats.gap_sum = lanes_sum(stats.gap_sum);
        }
        stats.other_sum = lanes_sum(stats.other_sum);
        stats.other_logits = lanes_sum(stats.other_logits);
        return stats;
    }
};

}  // namespace kd::cuda
