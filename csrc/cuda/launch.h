// Between the host side of the CUDA kernels: what a kernel is told, and how one is started.
#pragma once

#include <cstdint>
#include <utility>

#include "device.cuh"
#include "kd/api.h"

namespace kd::cuda {

// What every kernel of a loss is told; by value, in constant memory.
struct Problem {
    const void* student;
    const void* teacher;  // of the dense kernel; null without a KL term
    void* grad;
    const void* labels;
    std::int64_t student_stride, teacher_stride, grad_stride;
    std::int64_t rows;
    std::int64_t ignore_index;
    const double* row_temperature;
    const double* row_ce_weight;
    const double* row_kl_weight;
    const double* row_label_share;
    double per_temperature;      // 1 / T
    float ce_weight, kl_weight;  // with the divisors that are known beforehand, and grad_scale
    float loss_scale;            // 1 / grad_scale, a power of two
    float label_share;
    int classes;
    bool long_labels;
    bool ce_per_valid, kl_per_valid;  // whether to divide by the number of valid rows
    bool kl_in_valid;                 // whether other rows have no KL
    bool count_here;                  // small batch: every warp counts the valid rows itself
    const int* valid_rows;            // otherwise, if they are needed
    float* loss;                      // [rows]
    int held;                         // words of each thread and tensor that stay in shared memory
    int blocks;                       // of the cluster that shares a row
};

struct Teachers {  // several, dense
    const void* logits[KD_MAX_TEACHERS];
    std::int64_t strides[KD_MAX_TEACHERS];
    float weights[KD_MAX_TEACHERS];
    int count;
    bool mean_of_losses;
};

struct Listed {  // one, sparse
    const void* indices;
    const double* lse;
    int count;
    int tail;
    bool long_indices;
};

// What is asked of a device once.
struct Device {
    int index;
    int processors;
    int shared_block;      // bytes of shared memory that a block can have
    int shared_processor;  // and that a multiprocessor has
    bool clusters;
};

// How a kernel is started.
struct Plan {
    dim3 block{32, 1, 1};
    unsigned teams = 1;  // blocks, or clusters of them, of the grid
    int blocks = 1;      // of a cluster
    int held = 0;
    int shared = 0;
};

struct Queue {
    Device device;
    cudaStream_t stream;
};

// Whether the call went well; otherwise its text is kept for kd_cuda_error.
bool succeeded(cudaError_t status, const char* what);

// Lets a kernel use all shared memory, and clusters of 16 blocks; once a kernel and device.
bool prepare(const void* kernel, const Device& device);

// Whether the device can run a cluster of the plan: 16 blocks are more than every device has to offer, and a part of a
// device may have less than 8.
bool has_room(const void* kernel, const Plan& plan, const Queue& queue);

// `cluster` must live as long as the result.
inline cudaLaunchConfig_t launch_of(const Plan& plan, cudaStream_t stream, cudaLaunchAttribute* cluster) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(plan.teams * unsigned(plan.blocks), 1, 1);
    config.blockDim = plan.block;
    config.dynamicSmemBytes = std::size_t(plan.shared);
    config.stream = stream;
    cluster->id = cudaLaunchAttributeClusterDimension;
    cluster->val.clusterDim.x = unsigned(plan.blocks);
    cluster->val.clusterDim.y = 1;
    cluster->val.clusterDim.z = 1;
    config.attrs = cluster;
    config.numAttrs = plan.blocks > 1 ? 1 : 0;
    return config;
}

template <class... Parameters, class... Arguments>
bool start(void (*kernel)(Parameters...), const Plan& plan, const Queue& queue, Arguments&&... arguments) {
    if (!prepare(reinterpret_cast<const void*>(kernel), queue.device)) return false;
    cudaLaunchAttribute cluster{};
    const cudaLaunchConfig_t config = launch_of(plan, queue.stream, &cluster);
    return succeeded(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a kernel could not be started");
}

// The launchers, each beside its kernels. `dtype` is a kd_dtype.
bool start_dense(const Problem& problem, int dtype, const Queue& queue);
bool start_ensemble(const Problem& problem, const Teachers& teachers, int dtype, const Queue& queue);
bool start_sparse(const Problem& problem, const Listed& listed, int dtype, const Queue& queue);
bool start_log_sum_exp(const void* logits, std::int64_t stride, int dtype, std::int64_t rows, int classes,
                       double per_temperature, const double* row_temperature, double* lse, const Queue& queue);
bool start_scale(void* grad, std::int64_t stride, int dtype, std::int64_t rows, int classes, const float* scale,
                 std::int64_t scale_stride, double factor, const Queue& queue);
bool start_count(const void* labels, bool long_labels, std::int64_t ignore_index, std::int64_t rows, int* valid_rows,
                 const Queue& queue);
bool start_sum(const float* row_loss, std::int64_t rows, double* partial, float* loss, const Queue& queue);

// Numbers that one block adds up, and how many sums that makes of so many rows; 0 if one block does it all.
constexpr std::int64_t kSummed = std::int64_t(1) << 15;
constexpr std::int64_t partial_sums(std::int64_t rows) { return rows > kSummed ? (rows + kSummed - 1) / kSummed : 0; }

}  // namespace kd::cuda
