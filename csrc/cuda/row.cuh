// Loss and gradient of one row, as a team of threads computes them.
//
// One pass (`scan`) gathers the row's sums; a second one (`finish_...`) writes the gradient. With p and q the
// distributions of teacher and student, d_c = ((t_c - max t) - (s_c - max s)) / T and u_c = log(q_c / p_c) = D - d_c,
//
//     KL = sum_c p_c (exp(u_c) - 1 - u_c),          every term >= 0, since sum_c (q_c - p_c) = 0
//     q_c - p_c = p_c (exp(u_c) - 1)
//
// and where |u_c| <= 1 both brackets are series in u_c: teacher and student that are close keep their digits, which the
// difference of two nearly equal numbers loses, and the factor T^2 then shows. An error of D changes this KL in second
// order only, but the gradient in first: where the row's distributions are close, or all but concentrated on one class,
// `recentre` corrects D by sum_c (q_c - p_c) formed in the same way. Half precision skips all this where KL is not
// small: its gradient is rounded to a few digits anyway, and the plain form takes half the instructions.
#pragma once

#include "scan.cuh"

namespace kd::cuda {

// exp(x) = 1 + x + x^2 R(x); R on [-1, 1] by a polynomial, relative error 2e-7.
__device__ __forceinline__ float remainder_series(float x) {
    float sum = 2.5288434699177742e-05f;
    sum = fmaf(sum, x, 2.0329041581135243e-04f);
    sum = fmaf(sum, x, 1.3886447995901108e-03f);
    sum = fmaf(sum, x, 8.3308862522242450e-03f);
    sum = fmaf(sum, x, 4.1666697712752490e-02f);
    sum = fmaf(sum, x, 1.6666696965694427e-01f);
    return fmaf(sum, x, 0.5f);
}

// The CE term of a row.
struct Hard {
    float loss;
    float others;  // 1 - softmax(s)_y, not from a difference
    float sum;     // of all hard exponentials, relative to the base of the row's maximum
};

__device__ inline Hard hard_of(const Task& task, const Stats& stats, float label_logit) {
    const Base base = base_of(stats.student_max, task);
    const float hard_base = task.power == 0 ? base.hard : base.soft * float(task.power);
    const float x = task.power == 0 ? exponent(label_logit, kLog2e, base.hard)
                                    : exponent(label_logit, task.soft_scale, base.soft) * float(task.power);
    const float own = exp2_approx(x);
    Hard hard;
    hard.sum = stats.other_sum + own;
    hard.others = stats.other_sum / hard.sum;
    // Near certainty the loss is small, and log(1 + small) keeps its digits.
    hard.loss = stats.other_sum < own ? log1pf(stats.other_sum / own) : kLn2 * (log2f(hard.sum) - x);
    if (task.other != 0.0f) {
        // log Z - b s_y - other sum_c s_c, which with sums relative to s_y is (log Z - s_y) - other sum_c (s_c - s_y).
        // Where s_y is -inf the sums are not relative to it, and only a label without weight leaves the loss finite.
        if (label_logit == -kInfinity) {
            hard.loss = task.share == 0.0f ? kLn2 * (log2f(hard.sum) + hard_base) : kInfinity;
        }
        hard.loss -= task.other * stats.other_logits;
    }
    return hard;
}

// Ready to write gradients of the CE term: what a hard exponential is multiplied by, what every class is less by, and
// the label's own entry.
struct HardSlope {
    float scale, less, own;
};

__device__ __forceinline__ HardSlope hard_slope(const Task& task, const Hard& hard, float sum) {
    if (!task.hard) return HardSlope{0.0f, 0.0f, 0.0f};
    return HardSlope{task.ce_weight / sum, task.ce_weight * task.other,
                     task.ce_weight * ((1.0f - task.share) - hard.others)};
}

// Adds the CE term's part to the gradient of some quads, the label's entry apart.
template <bool kHalf, int kQuads, class Unpack>
__device__ __forceinline__ void add_hard_gradient(const Unpack& unpack, Quad (&soft)[kQuads], int power, float base,
                                                  const HardSlope& slope, Quad (&grad)[kQuads]) {
    hard_exponentials<kHalf>(unpack, soft, power, base);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
        for (int j = 0; j < 4; ++j) grad[quad][j] = fmaf(soft[quad][j], slope.scale, grad[quad][j]);
    }
    if (slope.less == 0.0f) return;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
        for (int j = 0; j < 4; ++j) grad[quad][j] -= slope.less;
    }
}

