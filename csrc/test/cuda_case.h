// One call of the CUDA kernels, its data, and what the reference says about it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "half.h"
#include "loss_reference.h"

namespace kd::test {

enum class Mask {
    kNone,
    kTeacher,     // -inf in the teacher
    kStudent,     // -inf in the student
    kBoth,        // -inf in both
    kLowest,      // the lowest finite number in the teacher
    kUnderflow,   // the same, and -inf in the student
    kNaN,         // in the student
    kTeacherNaN,  // in the teacher
    kInfinity,    // +inf in the student
    kAll,         // a student of -inf
    kBadLabel,    // a label outside the classes
    kLabel,       // -inf at the label
    kLse,         // NaN as the teacher's log-sum-exp
};

struct Case {
    const char* name = "";
    int device = 0;
    int dtype = KD_FLOAT32;
    std::int64_t rows = 3, classes = 10;
    double temperature = 1;
    std::int64_t student_offset = 0, teacher_offset = 0, grad_offset = 0;  // elements from a 16-byte boundary
    std::int64_t padding = 0;                                              // elements between rows
    bool in_place = false, with_grad = true, per_row = false, row_tensors = false;
    bool labelled = true, long_labels = true, long_indices = true;
    double share = 1;
    unsigned flags = 0;
    int teacher_count = 1;
    std::int64_t listed = 0;
    int tail = KD_TAIL_RENORMALISE;
    double spread = 1;
    double nearness = -1;  // of teacher and student; negative: they have nothing in common
    double shift = 0;
    bool concentrated = false;  // nearly all probability on class 0, of both; they differ in class 1
    bool tight = false;         // whether the loss must keep its digits however small it is
    bool exactly_zero = false;  // whether loss and gradient must be 0
    Mask mask = Mask::kNone;
    std::uint32_t seed = 1;
};

inline int cases = 0;

[[noreturn]] inline void fail(const Case& c, const char* what, double got, double want) {
    std::printf(
        "%s: %s is %.9g, expected %.9g (device %d, dtype %d, %lld x %lld, T %g, seed %u, mask %d, listed %lld)\n",
        c.name, what, got, want, c.device, c.dtype, (long long)c.rows, (long long)c.classes, c.temperature, c.seed,
        int(c.mask), (long long)c.listed);
    std::exit(1);
}

inline void require(bool good, const char* what) {
    if (good) return;
    std::printf("%s: %s\n", what, kd_cuda_error());
    std::exit(1);
}

// ---- memory --------------------------------------------------------------------------------------------------------

inline std::size_t size_of(int dtype) { return dtype == KD_FLOAT32 ? 4 : 2; }

inline double rounded(double x, int dtype) {
    if (dtype == KD_BFLOAT16) return bf16_to_float(float_to_bf16(float(x)));
    return dtype == KD_FLOAT16 ? f16_to_float(float_to_f16(float(x))) : float(x);
}

inline void put(std::vector<char>& bytes, std::size_t i, int dtype, double x) {
    const std::uint32_t bits = dtype == KD_FLOAT32    ? bits_from_float(float(x))
                               : dtype == KD_BFLOAT16 ? float_to_bf16(float(x))
                                                      : float_to_f16(float(x));
    std::memcpy(&bytes[i * size_of(dtype)], &bits, size_of(dtype));
}

inline double get(const std::vector<char>& bytes, std::size_t i, int dtype) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &bytes[i * size_of(dtype)], size_of(dtype));
    if (dtype == KD_FLOAT32) return float_from_bits(bits);
    return dtype == KD_BFLOAT16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// Memory of a device, as large as its contents.
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::vector<char> contents) : bytes(std::move(contents)) {
        require(cudaMalloc(&memory_, bytes.size() + (bytes.empty() ? 1 : 0)) == cudaSuccess, "cudaMalloc");
        upload();
    }
    template <class Number>
    explicit Memory(const std::vector<Number>& numbers)
        : Memory(std::vector<char>(reinterpret_cast<const char*>(numbers.data()),
                                   reinterpret_cast<const char*>(numbers.data() + numbers.size()))) {}
    ~Memory() { cudaFree(memory_); }
    Memory(Memory&& other) noexcept : bytes(std::move(other.bytes)), memory_(other.memory_) { other.memory_ = nullptr; }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(bytes, other.bytes);
        std::swap(memory_, other.memory_);
        return *this;
    }

    void upload() { cudaMemcpy(memory_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice); }
    void download() {
        require(cudaMemcpy(bytes.data(), memory_, bytes.size(), cudaMemcpyDeviceToHost) == cudaSuccess, "a kernel");
    }
    template <class Number>
    Number* at(std::size_t byte = 0) const {
        return reinterpret_cast<Number*>(static_cast<char*>(memory_) + byte);
    }

    std::vector<char> bytes;

  private:
    void* memory_ = nullptr;
};

