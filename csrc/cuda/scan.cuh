// The first pass over a row: it gathers the sums of stats.cuh.
#pragma once

#include "stats.cuh"
#include "walk.cuh"

namespace kd::cuda {

// Makes hard exponentials of soft ones. `unpack(quad, s)` fills in the logits, for where they are not powers.
template <bool kHalf, int kQuads, class Unpack>
__device__ __forceinline__ void hard_exponentials(const Unpack& unpack, Quad (&e)[kQuads], int power, float base) {
    if (power == 0) {
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
            unpack(quad, e[quad]);
#pragma unroll
            for (int j = 0; j < 4; ++j) e[quad][j] = exp2_approx(exponent(e[quad][j], kLog2e, base));
        }
    }
    if constexpr (kHalf) {
        for (int squared = 2; squared <= power; squared *= 2) {
#pragma unroll
            for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
                for (int j = 0; j < 4; ++j) e[quad][j] *= e[quad][j];
            }
        }
    }
}

// Each thread keeps bases of its own and moves them only when a logit exceeds them by far, which almost never happens
// after its first word: until then an exponential may grow to 2^20.
template <class T, bool kTeacher>
struct Scan {
    static constexpr int kQuads = Format<T>::kQuads;

    const Task& task;
    const int label_word;
    const float label_logit;
    Stats stats = Stats::nothing();
    Base student{0.0f, 0.0f}, teacher{0.0f, 0.0f};
    float student_limit = -kInfinity, teacher_limit = -kInfinity;

    __device__ Scan(const Task& row_task, int word_of_label, float logit)
        : task(row_task), label_word(word_of_label), label_logit(logit) {}

    // How far a logit may exceed the one that the base was made of.
    __device__ float slack() const {
        return 20.0f / (task.power == 0 ? fmaxf(task.soft_scale, kLog2e) : task.soft_scale);
    }

    // What exceeds the limit, or is NaN, becomes the new base.
    __device__ __forceinline__ void watch_student(float top) {
        stats.student_max = max_nan(stats.student_max, top);
        if (top <= student_limit) return;
        const Base to = base_of(top, task);
        rebase_student(stats, student_limit == -kInfinity, student, to, task);
        student = to;
        student_limit = top + slack();
    }

    __device__ __forceinline__ void watch_teacher(float top) {
        stats.teacher_max = max_nan(stats.teacher_max, top);
        if (top <= teacher_limit) return;
        const Base to = base_of(top, task);
        rebase_teacher(stats, teacher_limit == -kInfinity, teacher.soft, to.soft);
        teacher = to;
        teacher_limit = top + slack();
    }

    template <class Plain>
    __device__ __forceinline__ void add(const Walk<T, kTeacher>& walk, const Pair& words, int v, Plain plain) {
        watch_student(Format<T>::peak(words.student));
        if (kTeacher) watch_teacher(Format<T>::peak(words.teacher));
        Quad soft[kQuads];
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
            Quad x;
            walk.numbers(words.student, v, quad, plain, x);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[j] = exponent(x[j], task.soft_scale, student.soft);
                soft[quad][j] = exp2_approx(x[j]);
            }
            // In the teacher's order of additions: equal rows have equal sums.
            stats.student_sum += sum_of(soft[quad]);
            if (kTeacher) {
                Quad t;
                walk.numbers(words.teacher, v, quad, plain, t);
                add_teacher(x, t);
            }
        }
        if (task.hard) add_hard(walk, words.student, v, plain, soft);
    }

    __device__ __forceinline__ void add_teacher(const Quad& x, Quad& t) {
        Quad gap;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float y = exponent(t[j], task.soft_scale, teacher.soft);
            t[j] = exp2_approx(y);
            gap[j] = t[j] * (y - x[j]);
        }
        stats.teacher_sum += sum_of(t);
        stats.gap_sum += sum_of(gap);
    }

    // Given the soft exponentials, which it spoils.
    template <class Plain>
    __device__ __forceinline__ void add_hard(const Walk<T, kTeacher>& walk, const uint4& word, int v, Plain plain,
                                             Quad (&hard)[kQuads]) {
        const auto unpack = [&](int quad, Quad& s) { walk.numbers(word, v, quad, plain, s); };
        const int label_lane = v == label_word ? task.label - first_of<T>(walk.frame, v) : -1;
        hard_exponentials<Format<T>::kHalf>(unpack, hard, task.power, student.hard);
        if (label_lane >= 0) clear(hard, label_lane);
        stats.other_sum += sum_of(hard);
        if (task.other != 0.0f) stats.other_logits += logits_beside(walk, word, v, label_lane);
    }

    // Sum of s_c - s_y over a word's classes that are not the label; of s_c where s_y is -inf.
    __device__ float logits_beside(const Walk<T, kTeacher>& walk, const uint4& word, int v, int label_lane) const {
        const int first = first_of<T>(walk.frame, v);
        const float origin = label_logit == -kInfinity ? 0.0f : label_logit;
        float sum = 0.0f;
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
            Quad s;
            Format<T>::unpack(word, quad, s);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int lane = 4 * quad + j;
                sum += lane != label_lane && inside(walk.frame, first + lane) ? s[j] - origin : 0.0f;
            }
        }
        return sum;
    }
};

// The row's sums, relative to the bases of its maxima, in every thread.
template <class T, bool kTeacher>
__device__ Stats scan(Team& team, const Walk<T, kTeacher>& walk, const Task& task, float label_logit) {
    Scan<T, kTeacher> sums(task, walk.label_word(task), label_logit);
    for (int step = 0; step < walk.plain_begin + kAhead; ++step) walk.fetch(step);
    const uint4* place = walk.student_chip(walk.plain_begin);
    int v = walk.rank + walk.plain_begin * walk.size;
#pragma unroll 1
    for (int step = walk.plain_begin; step < walk.plain_end; ++step) {
        walk.fetch(step + kAhead);
        wait_copies<kAhead>();
        sums.add(walk, walk.words_at(place), v, std::true_type{});
        place += blockDim.x;
        v += walk.size;
    }
    // These were not copied asynchronously, or are not held at all.
    walk.each_other_word([&](const Pair& words, int other, auto plain) { sums.add(walk, words, other, plain); });
    Stats& stats = sums.stats;
    rebase<kTeacher>(stats, sums.student, sums.teacher, stats.student_max, stats.teacher_max, task);
    return all_reduce(team, stats, Stats::nothing(), JoinStats<kTeacher>{task});
}

}  // namespace kd::cuda
