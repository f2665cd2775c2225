// CE and KL of one dense teacher: one read of the logits, one write of the gradient.
//
// A row belongs to a warp or a part of one (few classes), a block or, from compute capability 9.0 on, a cluster of
// blocks: the smallest that can keep the row in shared memory and still leave room for other rows beside it, so that
// one row is loaded while another is computed. Of a row that is too large for all of them, the rest is read again.
#include <algorithm>

#include "launch.h"
#include "row.cuh"

namespace kd::cuda {
namespace {

template <class T, bool kTeacher>
__device__ float row_loss(Team& team, Walk<T, kTeacher>& walk, const Problem& problem, const Task& task,
                          std::int64_t row) {
    const float label_logit = task.hard ? load_number(walk.student + task.label) : 0.0f;
    const Stats stats = scan(team, walk, task, label_logit);
    walk.place_grad(problem, row);
    if (!is_sound<kTeacher>(stats)) {
        const float nan = kInfinity - kInfinity;
        walk.fill_grad(nan);
        return nan;
    }
    Hard hard{0.0f, 0.0f, 1.0f};
    if (task.hard) hard = hard_of(task, stats, label_logit);
    float loss = task.hard ? task.ce_weight * hard.loss : 0.0f;
    bool plain = true;
    if constexpr (kTeacher) {
        float kl = plain_kl(stats);
        plain = Format<T>::kHalf && kl >= kSmallKl;
        if (!plain) {
            Soft soft = soft_of(task, stats);
            if (needs_recentring(soft, kl)) recentre(team, walk, task, soft);
            kl = finish_close(team, walk, task, stats, soft, hard, label_logit);
            // NaN here: the student excludes a class that the teacher does not, where it underflows.
            if (!(kl < kInfinity)) kl = kInfinity;
        }
        if (task.soft) loss += task.kl_weight * kl;
    }
    if (plain && walk.grad != nullptr) finish_plain(walk, task, stats, hard, label_logit);
    return loss;
}

template <class T, bool kTeacher>
__device__ float weighted_row(Team& team, const Problem& problem, const Task& task, std::int64_t row) {
    const T* const student = static_cast<const T*>(problem.student) + row * problem.student_stride;
    // A row without a KL term is its own teacher: the KL is 0, and whatever the teacher holds stays out of it.
    const T* teacher = student;
    if (kTeacher && task.soft) teacher = static_cast<const T*>(problem.teacher) + row * problem.teacher_stride;
    Walk<T, kTeacher> walk(team, problem.held, student, teacher, problem.classes);
    if (!task.bad && (task.soft || task.hard)) return row_loss(team, walk, problem, task, row);
    const float value = task.bad ? kInfinity - kInfinity : 0.0f;
    walk.place_grad(problem, row);
    walk.fill_grad(value);
    return value;
}

template <class T, bool kTeacher>
__global__ void __launch_bounds__(kMostThreads, 2) dense_kernel(const Problem problem) {
    Team team(problem.blocks);
    const std::int64_t row = std::int64_t(blockIdx.x / unsigned(team.blocks)) * blockDim.y + threadIdx.y;
    if (row < problem.rows) {
        const Task task = task_of<Format<T>::kHalf>(problem, row, valid_rows_of(problem, lane_of_thread()));
        const float loss = weighted_row<T, kTeacher>(team, problem, task, row);
        if (team.rank() == 0) problem.loss[row] = loss * problem.loss_scale;
    }
    team.gather();
}

// Rows of at most this many logits go to warps or parts of one, of which up to this many threads share a block.
constexpr int kWarpClasses = 1024;
constexpr int kWarpBlock = 256;
constexpr int kWarpBlockBytes = 40 << 10;  // of shared memory

constexpr int kReservedBytes = 1024;  // of shared memory that each block costs on top of its own

int divided_up(int a, int b) { return (a + b - 1) / b; }

// A row as it is to be shared out: `words` of 16 bytes in each of `tensors` tensors.
struct Extent {
    std::int64_t rows;
    int words;
    int tensors;

