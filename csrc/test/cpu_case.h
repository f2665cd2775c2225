// One call of the CPU kernels: its data, in memory that ends where the data ends, and what the reference says about it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "half.h"
#include "loss_reference.h"

namespace kd::test {

enum class Mask {
    kNone,
    kTeacher,          // -inf in the teacher
    kStudent,          // -inf in the student
    kBoth,             // -inf in both
    kLowest,           // the lowest finite numbers, in the teacher
    kNaN,              // in the student
    kTeacherNaN,       // in the teacher
    kInfinity,         // +inf in the student
    kTeacherInfinity,  // +inf in the teacher
    kAll,              // a student of -inf
    kLabel,            // -inf at the label
    kTemperature,      // a row temperature that is NaN
};

enum class Order { kRandom, kAscending, kDescending, kLate };  // kLate: the largest comes last

struct Case {
    const char* name = "";
    int dtype = KD_FLOAT32;
    std::int64_t rows = 3, classes = 10;
    double temperature = 1;
    std::int64_t offset = 0;   // elements before the first row
    std::int64_t padding = 0;  // elements between rows
    bool in_place = false, with_grad = true, row_tensors = false, one_teacher_row = false, with_lse = false;
    bool labelled = true, long_labels = true, long_indices = true;
    double share = 1;
    unsigned flags = 0;
    int teacher_count = 1;
    std::int64_t listed = 0;
    int tail = KD_TAIL_RENORMALISE;
    double spread = 1;
    double nearness = -1;  // of teacher and student; negative: they have nothing in common
    double shift = 0;
    double far = 0;  // how much deeper the first 1024 classes lie in the teacher
    double grad_scale = 1;
    Order order = Order::kRandom;
    Mask mask = Mask::kNone;
    std::uint32_t seed = 1;

    // Whether rounded logarithms are subtracted, so that the error is relative to them and not to the loss.
    bool subtracts() const { return teacher_count > 1 || listed > 0 || with_lse || share != 1 || row_tensors; }

    // How far rounding may carry the loss away, relative to the numbers that it is a difference of.
    double loss_slack() const { return subtracts() ? 4e-7 : nearness >= 0 && nearness <= 0.1 ? 2e-9 : 1e-7; }

    // The same for the gradient: that of two terms is a difference of their gradients.
    double gradient_slack() const { return subtracts() ? 4e-7 : labelled ? 1.2e-7 : 2e-9; }
};

inline int cases = 0;

[[noreturn]] inline void fail(const Case& c, const char* what, double got, double want) {
    std::printf("%s on %s: %s is %.17g, expected %.17g (dtype %d, %lld x %lld, T %g, ", c.name, kd_cpu_isa(), what, got,
                want, c.dtype, (long long)c.rows, (long long)c.classes, c.temperature);
    std::printf("seed %u, mask %d, listed %lld, tail %d)\n", c.seed, int(c.mask), (long long)c.listed, c.tail);
    std::exit(1);
}

// ---- memory --------------------------------------------------------------------------------------------------------

inline std::size_t size_of(int dtype) { return dtype == KD_FLOAT64 ? 8 : dtype == KD_FLOAT32 ? 4 : 2; }

inline double rounded(double x, int dtype) {
    switch (dtype) {
        case KD_FLOAT64: return x;
        case KD_FLOAT32: return float(x);
        case KD_BFLOAT16: return bf16_to_float(float_to_bf16(float(x)));
        default: return f16_to_float(float_to_f16(float(x)));
    }
}

// Rows of logits or gradients that begin `offset` elements into an allocation and end with it.
struct Matrix {
    std::vector<char> bytes;
    int dtype = KD_FLOAT32;
    std::int64_t offset = 0, stride = 0;

    static constexpr double kBetween = 7;  // what lies before and between the rows

    Matrix() = default;
    Matrix(std::size_t rows, std::int64_t columns, int type, std::int64_t first, std::int64_t padding)
        : dtype(type), offset(first), stride(columns + padding) {
        const std::int64_t count = rows == 0 ? 0 : std::int64_t(rows - 1) * stride + columns;
        bytes = std::vector<char>(std::size_t(offset + count) * size_of(dtype));
        for (std::size_t i = 0; i < bytes.size() / size_of(dtype); ++i) put(i, kBetween);
    }