// The gradient in its plain form: of the CE term alone, or of a half-precision row whose KL is not small. The label's
// entry is written over by the thread that wrote it.
template <class T, bool kTeacher>
__device__ void finish_plain(const Walk<T, kTeacher>& walk, const Task& task, const Stats& stats, const Hard& hard,
                             float label_logit) {
    constexpr int kQuads = Format<T>::kQuads;
    const Base student = base_of(stats.student_max, task);
    const Base teacher = base_of(stats.teacher_max, task);
    const HardSlope slope = hard_slope(task, hard, hard.sum);
    const float per_student = kTeacher ? task.kl_weight * task.slope / stats.student_sum : 0.0f;
    const float per_teacher = kTeacher ? task.kl_weight * task.slope / stats.teacher_sum : 0.0f;
    walk.each_word([&](const Pair& words, int v, auto plain) {
        const auto unpack = [&](int quad, Quad& s) { walk.numbers(words.student, v, quad, plain, s); };
        Quad soft[kQuads], grad[kQuads];
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
            Quad t;
            unpack(quad, soft[quad]);
            if (kTeacher) walk.numbers(words.teacher, v, quad, plain, t);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                soft[quad][j] = exp2_approx(exponent(soft[quad][j], task.soft_scale, student.soft));
                grad[quad][j] = 0.0f;
                if (kTeacher) {
                    const float target = exp2_approx(exponent(t[j], task.soft_scale, teacher.soft));
                    grad[quad][j] = fmaf(-target, per_teacher, soft[quad][j] * per_student);
                }
            }
        }
        if (task.hard) add_hard_gradient<Format<T>::kHalf>(unpack, soft, task.power, student.hard, slope, grad);
        uint4 out{};
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) Format<T>::pack(grad[quad], quad, out);
        walk.store(v, plain, out);
    });
    if (!walk.owns_label(task)) return;
    float own = slope.own;
    if (kTeacher && task.soft) {
        const float t = load_number(walk.teacher + task.label);
        own += exp2_approx(exponent(label_logit, task.soft_scale, student.soft)) * per_student -
               exp2_approx(exponent(t, task.soft_scale, teacher.soft)) * per_teacher;
    }
    store_number(walk.grad + task.label, own);
}

// How teacher and student of a row compare, relative to their maxima.
struct Soft {
    float student_max, teacher_max;
    float shift, shift_rest;             // max t - max s, and what its rounding lost
    bool far_apart;                      // the shift is so large that t - s must not be rounded
    float student_share, teacher_share;  // what turns exponentials into probabilities
    float drift;                         // D = log(sum_c exp((t_c - max t) / T) / sum_c exp((s_c - max s) / T))
};

// a - b = the result + rest, exactly.
__device__ __forceinline__ float difference(float a, float b, float& rest) {
    const float result = a - b;
    const float other = result - a;
    rest = (a - (result - other)) - (b + other);
    return result;
}

// t - s less the shift. Rounding t - s costs a unit in the last place of it, which matters only where the shift is
// large and the logits have digits enough to show it: differences of half-precision numbers of one size are exact.
template <bool kHalf, int kCount>
__device__ __forceinline__ void gaps(const Soft& soft, const float (&s)[kCount], const float (&t)[kCount],
                                     float (&gap)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) gap[j] = (t[j] - s[j]) - soft.shift;
    if constexpr (!kHalf) {
        if (!soft.far_apart) return;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            float rest;
            difference(t[j], s[j], rest);
            gap[j] += rest == rest ? rest - soft.shift_rest : 0.0f;
        }
    }
}

__device__ inline Soft soft_of(const Task& task, const Stats& stats) {
    const float student_excess = soft_excess(task, stats);
    const float teacher_excess = exponent(stats.teacher_max, task.soft_scale, base_of(stats.teacher_max, task).soft);
    Soft soft;
    soft.student_max = stats.student_max;
    soft.teacher_max = stats.teacher_max;
    soft.shift = difference(stats.teacher_max, stats.student_max, soft.shift_rest);
    soft.far_apart = fabsf(soft.shift) > 8.0f;
    soft.student_share = 1.0f / (stats.student_sum * exp2_approx(-student_excess));
    soft.teacher_share = 1.0f / (stats.teacher_sum * exp2_approx(-teacher_excess));
    soft.drift = kLn2 * ((log2f(stats.teacher_sum / stats.student_sum) - teacher_excess) + student_excess);
    return soft;
}

// KL from the sums of the first pass: its error is about 1e-7, whatever its size. NaN where a class is masked.
__device__ __forceinline__ float plain_kl(const Stats& stats) {
    return kLn2 * (stats.gap_sum / stats.teacher_sum - log2f(stats.teacher_sum / stats.student_sum));
}

constexpr float kSmallKl = 0.05f;

// Whether D must be better than the sums of the first pass give it: for a small KL, and where most of the probability
// is one class's, whose 1 hides the rest of the sum.
__device__ __forceinline__ bool needs_recentring(const Soft& soft, float kl) {
    return !(kl >= kSmallKl) || fminf(soft.student_share, soft.teacher_share) > 0.8f;
}

