// The C face: checks a call, fills in what kernels are told, starts them one after the other.
#include <cmath>
#include <cstdio>
#include <mutex>
#include <vector>

#include "task.cuh"

namespace kd::cuda {
namespace {

thread_local char last_error[512] = "";

// The workspace: the number of valid rows, row losses, sums of them.
constexpr std::int64_t kRowLossOffset = 16;

std::int64_t partial_offset(std::int64_t rows) {
    return kRowLossOffset + (rows * std::int64_t(sizeof(float)) + 15) / 16 * 16;
}

// Up to this many labels every warp counts the valid rows itself, which spares a launch.
constexpr std::int64_t kCountedByAll = 1024;

// Offsets inside a row are 32-bit, and each row can need a cluster of blocks of the grid.
constexpr std::int64_t kMostClasses = std::int64_t(1) << 30;
constexpr std::int64_t kMostRows = ((std::int64_t(1) << 31) - 1) / kMostBlocks;

std::mutex tables;

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    return succeeded(cudaDeviceGetAttribute(&value, which, device), "a device attribute could not be read") ? value : 0;
}

Device describe(int index) {
    Device device;
    device.index = index;
    device.processors = attribute(cudaDevAttrMultiProcessorCount, index);
    device.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    device.shared_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
    device.clusters = attribute(cudaDevAttrComputeCapabilityMajor, index) >= 9;
    return device;
}

Device device_of(int index) {
    static std::vector<Device> known;
    const std::lock_guard<std::mutex> lock(tables);
    for (const Device& device : known) {
        if (device.index == index) return device;
    }
    const Device device = describe(index);
    if (device.shared_block > 0) known.push_back(device);
    return device;
}

// Makes a device current, and the former one again at the end.
class Current {
  public:
    explicit Current(int device) {
        if (!succeeded(cudaGetDevice(&former_), "no device")) return;
        changed_ = former_ != device;
        good_ = !changed_ || succeeded(cudaSetDevice(device), "the device cannot be used");
    }
    ~Current() {
        if (changed_ && good_) cudaSetDevice(former_);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    bool good() const { return good_; }

  private:
    int former_ = 0;
    bool changed_ = false;
    bool good_ = false;
};

bool on_device(std::int32_t dtype) { return dtype == KD_FLOAT32 || dtype == KD_BFLOAT16 || dtype == KD_FLOAT16; }

bool sensible_size(std::int64_t rows, std::int64_t classes) {
    return rows >= 0 && rows <= kMostRows && classes >= 1 && classes <= kMostClasses;
}

bool is_index(std::int32_t dtype) { return dtype == KD_INT32 || dtype == KD_INT64; }

bool sensible_teacher(const kd_loss_args& args) {
    if (args.teacher_count < 0 || args.teacher_count > KD_MAX_TEACHERS) return false;
    if (args.teacher_count == 0) return args.indices == nullptr;
    if (args.row_temperature == nullptr && !(args.temperature > 0 && std::isfinite(args.temperature))) return false;
    if (args.teacher_lse != nullptr && args.teacher_count > 1) return false;
    for (int k = 0; k < args.teacher_count; ++k) {
        if (args.teachers[k] == nullptr && args.rows > 0) return false;
    }
    if (args.indices == nullptr) return true;
    if (args.teacher_count != 1 || args.listed < 1 || args.listed > args.classes) return false;
    if (!is_index(args.index_dtype) || args.tail < KD_TAIL_RENORMALISE || args.tail > KD_TAIL_BUCKET) return false;
    return args.tail == KD_TAIL_RENORMALISE || args.teacher_lse != nullptr;
}

bool sensible(const kd_loss_args& args, const kd_cuda_call& call) {
    if (!sensible_size(args.rows, args.classes) || !on_device(args.dtype) || !(args.grad_scale > 0)) return false;
    if (args.labels != nullptr && !is_index(args.label_dtype)) return false;
    if (args.rows > 0 && (args.student == nullptr || call.workspace == nullptr)) return false;
    const bool no_loss = args.rows == 0 && (args.flags & KD_PER_ROW) != 0;
    return (call.loss != nullptr || no_loss) && sensible_teacher(args);
}

float over(double weight, double count) { return float(count > 0 ? weight / count : 0.0); }

// The weights, with the divisors that need no look at the labels; the others are left to the kernels.
void weigh(const kd_loss_args& args, Problem* problem) {
    const bool labelled = args.labels != nullptr;
    problem->ce_weight = labelled ? float(args.ce_weight * args.grad_scale) : 0.0f;
    problem->ce_per_valid = labelled && (args.flags & KD_CE_MEAN_VALID) != 0;
    problem->kl_in_valid = labelled && (args.flags & KD_KL_VALID_ROWS) != 0;
    problem->kl_per_valid = problem->kl_in_valid && (args.flags & KD_KL_MEAN_ROWS) != 0;
    double kl_weight = args.teacher_count > 0 ? args.kl_weight * args.grad_scale : 0.0;
    if (args.flags & KD_KL_MEAN_CLASSES) kl_weight /= double(args.classes);
    const bool per_row = (args.flags & KD_KL_MEAN_ROWS) != 0 && !problem->kl_per_valid;
    problem->kl_weight = per_row ? over(kl_weight, double(args.rows)) : float(kl_weight);
}

Problem problem_of(const kd_loss_args& args, const kd_cuda_call& call) {
    Problem problem{};
    problem.student = args.student;
    problem.student_stride = args.student_stride;
    problem.grad = args.grad;
    problem.grad_stride = args.grad_stride;
    problem.labels = args.labels;
    problem.long_labels = args.label_dtype == KD_INT64;
    problem.ignore_index = args.ignore_index;
    problem.rows = args.rows;
    problem.classes = int(args.classes);
    problem.row_temperature = args.row_temperature;
    problem.row_ce_weight = args.row_ce_weight;
    problem.row_kl_weight = args.row_kl_weight;
    problem.row_label_share = args.row_label_share;
    problem.per_temperature = args.teacher_count > 0 ? 1.0 / args.temperature : 1.0;
    problem.label_share = float(args.label_share);
    weigh(args, &problem);
    problem.loss_scale = float(1.0 / args.grad_scale);
    if (problem.kl_weight != 0.0f) {
        problem.teacher = args.teachers[0];
        problem.teacher_stride = args.teacher_strides[0];
    } else {
        problem.row_temperature = nullptr;
        problem.per_temperature = 1.0;
    }
    char* const workspace = static_cast<char*>(call.workspace);
    problem.count_here = (problem.ce_per_valid || problem.kl_per_valid) && args.rows <= kCountedByAll;
    if ((problem.ce_per_valid || problem.kl_per_valid) && !problem.count_here) {
        problem.valid_rows = reinterpret_cast<const int*>(workspace);
    }
    const bool per_row = (args.flags & KD_PER_ROW) != 0;
    problem.loss = per_row ? call.loss : reinterpret_cast<float*>(workspace + kRowLossOffset);
    return problem;
}

bool start_loss(const kd_loss_args& args, const Problem& problem, const Queue& queue) {
    if (problem.teacher != nullptr && args.indices != nullptr) {
        Listed listed{};
        listed.indices = args.indices;
        listed.long_indices = args.index_dtype == KD_INT64;
        listed.count = int(args.listed);
        listed.tail = args.tail;
        listed.lse = args.teacher_lse;
        return start_sparse(problem, listed, args.dtype, queue);
    }
    if (problem.teacher != nullptr && args.teacher_count > 1) {
        Teachers teachers{};
        teachers.count = args.teacher_count;
        teachers.mean_of_losses = (args.flags & KD_MEAN_OF_LOSSES) != 0;
        for (int k = 0; k < args.teacher_count; ++k) {
            teachers.logits[k] = args.teachers[k];
            teachers.strides[k] = args.teacher_strides[k];
            teachers.weights[k] = float(args.teacher_weights[k]);
        }
        return start_ensemble(problem, teachers, args.dtype, queue);
    }
    return start_dense(problem, args.dtype, queue);
}

bool run(const kd_loss_args& args, const kd_cuda_call& call) {
    const Current current(call.device);
    if (!current.good()) return false;
    const Queue queue{device_of(call.device), static_cast<cudaStream_t>(call.stream)};
    if (queue.device.shared_block == 0) return false;
    const Problem problem = problem_of(args, call);
    if (problem.valid_rows != nullptr && !start_count(args.labels, problem.long_labels, args.ignore_index, args.rows,
                                                      const_cast<int*>(problem.valid_rows), queue)) {
        return false;
    }
    if (args.rows > 0 && !start_loss(args, problem, queue)) return false;
    if ((args.flags & KD_PER_ROW) != 0) return true;
    double* const partial = reinterpret_cast<double*>(static_cast<char*>(call.workspace) + partial_offset(args.rows));
    return start_sum(problem.loss, args.rows, partial, call.loss, queue);
}

}  // namespace

bool succeeded(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return true;
    std::snprintf(last_error, sizeof last_error, "%s: %s", what, cudaGetErrorString(status));
    cudaGetLastError();  // or the next caller of the runtime would be told of it
    return false;
}

bool prepare(const void* kernel, const Device& device) {
    struct Prepared {
        const void* kernel;
        int device;
    };
    static std::vector<Prepared> done;
    const std::lock_guard<std::mutex> lock(tables);
    for (const Prepared& each : done) {
        if (each.kernel == kernel && each.device == device.index) return true;
    }
    if (!succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_block),
                   "shared memory was refused") ||
        !succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                   "shared memory was refused")) {
        return false;
    }
    if (device.clusters && !succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                                      "large clusters were refused")) {
        return false;
    }
    done.push_back(Prepared{kernel, device.index});
    return true;
}