    void put(std::size_t i, double x) {
        const float single = float(x);
        const std::uint32_t bits = dtype == KD_BFLOAT16 ? float_to_bf16(single) : float_to_f16(single);
        const void* const from = dtype == KD_FLOAT64   ? static_cast<const void*>(&x)
                                 : dtype == KD_FLOAT32 ? static_cast<const void*>(&single)
                                                       : &bits;
        std::memcpy(&bytes[i * size_of(dtype)], from, size_of(dtype));
    }
    double get(std::size_t i) const {
        const char* const from = &bytes[i * size_of(dtype)];
        double x;
        std::uint32_t bits = 0;
        if (dtype == KD_FLOAT64) return std::memcpy(&x, from, 8), x;
        std::memcpy(&bits, from, size_of(dtype));
        if (dtype == KD_FLOAT32) return float_from_bits(bits);
        return dtype == KD_BFLOAT16 ? bf16_to_float(bits) : f16_to_float(bits);
    }
    std::size_t place(std::size_t row, std::int64_t column) const {
        return std::size_t(offset + std::int64_t(row) * stride + column);
    }
    void fill_row(std::size_t row, const Numbers& values) {
        for (std::size_t i = 0; i < values.size(); ++i) put(place(row, std::int64_t(i)), values[i]);
    }
    double operator()(std::size_t row, std::int64_t column) const { return get(place(row, column)); }
    void* begin() { return bytes.data() + std::size_t(offset) * size_of(dtype); }
};

// Class indices of 4 or 8 bytes.
struct Integers {
    std::vector<std::int64_t> wide;
    std::vector<std::int32_t> narrow;

    Integers() = default;
    Integers(const std::vector<std::int64_t>& values, bool is_long)
        : wide(is_long ? values : std::vector<std::int64_t>()) {
        if (!is_long) narrow = std::vector<std::int32_t>(values.begin(), values.end());
    }
    const void* begin() const { return wide.empty() ? static_cast<const void*>(narrow.data()) : wide.data(); }
};

// ---- data ----------------------------------------------------------------------------------------------------------

class Noise {
  public:
    explicit Noise(std::uint32_t seed) : state_(seed * 2654435761u + 12345u) {}
    std::uint32_t bits() {
        state_ = state_ * 1664525u + 1013904223u;
        return state_ >> 8;
    }
    double operator()() {  // roughly normal
        double sum = 0;
        for (int i = 0; i < 6; ++i) sum += double(bits()) / double(1 << 24) - 0.5;
        return sum * 1.41421356;
    }

