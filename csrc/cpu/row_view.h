// What a pass over one row reads, keeps and finds.
#pragma once

#include "vector_math.h"

namespace {

constexpr std::int64_t kBlock = 1024;

// How the hard term's exp(s) is had from exp(s / T): not wanted, its T-th power for T up to 4, or computed by itself.
enum HardTerm { kNoHard = 0, kOwnExponential = 5 };

inline int hard_term(double temperature) {
    const int whole = int(smaller(5.0, temperature));  // 5 for NaN
    return whole >= 1 && whole <= 4 && double(whole) == temperature ? whole : int(kOwnExponential);
}

template <int kHard>
inline Vec hard_power(Vec e) {
    if constexpr (kHard == 2) return e * e;
    if constexpr (kHard == 3) return e * e * e;
    if constexpr (kHard == 4) return (e * e) * (e * e);
    return e;
}

// Views of one row. next_* are where the following row begins (or this one's own start): it is called into the cache
// while this row is computed.
template <class Student, class Teacher>
struct FastRow {
    const Student* student;
    const Teacher* teacher;
    Student* grad;
    const Student* next_student;
    const Teacher* next_teacher;
    std::int64_t classes;
    std::int64_t label;  // -1: no hard term
    double temperature;
    const double* teacher_lse;  // of this row, or null
    bool stream;                // write the gradient past the caches
};

struct BlockOrigin {
    double student;
    double teacher;
    double hard;
    bool operator==(const BlockOrigin& other) const {
        return student == other.student && teacher == other.teacher && hard == other.hard;
    }
};

// Factors of what a gradient is made of.
struct TermWeights {
    double soft = 0;    // of softmax(s / T)
    double target = 0;  // of softmax(t / T), taken off
    double hard = 0;    // of softmax(s)
    double level = 0;   // a constant, taken off everywhere but at the label
    double label = 0;   // a constant, added at the label
};

// One thread's space for a row: exponentials of all classes, and where each block counted from.
struct FastScratch {
    float* soft;
    float* target;
    float* hard;
    float* gap;  // of near_row.h
    BlockOrigin* blocks;
};

// What one pass over the row finds. Sums are relative to the origins as they were at the end.
struct RowSums {
    Origin student;
    Origin teacher;
    Origin hard;
    double soft = 0;      // sum of exp(s / T)
    double target = 0;    // sum of exp(t / T)
    double gap = 0;       // sum of exp(t / T) times the difference of exponents, teacher minus student
    double others = 0;    // sum of exp(s) over all classes but the label
    double exponents = 0; // sum of the student's exponents over all classes but the label (label smoothing)
};

}  // namespace
