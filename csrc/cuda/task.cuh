// What one row asks for: its label, weights and temperature.
#pragma once

#include "launch.h"
#include "reduce.cuh"

namespace kd::cuda {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

struct Task {
    bool soft, hard;   // whether the KL and the CE term are wanted
    bool bad;          // the label is out of range
    int label;         // -1 without a CE term
    float kl_weight;   // v
    float ce_weight;   // u
    float share;       // b
    float other;       // (1 - b) / (C - 1), the target of the other classes
    float slope;       // 1 / T
    float soft_scale;  // log2(e) / T: exp(x / T) = 2^(x soft_scale)
    int power;         // exp(x) = exp(x / T)^power, where that is exact enough; 0: an exponential of its own
};

__device__ __forceinline__ std::int64_t integer_at(const void* values, bool is_long, std::int64_t i) {
    return is_long ? static_cast<const std::int64_t*>(values)[i] : static_cast<const std::int32_t*>(values)[i];
}

// Rows whose label is not ignore_index; every lane of a team calls and gets the number.
__device__ inline int valid_rows_of(const Problem& problem, int lane) {
    if (!problem.count_here) return problem.valid_rows == nullptr ? 0 : *problem.valid_rows;
    int count = 0;
    for (std::int64_t i = lane; i < problem.rows; i += lanes_of_team()) {
        count += integer_at(problem.labels, problem.long_labels, i) != problem.ignore_index;
    }
    return lanes_sum(count);
}

__device__ __forceinline__ float factor_at(const double* values, std::int64_t i) {
    return values == nullptr ? 1.0f : float(values[i]);
}

// In single precision a power would double the error of an exponential, which the gradient then shows.
template <bool kHalf>
__device__ __forceinline__ int power_for(double slope) {
    if (slope == 1.0) return 1;
    if (kHalf && slope == 0.5) return 2;
    if (kHalf && slope == 0.25) return 4;
    return 0;
}

template <bool kHalf>
__device__ Task task_of(const Problem& problem, std::int64_t row, int valid_rows) {
    Task task;
    const float per_valid = valid_rows > 0 ? 1.0f / float(valid_rows) : 0.0f;
    bool ignored = false;
    task.label = -1;
    task.bad = false;
    if (problem.labels != nullptr) {
        const std::int64_t label = integer_at(problem.labels, problem.long_labels, row);
        ignored = label == problem.ignore_index;
        task.bad = !ignored && (label < 0 || label >= problem.classes);
        task.label = ignored || task.bad ? -1 : int(label);
    }
    task.ce_weight = problem.ce_weight * factor_at(problem.row_ce_weight, row);
    if (problem.ce_per_valid) task.ce_weight *= per_valid;
    task.hard = task.label >= 0 && task.ce_weight != 0.0f;
    if (!task.hard) task.label = -1;

    task.kl_weight = problem.kl_weight * factor_at(problem.row_kl_weight, row);
    if (problem.kl_per_valid) task.kl_weight *= per_valid;
    task.soft = task.kl_weight != 0.0f && !(ignored && problem.kl_in_valid);
    if (!task.soft) task.kl_weight = 0.0f;

    task.share = problem.row_label_share == nullptr ? problem.label_share : float(problem.row_label_share[row]);
    if (problem.classes == 1) task.share = 1.0f;
    task.other = problem.classes == 1 ? 0.0f : (1.0f - task.share) / float(problem.classes - 1);

    const double slope =
        problem.row_temperature == nullptr ? problem.per_temperature : 1.0 / problem.row_temperature[row];
    task.slope = float(slope);
    task.soft_scale = float(slope * 1.4426950408889634);
    task.power = power_for<kHalf>(slope);
    return task;
}

}  // namespace kd::cuda