bool has_room(const void* kernel, const Plan& plan, const Queue& queue) {
    struct Answer {
        const void* kernel;
        int device, blocks, shared;
        unsigned threads;
        bool room;
    };
    static std::vector<Answer> known;
    if (!prepare(kernel, queue.device)) return false;
    const std::lock_guard<std::mutex> lock(tables);
    for (const Answer& each : known) {
        if (each.kernel == kernel && each.device == queue.device.index && each.blocks == plan.blocks &&
            each.shared == plan.shared && each.threads == plan.block.x) {
            return each.room;
        }
    }
    cudaLaunchAttribute cluster{};
    const cudaLaunchConfig_t config = launch_of(plan, queue.stream, &cluster);
    int clusters = 0;
    const bool room =
        succeeded(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "clusters cannot be counted") &&
        clusters > 0;
    known.push_back(Answer{kernel, queue.device.index, plan.blocks, plan.shared, plan.block.x, room});
    return room;
}

}  // namespace kd::cuda

extern "C" int64_t kd_cuda_workspace(const kd_loss_args* args) {
    using namespace kd::cuda;
    const std::int64_t rows = (args->flags & KD_PER_ROW) != 0 ? 0 : args->rows;
    return partial_offset(rows) + partial_sums(rows) * std::int64_t(sizeof(double));
}