    int step_bytes(int threads) const { return threads * tensors * 16; }
    int block_bytes(int blocks) const { return divided_up(words, blocks) * tensors * 16; }
};

// With many rows, a row gets so few lanes that each has some words: what they do apart from that costs the same.
Plan plan_warps(const Device& device, const Extent& extent) {
    Plan plan;
    int lanes = kLanes;
    while (lanes > 4 && extent.words <= 2 * lanes && extent.rows * lanes > 1024LL * device.processors) lanes /= 2;
    const int room = std::min(kWarpBlockBytes, device.shared_block - kSlotBytes);
    int rows = kLanes / lanes;
    plan.held = std::min(divided_up(extent.words, lanes), room / extent.step_bytes(kLanes));
    const int row_bytes = plan.held * extent.step_bytes(lanes);
    while (2 * rows * lanes <= kWarpBlock && extent.rows > 4LL * rows * device.processors &&
           2 * rows * row_bytes <= room) {
        rows *= 2;
    }
    plan.block = dim3(unsigned(lanes), unsigned(rows), 1);
    plan.shared = kSlotBytes + rows * row_bytes;
    return plan;
}

// Blocks of a row's cluster: so many that six blocks fit beside each other on a multiprocessor, or at least three;
// more for a batch that leaves multiprocessors idle.
int blocks_for(const Device& device, const Extent& extent) {
    const auto room_of = [&](int neighbours) {
        return device.shared_processor / neighbours - kReservedBytes - kSlotBytes;
    };
    if (!device.clusters) return 1;
    int blocks = 1;
    while (blocks < 8 && extent.block_bytes(blocks) > room_of(6)) blocks *= 2;
    while (blocks < 8 && extent.rows * blocks * 2 <= device.processors && extent.words >= blocks * 512) blocks *= 2;
    return extent.block_bytes(blocks) > room_of(3) ? kMostBlocks : blocks;
}

Plan plan_blocks(const Device& device, const Extent& extent, int blocks) {
    Plan plan;
    plan.blocks = blocks;
    const int words = divided_up(extent.words, blocks);
    const int room = device.shared_block - kSlotBytes;
    const bool alone = 2 * extent.block_bytes(blocks) > room;  // on its multiprocessor: then as many threads as can be
    const int threads = std::clamp(divided_up(words, 8 * kLanes) * kLanes, 64, 192);
    plan.block = dim3(unsigned(alone ? kMostThreads : threads), 1, 1);
    const int step_bytes = extent.step_bytes(int(plan.block.x));
    const int steps = divided_up(extent.words, blocks * int(plan.block.x));
    plan.held = std::min(steps, room / step_bytes);
    plan.shared = kSlotBytes + plan.held * step_bytes;
    return plan;
}

Plan plan_rows(const void* kernel, const Extent& extent, int classes, const Queue& queue) {
    Plan plan;
    if (classes <= kWarpClasses) {
        plan = plan_warps(queue.device, extent);
    } else {
        int blocks = blocks_for(queue.device, extent);
        plan = plan_blocks(queue.device, extent, blocks);
        while (blocks > 1 && !has_room(kernel, plan, queue)) plan = plan_blocks(queue.device, extent, blocks /= 2);
    }
    plan.teams = unsigned((extent.rows + plan.block.y - 1) / plan.block.y);
    return plan;
}

template <class T, bool kTeacher>
bool start_as(Problem problem, const Queue& queue) {
    constexpr int kWidth = Format<T>::kWidth;
    const auto kernel = dense_kernel<T, kTeacher>;
    // A row that starts and ends inside a word touches one more than it fills.
    const Extent extent{problem.rows, (problem.classes + 2 * kWidth - 2) / kWidth, kTeacher ? 2 : 1};
    const Plan plan = plan_rows(reinterpret_cast<const void*>(kernel), extent, problem.classes, queue);
    problem.held = plan.held;
    problem.blocks = plan.blocks;
    return start(kernel, plan, queue, problem);
}

template <class T>
bool start_of(const Problem& problem, const Queue& queue) {
    return problem.teacher == nullptr ? start_as<T, false>(problem, queue) : start_as<T, true>(problem, queue);
}

}  // namespace

bool start_dense(const Problem& problem, int dtype, const Queue& queue) {
    if (dtype == KD_BFLOAT16) return start_of<Bf16>(problem, queue);
    if (dtype == KD_FLOAT16) return start_of<Fp16>(problem, queue);
    return start_of<float>(problem, queue);
}

}  // namespace kd::cuda
