// What needs no teacher: log-sum-exp of rows, scaling of rows, counting labels, adding up row losses.
#include "task.cuh"
#include "vector.cuh"

namespace kd::cuda {
namespace {

// 2^x, x = whole + rest, with a relative error of half a unit in the last place and no bias worth mentioning.
__device__ __forceinline__ float exp2_exact(float x, float rest) {
    const float whole = rintf(x);
    const float r = (x - whole) + rest;
    float sum = 1.5461444698569130e-04f;
    sum = fmaf(sum, r, 1.3400428177615838e-03f);
    sum = fmaf(sum, r, 9.6180566785246370e-03f);
    sum = fmaf(sum, r, 5.5503272266703020e-02f);
    sum = fmaf(sum, r, 2.4022650922288757e-01f);
    sum = fmaf(sum, r, 6.9314720670283260e-01f);
    sum = fmaf(sum, r, 1.0f);
    return x < -125.0f ? 0.0f : ldexpf(sum, int(whole));
}

struct LogSum {
    float top;
    double sum;  // of exp((t - top) / T)
};

struct Rows {
    void* data;
    std::int64_t stride;
    std::int64_t rows;
    int classes;
};

struct Scaling {
    double slope;       // 1 / T
    float scale, rest;  // log2(e) / T in two parts
};

__device__ __forceinline__ LogSum rescaled(const LogSum& own, float top, const Scaling& by) {
    const double factor = own.top == -kInfinity ? 0.0 : exp(double(own.top - top) * by.slope);
    return LogSum{top, own.sum * factor};
}

// One word: its maximum, and its sum relative to it, joined to what the thread has.
template <class T>
__device__ void add_word(LogSum& all, const uint4& word, const Scaling& by) {
    const float top = Format<T>::peak(word);
    if (!(top <= all.top)) all = rescaled(all, top, by);
    float sum = 0.0f;
#pragma unroll
    for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
        Quad t;
        Format<T>::unpack(word, quad, t);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float below = t[j] - all.top;
            const float x = below * by.scale;
            sum += exp2_exact(x, fmaf(below, by.scale, -x) + below * by.rest);
        }
    }
    if (all.top != -kInfinity) all.sum += double(sum);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    log_sum_exp_kernel(const Rows rows, double per_temperature, const double* row_temperature, double* lse) {
    Team team(1);
    const std::int64_t first = std::int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
    for (std::int64_t row = first; row < rows.rows; row += std::int64_t(gridDim.x) * blockDim.y) {
        const T* const logits = static_cast<const T*>(rows.data) + row * rows.stride;
        const Frame frame = frame_of(logits, rows.classes);
        Scaling by;
        by.slope = row_temperature == nullptr ? per_temperature : 1.0 / row_temperature[row];
        by.scale = float(by.slope * 1.4426950408889634);
        by.rest = float(by.slope * 1.4426950408889634 - double(by.scale));
        LogSum own{-kInfinity, 0.0};
        for (int v = team.rank(); v < frame.words; v += team.size()) {
            add_word<T>(own, load_word(logits, frame, v, true), by);
        }
        const float top = team_max(team, own.top);
        const double sum = team_sum(team, rescaled(own, top, by).sum);
        if (team.rank() == 0) lse[row] = fabsf(top) < kInfinity ? double(top) * by.slope + log(sum) : double(top);
    }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    scale_kernel(const Rows rows, const float* scale, std::int64_t scale_stride, double common) {
    const std::int64_t first = std::int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
    for (std::int64_t row = first; row < rows.rows; row += std::int64_t(gridDim.x) * blockDim.y) {
        const float factor = float(double(scale[row * scale_stride]) * common);
        if (factor == 1.0f) continue;
        T* const grad = static_cast<T*>(rows.data) + row * rows.stride;
        const Frame frame = frame_of(grad, rows.classes);
        for (int v = int(threadIdx.x); v < frame.words; v += int(blockDim.x)) {
            const uint4 word = load_word(grad, frame, v, true);
            uint4 out{};
#pragma unroll
            for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
                Quad x;
                Format<T>::unpack(word, quad, x);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[j] *= factor;
                Format<T>::pack(x, quad, out);
            }
            store_word(grad, frame, v, true, out);
        }
    }
}

// Whole numbers may be added in any order; `valid_rows` is 0 before, where there are several blocks.
__global__ void __launch_bounds__(kMostThreads)
    count_kernel(const void* labels, bool long_labels, std::int64_t ignore_index, std::int64_t rows, int* valid_rows) {
    Team team(1);
    int count = 0;
    for (std::int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < rows; i += gridDim.x * blockDim.x) {
        count += integer_at(labels, long_labels, i) != ignore_index;
    }
    count = team_sum(team, count);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) {
        *valid_rows = count;
    } else {
        add_to(valid_rows, count);
    }
}

