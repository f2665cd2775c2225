// A thread's way through one row: every size-th word of student and teacher. The first `held` of its words stay in
// shared memory after the first pass, where nobody but this thread reads them; the others are read from memory again.
#pragma once

#include <type_traits>

#include "task.cuh"
#include "vector.cuh"

namespace kd::cuda {

constexpr int kAhead = 8;  // words of each tensor that are on their way while the first pass works

// Stands in for what lies outside the row in its first and last word: so low that no exponential notices, yet finite,
// since -inf is a mask.
constexpr float kOutside = -1e30f;

struct Pair {
    uint4 student, teacher;
};

template <class T, bool kTeacher>
struct Walk {
    static constexpr int kWidth = Format<T>::kWidth;
    static constexpr int kQuads = Format<T>::kQuads;

    const T* student;
    const T* teacher;
    T* grad;
    Frame frame;
    bool teacher_fits, grad_fits;  // lie in memory as the student does
    int rank, size, steps;
    uint4* chip;  // this thread's first word in shared memory
    int held;
    int fetch_end;               // steps whose words are held
    int plain_begin, plain_end;  // of them, those whose words are wholly inside the row

    __device__ Walk(const Team& team, int held_words, const T* student_row, const T* teacher_row, int classes) {
        student = student_row;
        teacher = teacher_row;
        grad = nullptr;
        frame = frame_of(student, classes);
        teacher_fits = kTeacher && offset_in_word(teacher) == frame.pad;
        grad_fits = false;
        rank = team.rank();
        size = team.size();
        steps = rank < frame.words ? (frame.words - 1 - rank) / size + 1 : 0;
        chip = reinterpret_cast<uint4*>(shared_memory() + kSlotBytes) +
               int(threadIdx.y) * held_words * (kTeacher ? 2 : 1) * int(blockDim.x) + int(threadIdx.x);
        held = held_words;
        plain_begin = rank == 0 && frame.pad > 0 ? 1 : 0;
        const bool ragged = rank + (steps - 1) * size == frame.words - 1 && (frame.pad + classes) % kWidth != 0;
        fetch_end = min(held, steps);
        plain_end = min(held, steps - (ragged ? 1 : 0));
    }

    // Where the gradient goes, if it is wanted.
    __device__ void place_grad(const Problem& problem, std::int64_t row) {
        if (problem.grad == nullptr) return;
        grad = static_cast<T*>(problem.grad) + row * problem.grad_stride;
        grad_fits = offset_in_word(grad) == frame.pad;
    }

    // The same way with another teacher; nothing of the former one may be held.
    __device__ void replace_teacher(const T* row) {
        teacher = row;
        teacher_fits = offset_in_word(row) == frame.pad;
    }

    __device__ uint4* student_chip(int step) const { return chip + step * int(blockDim.x); }
    __device__ uint4* teacher_chip(int step) const { return chip + (held + step) * int(blockDim.x); }

    // Starts to bring a step's words into shared memory, if they are to stay there.
    __device__ __forceinline__ void fetch(int step) const {
        if (step < fetch_end) {
            const int v = rank + step * size;
            fetch_word(student, true, v, student_chip(step));
            if (kTeacher) fetch_word(teacher, teacher_fits, v, teacher_chip(step));
        }
        close_copies();
    }

    __device__ void fetch_word(const T* row, bool aligned, int v, uint4* to) const {
        if (aligned && whole<T>(frame, v)) {
            copy_async(to, word_at(row, frame, v));
        } else {
            *to = gather_word(row, frame, v);
        }
    }

    // A pair of held words, from the place of the student's.
    __device__ __forceinline__ Pair words_at(const uint4* place) const {
        Pair words{};
        words.student = *place;
        if (kTeacher) words.teacher = place[held * int(blockDim.x)];
        return words;
    }

    __device__ Pair any_words(int step, int v) const {
        if (step < held) return words_at(student_chip(step));
        Pair words{};
        words.student = load_word(student, frame, v, true);
        if (kTeacher) words.teacher = load_word(teacher, frame, v, teacher_fits);
        return words;
    }

    // Calls visit(words, v, plain) for every word of this thread, the number of which is v. `plain` says at compile
    // time that the word is held and wholly inside the row: the usual case is spared all questions.
    template <class Visit>
    __device__ __forceinline__ void each_word(const Visit& visit) const {
        const uint4* place = student_chip(plain_begin);
        int v = rank + plain_begin * size;
#pragma unroll 1
        for (int left = plain_end - plain_begin; left > 0; --left) {
            visit(words_at(place), v, std::true_type{});
            place += blockDim.x;
            v += size;
        }
        each_other_word(visit);
    }

    template <class Visit>
    __device__ __forceinline__ void each_other_word(const Visit& visit) const {
        const int plain = plain_end > plain_begin ? plain_end - plain_begin : 0;
#pragma unroll 1
        for (int i = 0; i < steps - plain; ++i) {
            const int step = i < plain_begin ? i : i + plain;
            visit(any_words(step, rank + step * size), rank + step * size, std::false_type{});
        }
    }

    // Four logits of word v as numbers; those outside the row become kOutside.
    template <class Plain>
    __device__ __forceinline__ void numbers(const uint4& word, int v, int quad, Plain, Quad& x) const {
        Format<T>::unpack(word, quad, x);
        if (Plain::value || whole<T>(frame, v)) return;
        const int first = first_of<T>(frame, v) + 4 * quad;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (!inside(frame, first + j)) x[j] = kOutside;
        }
    }

    template <class Plain>
    __device__ __forceinline__ void store(int v, Plain, const uint4& word) const {
        if (Plain::value && grad_fits) {
            store_streaming(reinterpret_cast<uint4*>(grad + first_of<T>(frame, v)), word);
        } else {
            store_word(grad, frame, v, grad_fits, word);
        }
    }

    // The word that holds the label (-1: none), and whether it is one of this thread's.
    __device__ int label_word(const Task& task) const {
        return task.label < 0 ? -1 : (task.label + frame.pad) / kWidth;
    }
    __device__ bool owns_label(const Task& task) const { return task.hard && label_word(task) % size == rank; }

    __device__ void fill_grad(float value) const {
        if (grad == nullptr) return;
        const Quad x = {value, value, value, value};
        uint4 filled{};
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) Format<T>::pack(x, quad, filled);
        for (int step = 0; step < steps; ++step) store_word(grad, frame, rank + step * size, grad_fits, filled);
    }
};

__device__ __forceinline__ float sum_of(const Quad& x) { return (x[0] + x[1]) + (x[2] + x[3]); }

template <int kQuads>
__device__ __forceinline__ float sum_of(const Quad (&x)[kQuads]) {
    float sum = 0.0f;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) sum += sum_of(x[quad]);
    return sum;
}

// Clears the entry at `lane`, which is not known at compile time, without sending the numbers to memory.
template <int kQuads>
__device__ __forceinline__ void clear(Quad (&x)[kQuads], int lane) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
        for (int j = 0; j < 4; ++j) x[quad][j] = 4 * quad + j == lane ? 0.0f : x[quad][j];
    }
}

}  // namespace kd::cuda