// Rows of logits or gradients that begin `offset` elements into an allocation and end with it.
struct Matrix {
    Memory memory;
    int dtype = KD_FLOAT32;
    std::int64_t offset = 0, stride = 0;

    Matrix() = default;
    Matrix(const std::vector<Numbers>& rows, std::int64_t columns, int type, std::int64_t first, std::int64_t padding)
        : dtype(type), offset(first), stride(columns + padding) {
        const std::int64_t count = rows.empty() ? 0 : std::int64_t(rows.size() - 1) * stride + columns;
        std::vector<char> bytes(std::size_t(offset + count) * size_of(dtype));
        for (std::size_t i = 0; i < bytes.size() / size_of(dtype); ++i) put(bytes, i, dtype, kBetween);
        for (std::size_t r = 0; r < rows.size(); ++r) {
            for (std::int64_t c = 0; c < columns; ++c) put(bytes, place(r, c), dtype, rows[r][std::size_t(c)]);
        }
        memory = Memory(std::move(bytes));
    }

    static constexpr double kBetween = 7;  // what lies before and between the rows

    std::size_t place(std::size_t row, std::int64_t column) const {
        return std::size_t(offset + std::int64_t(row) * stride + column);
    }
    void* begin() const { return memory.at<char>(std::size_t(offset) * size_of(dtype)); }
    double operator()(std::size_t row, std::int64_t column) const {
        return get(memory.bytes, place(row, column), dtype);
    }
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

inline constexpr std::int64_t kIgnored = -100;

// The numbers of a case, row by row.
struct Data {
    std::vector<RowCase> rows;
    std::vector<std::int64_t> labels;
    Numbers temperature, ce_weight, kl_weight, share;
    std::vector<bool> broken;  // rows that must be NaN
};

inline std::vector<std::int64_t> distinct(Noise& noise, std::int64_t count, std::int64_t classes) {
    std::vector<std::int64_t> out;
    while (std::int64_t(out.size()) < count) {
        const std::int64_t c = noise.bits() % classes;
        if (std::find(out.begin(), out.end(), c) == out.end()) out.push_back(c);
    }
    return out;
}

inline void concentrate(Numbers& x, double second, int dtype) {
    for (double& each : x) each = rounded(each - 15, dtype);
    x[0] = 0;
    x[1] = second;
}

inline RowCase random_row(const Case& c, Noise& noise) {
    RowCase row;
    for (std::int64_t i = 0; i < c.classes; ++i) row.student.push_back(rounded(c.spread * noise(), c.dtype));
    for (int k = 0; k < c.teacher_count; ++k) {
        Numbers all;
        for (std::int64_t i = 0; i < c.classes; ++i) {
            const double base = c.nearness < 0 ? c.spread * noise() : row.student[std::size_t(i)];
            const double off = c.nearness > 0 ? c.nearness * noise() : 0;
            all.push_back(rounded(base + off + c.shift, c.dtype));
        }
        if (c.concentrated) concentrate(all, -7, c.dtype);
        row.teachers.push_back(all);
        row.teacher_weights.push_back(1.0 / c.teacher_count);
    }
    if (c.concentrated) concentrate(row.student, -70, c.dtype);
    return row;
}

// Replaces the teacher by the few classes it lists.
inline void list_some(const Case& c, Noise& noise, RowCase& row) {
    row.listed = distinct(noise, c.listed, c.classes);
    row.tail = c.tail;
    row.teacher_lse = double(log_sum_exp(row.teachers[0], row.temperature));
    Numbers listed;
    for (std::int64_t i : row.listed) listed.push_back(row.teachers[0][std::size_t(i)]);
    row.teachers[0] = listed;
}

inline void mask(const Case& c, RowCase& row, std::int64_t* label, bool* broken) {
    const std::size_t teacher_class = row.listed.empty() ? 2 : 0;
    const std::size_t student_class = row.listed.empty() ? 2 : std::size_t(row.listed[0]);
    const double lowest = rounded(c.dtype == KD_FLOAT16 ? -65504.0 : -3.38e38, c.dtype);
    const auto teachers = [&](double value) {
        for (Numbers& t : row.teachers) t[teacher_class] = value;
    };
    if (c.mask == Mask::kTeacher || c.mask == Mask::kBoth) teachers(-kInf);
    if (c.mask == Mask::kStudent || c.mask == Mask::kBoth || c.mask == Mask::kUnderflow) {
        row.student[student_class] = -kInf;
    }
    if (c.mask == Mask::kLowest || c.mask == Mask::kUnderflow) teachers(lowest);
    if (c.mask == Mask::kLse) row.teacher_lse = std::nan("");
    if (c.mask == Mask::kNaN) row.student[student_class] = std::nan("");
    if (c.mask == Mask::kTeacherNaN) teachers(std::nan(""));
    if (c.mask == Mask::kInfinity) row.student[student_class] = kInf;
    if (c.mask == Mask::kAll) row.student.assign(row.student.size(), -kInf);
    if (c.mask == Mask::kLabel) row.student[std::size_t(*label)] = -kInf;
    if (c.mask == Mask::kBadLabel) *label = c.classes;
    const bool of_teacher = c.mask == Mask::kTeacherNaN || (c.mask == Mask::kLse && c.tail != KD_TAIL_RENORMALISE);
    *broken = c.mask == Mask::kNaN || c.mask == Mask::kInfinity || c.mask == Mask::kAll || c.mask == Mask::kBadLabel ||
              (of_teacher && !c.row_tensors);  // which leave row 1 without a KL term
}

inline Data random_data(const Case& c) {
    Noise noise(c.seed);
    Data data;
    for (std::int64_t i = 0; i < c.rows; ++i) {
        RowCase row = random_row(c, noise);
        const double wave = double(i % 4) / 4;
        data.temperature.push_back(c.row_tensors ? c.temperature + wave : c.temperature);
        data.ce_weight.push_back(c.row_tensors ? (i % 4 == 3 ? 0 : 0.5 + wave) : 1);
        data.kl_weight.push_back(c.row_tensors ? (i % 4 == 1 ? 0 : 1.5 - wave) : 1);
        data.share.push_back(c.row_tensors ? 1 - wave : c.share);
        row.temperature = data.temperature.back();
        if (c.listed > 0 && c.teacher_count > 0) list_some(c, noise, row);
        data.labels.push_back(i % 3 == 2 ? kIgnored : std::int64_t(noise.bits() % std::uint32_t(c.classes)));
        data.broken.push_back(false);
        if (c.mask != Mask::kNone && i == 1) {
            bool broken = false;
            mask(c, row, &data.labels.back(), &broken);
            data.broken.back() = broken;
        }
        data.rows.push_back(row);
    }
    return data;
}

}  // namespace kd::test

#include "cuda_check.h"