// Block k adds up numbers k * kSummed and the following.
template <class Number, class Sum>
__global__ void __launch_bounds__(kMostThreads) sum_kernel(const Number* numbers, std::int64_t count, Sum* sums) {
    Team team(1);
    const std::int64_t begin = blockIdx.x * kSummed;
    const std::int64_t end = begin + kSummed < count ? begin + kSummed : count;
    double sum = 0.0;
    for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) sum += double(numbers[i]);
    sum = team_sum(team, sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = Sum(sum);
}

// Rows to warps where they are short, else to blocks.
Plan plan_of(const Rows& rows, int width) {
    Plan plan;
    const int words = rows.classes / width + 2;
    const bool narrow = words <= 8 * kLanes;
    plan.block = narrow ? dim3(kLanes, 4, 1) : dim3(unsigned(words >= 8 * 256 ? 256 : 128), 1, 1);
    const std::int64_t blocks = (rows.rows + plan.block.y - 1) / plan.block.y;
    plan.teams = unsigned(blocks < (1 << 20) ? blocks : 1 << 20);
    plan.shared = kSlotBytes;
    return plan;
}

Plan blocks_of_256(std::int64_t blocks) {
    Plan plan;
    plan.block = dim3(256, 1, 1);
    plan.teams = unsigned(blocks);
    plan.shared = kSlotBytes;
    return plan;
}

}  // namespace

bool start_log_sum_exp(const void* logits, std::int64_t stride, int dtype, std::int64_t rows, int classes,
                       double per_temperature, const double* row_temperature, double* lse, const Queue& queue) {
    const Rows all{const_cast<void*>(logits), stride, rows, classes};
    const auto kernel = dtype == KD_BFLOAT16  ? log_sum_exp_kernel<Bf16>
                        : dtype == KD_FLOAT16 ? log_sum_exp_kernel<Fp16>
                                              : log_sum_exp_kernel<float>;
    return start(kernel, plan_of(all, dtype == KD_FLOAT32 ? 4 : 8), queue, all, per_temperature, row_temperature, lse);
}

bool start_scale(void* grad, std::int64_t stride, int dtype, std::int64_t rows, int classes, const float* scale,
                 std::int64_t scale_stride, double factor, const Queue& queue) {
    const Rows all{grad, stride, rows, classes};
    const auto kernel = dtype == KD_BFLOAT16  ? scale_kernel<Bf16>
                        : dtype == KD_FLOAT16 ? scale_kernel<Fp16>
                                              : scale_kernel<float>;
    return start(kernel, plan_of(all, dtype == KD_FLOAT32 ? 4 : 8), queue, all, scale, scale_stride, factor);
}

bool start_count(const void* labels, bool long_labels, std::int64_t ignore_index, std::int64_t rows, int* valid_rows,
                 const Queue& queue) {
    const std::int64_t blocks = rows < 8192 ? 1 : rows < (1 << 22) ? rows / 4096 : 1024;
    if (blocks > 1 &&
        !succeeded(cudaMemsetAsync(valid_rows, 0, sizeof(int), queue.stream), "a count cannot be cleared")) {
        return false;
    }
    return start(count_kernel, blocks_of_256(blocks), queue, labels, long_labels, ignore_index, rows, valid_rows);
}

bool start_sum(const float* row_loss, std::int64_t rows, double* partial, float* loss, const Queue& queue) {
    const std::int64_t blocks = partial_sums(rows);
    if (blocks == 0) return start(sum_kernel<float, float>, blocks_of_256(1), queue, row_loss, rows, loss);
    return start(sum_kernel<float, double>, blocks_of_256(blocks), queue, row_loss, rows, partial) &&
           start(sum_kernel<double, float>, blocks_of_256(1), queue, partial, blocks, loss);
}

}  // namespace kd::cuda