// Whether the sums mean anything: no logit is NaN or +inf, and not all are -inf.
template <bool kTeacher>
__device__ __forceinline__ bool is_sound(const Stats& stats) {
    const bool student = fabsf(stats.student_max) < kInfinity && stats.student_sum > 0.0f;
    return student && (!kTeacher || (fabsf(stats.teacher_max) < kInfinity && stats.teacher_sum > 0.0f));
}

// Exponentials relative to the maximum.
__device__ __forceinline__ void exponentials(const Quad& x, float top, float scale, Quad& e) {
#pragma unroll
    for (int j = 0; j < 4; ++j) e[j] = exp2_approx((x[j] - top) * scale);
}

// p (exp(u) - 1) = q - p, and p (exp(u) - 1 - u).
struct Excess {
    float slope, loss;
};

// Of a class with probabilities q and p whose logits are `gap` apart.
__device__ __forceinline__ Excess excess_of(const Soft& soft, float slope, float gap, float q, float p) {
    // Where the teacher excludes a class, 0 times infinity must not come about.
    const float u = fminf(fmaf(gap, -slope, soft.drift), 1e30f);
    const float linear = p * u;
    const float near = p * (u * u * remainder_series(u));
    const float far = q - p;
    const bool close = fabsf(u) <= 1.0f;
    return Excess{close ? linear + near : far, close ? near : far - linear};
}

// The excesses of some classes, from their logits.
template <bool kHalf, int kCount>
__device__ __forceinline__ void excesses(const Soft& soft, const Task& task, const float (&s)[kCount],
                                         const float (&t)[kCount], Excess (&out)[kCount]) {
    float gap[kCount];
    gaps<kHalf>(soft, s, t, gap);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const float q = exp2_approx((s[j] - soft.student_max) * task.soft_scale) * soft.student_share;
        const float p = exp2_approx((t[j] - soft.teacher_max) * task.soft_scale) * soft.teacher_share;
        out[j] = excess_of(soft, task.slope, gap[j], q, p);
    }
}

// Makes D exact: with D + e in its place, sum_c p_c (exp(u_c) - 1) is exp(e) - 1 instead of 0.
template <class T>
__device__ void recentre(Team& team, const Walk<T, true>& walk, const Task& task, Soft& soft) {
    float excess = 0.0f;
    walk.each_word([&](const Pair& words, int v, auto plain) {
#pragma unroll
        for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
            Quad s, t;
            walk.numbers(words.student, v, quad, plain, s);
            walk.numbers(words.teacher, v, quad, plain, t);
            Excess parts[4];
            excesses<Format<T>::kHalf>(soft, task, s, t, parts);
            excess += (parts[0].slope + parts[1].slope) + (parts[2].slope + parts[3].slope);
        }
    });
    soft.drift -= log1pf(team_sum(team, excess));
}

// KL of the row, in every thread, and the gradient of both terms, with all care.
template <class T>
__device__ float finish_close(Team& team, const Walk<T, true>& walk, const Task& task, const Stats& stats,
                              const Soft& soft, const Hard& hard, float label_logit) {
    const HardSlope slope = hard_slope(task, hard, hard.sum * exp2_approx(-hard_excess(task, stats)));
    const float soft_slope = task.kl_weight * task.slope;
    float loss = 0.0f;
    walk.each_word([&](const Pair& words, int v, auto plain) {
        uint4 out{};
#pragma unroll
        for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
            Quad s, t, grad, part;
            Excess excess[4];
            walk.numbers(words.student, v, quad, plain, s);
            walk.numbers(words.teacher, v, quad, plain, t);
            excesses<Format<T>::kHalf>(soft, task, s, t, excess);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float e = task.hard ? exp2_approx((s[j] - soft.student_max) * kLog2e) : 0.0f;
                // c (q - p), never c q - c p: equal logits give exactly 0.
                grad[j] = fmaf(soft_slope, excess[j].slope, fmaf(e, slope.scale, -slope.less));
                part[j] = excess[j].loss;
            }
            loss += sum_of(part);
            Format<T>::pack(grad, quad, out);
        }
        if (walk.grad != nullptr) walk.store(v, plain, out);
    });
    if (walk.grad != nullptr && walk.owns_label(task)) {
        float own = slope.own;
        if (task.soft) {
            const float one_s[1] = {label_logit}, one_t[1] = {load_number(walk.teacher + task.label)};
            Excess one[1];
            excesses<Format<T>::kHalf>(soft, task, one_s, one_t, one);
            own += soft_slope * one[0].slope;
        }
        store_number(walk.grad + task.label, own);
    }
    return team_sum(team, loss);
}

}  // namespace kd::cuda