extern "C" kd_status kd_loss_cuda(const kd_loss_args* args, const kd_cuda_call* call) {
    if (!kd::cuda::sensible(*args, *call)) return KD_BAD_ARGUMENT;
    return kd::cuda::run(*args, *call) ? KD_OK : KD_CUDA_ERROR;
}

extern "C" kd_status kd_log_sum_exp_cuda(const void* logits, int64_t stride, int32_t dtype, int64_t rows,
                                         int64_t classes, double temperature, const double* row_temperature,
                                         double* lse, void* stream, int32_t device) {
    using namespace kd::cuda;
    const bool warm = row_temperature != nullptr || (temperature > 0 && std::isfinite(temperature));
    if (!sensible_size(rows, classes) || !on_device(dtype) || !warm) return KD_BAD_ARGUMENT;
    if (rows == 0) return KD_OK;
    if (logits == nullptr || lse == nullptr) return KD_BAD_ARGUMENT;
    const Current current(device);
    if (!current.good()) return KD_CUDA_ERROR;
    const Queue queue{device_of(device), static_cast<cudaStream_t>(stream)};
    const bool started =
        queue.device.shared_block > 0 &&
        start_log_sum_exp(logits, stride, dtype, rows, int(classes), 1.0 / temperature, row_temperature, lse, queue);
    return started ? KD_OK : KD_CUDA_ERROR;
}

extern "C" kd_status kd_scale_cuda(void* grad, int64_t stride, int32_t dtype, int64_t rows, int64_t classes,
                                   const float* scale, int64_t scale_stride, double factor, void* stream,
                                   int32_t device) {
    using namespace kd::cuda;
    if (!sensible_size(rows, classes) || !on_device(dtype)) return KD_BAD_ARGUMENT;
    if (rows == 0) return KD_OK;
    if (grad == nullptr || scale == nullptr) return KD_BAD_ARGUMENT;
    const Current current(device);
    if (!current.good()) return KD_CUDA_ERROR;
    const Queue queue{device_of(device), static_cast<cudaStream_t>(stream)};
    const bool started = queue.device.shared_block > 0 &&
                         start_scale(grad, stride, dtype, rows, int(classes), scale, scale_stride, factor, queue);
    return started ? KD_OK : KD_CUDA_ERROR;
}

extern "C" int kd_cuda_device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

extern "C" const char* kd_cuda_error(void) { return kd::cuda::last_error; }