  private:
    std::uint32_t state_;
};

constexpr std::int64_t kIgnored = -100;

// The numbers of a case, row by row.
struct Data {
    std::vector<RowCase> rows;
    std::vector<std::int64_t> labels;
    Numbers temperature, ce_weight, kl_weight, share;
    std::vector<bool> broken;  // rows that must be NaN
};

inline double trend(const Case& c, std::int64_t i) {
    const double along = double(i) / double(c.classes);
    switch (c.order) {
        case Order::kAscending: return 40 * along;
        case Order::kDescending: return -40 * along;
        case Order::kLate: return i + 1 == c.classes ? 30 : 0;
        default: return 0;
    }
}

inline RowCase random_row(const Case& c, Noise& noise) {
    RowCase row;
    for (std::int64_t i = 0; i < c.classes; ++i) {
        row.student.push_back(rounded(c.spread * noise() + trend(c, i), c.dtype));
    }
    for (int k = 0; k < c.teacher_count; ++k) {
        Numbers all;
        for (std::int64_t i = 0; i < c.classes; ++i) {
            const double base = c.nearness < 0 ? c.spread * noise() + trend(c, i) : row.student[std::size_t(i)];
            const double off = c.nearness > 0 ? c.nearness * noise() : 0;
            all.push_back(rounded(base + off + c.shift - (i < 1024 ? c.far : 0), c.dtype));
        }
        row.teachers.push_back(all);
        row.teacher_weights.push_back((k + 1) * 2.0 / (c.teacher_count * (c.teacher_count + 1)));
    }
    return row;
}

// Replaces the teacher by the few classes it lists.
inline void list_some(const Case& c, Noise& noise, RowCase& row) {
    while (std::int64_t(row.listed.size()) < c.listed) {
        std::int64_t next = noise.bits() % c.classes;
        while (std::find(row.listed.begin(), row.listed.end(), next) != row.listed.end()) next = (next + 1) % c.classes;
        row.listed.push_back(next);
    }
    Numbers listed;
    for (std::int64_t i : row.listed) listed.push_back(row.teachers[0][std::size_t(i)]);
    row.teachers[0] = listed;
    row.tail = c.tail;
}

inline void mask(const Case& c, RowCase& row, std::int64_t label, double* temperature, bool* broken) {
    const std::size_t teacher_class = row.listed.empty() ? std::size_t(c.classes - 1) : 0;
    const std::size_t student_class = row.listed.empty() ? teacher_class : std::size_t(row.listed[0]);
    const Mask m = c.mask;
    const auto teachers = [&](double value) {
        for (Numbers& t : row.teachers) t[teacher_class] = value;
        if (!(value < kInf)) row.teacher_lse = value;
    };
    if (m == Mask::kTeacher || m == Mask::kBoth) teachers(-kInf);
    if (m == Mask::kStudent || m == Mask::kBoth) row.student[student_class] = -kInf;
    if (m == Mask::kLowest) teachers(rounded(c.dtype == KD_FLOAT16 ? -65504.0 : -3.38e38, c.dtype));
    if (m == Mask::kNaN) row.student[student_class] = std::nan("");
    if (m == Mask::kTeacherNaN) teachers(std::nan(""));
    if (m == Mask::kInfinity) row.student[student_class] = kInf;
    if (m == Mask::kTeacherInfinity) teachers(kInf);
    if (m == Mask::kAll) row.student.assign(row.student.size(), -kInf);
    if (m == Mask::kLabel) row.student[std::size_t(label)] = -kInf;
    if (m == Mask::kTemperature) *temperature = std::nan("");
    *broken = m == Mask::kNaN || m == Mask::kTeacherNaN || m == Mask::kInfinity || m == Mask::kTeacherInfinity ||
              m == Mask::kAll || m == Mask::kTemperature;
    if (row.listed.size() == 1 && row.tail == KD_TAIL_RENORMALISE) {  // all that it lists is excluded
        *broken = *broken || m == Mask::kTeacher || m == Mask::kBoth;
    }
}

inline Data random_data(const Case& c) {
    Noise noise(c.seed);
    Data data;
    for (std::int64_t i = 0; i < c.rows; ++i) {
        RowCase row = random_row(c, noise);
        if (c.one_teacher_row && i > 0) row.teachers = data.rows[0].teachers;
        const double wave = double(i % 4) / 4;
        data.temperature.push_back(c.row_tensors ? c.temperature + wave : c.temperature);
        data.ce_weight.push_back(c.row_tensors ? (i % 4 == 3 ? 0 : 0.5 + wave) : 1);
        data.kl_weight.push_back(c.row_tensors ? (i % 4 == 1 ? 0 : 1.5 - wave) : 1);
        data.share.push_back(c.row_tensors ? 1 - wave : c.share);
        row.temperature = data.temperature.back();
        if (c.teacher_count > 0) row.teacher_lse = double(log_sum_exp(row.teachers[0], row.temperature));
        if (c.listed > 0 && c.teacher_count > 0) list_some(c, noise, row);
        const std::int64_t label = i % 3 == 2 ? kIgnored : std::int64_t(noise.bits() % std::uint32_t(c.classes));
        bool broken = false;
        if (c.mask != Mask::kNone && i == 1) mask(c, row, label, &data.temperature.back(), &broken);
        data.labels.push_back(label);
        data.broken.push_back(broken);
        data.rows.push_back(row);
    }
    return data;
}

}  // namespace kd::test

#include "cpu_check.h"
