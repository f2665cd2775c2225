// CE and KL of several dense teachers. Simple rather than fast: a block to a row, every teacher compared with the
// student on its own first (as the one teacher of loss.cu is), then all together; nothing stays in shared memory.
//
// With weights w_k that sum to 1, q - sum_k w_k p_k = sum_k w_k (q - p_k): differences of distributions that are close
// keep their digits, and teachers that all equal the student give exactly 0.
#include "row.cuh"

namespace kd::cuda {
namespace {

// How one teacher compares with the student; in shared memory, one a teacher.
struct Member {
    Soft soft;
    float weight;
};

__device__ __forceinline__ Member* members() { return reinterpret_cast<Member*>(shared_memory() + kSlotBytes); }

// The teachers of one row. A row without a KL term is its own and only teacher.
template <class T>
struct Panel {
    const Teachers& teachers;
    const T* student;
    std::int64_t row;
    bool soft;

    __device__ int count() const { return soft ? teachers.count : 1; }
    __device__ float weight(int k) const { return soft ? teachers.weights[k] : 1.0f; }
    __device__ const T* logits(int k) const {
        return soft ? static_cast<const T*>(teachers.logits[k]) + row * teachers.strides[k] : student;
    }
};

// q - p, p and the divergence's part for a class, of the mean of the teachers' distributions.
struct Mixture {
    float slope = 0.0f;     // q - mean p
    float target = 0.0f;    // mean p
    float loss = 0.0f;      // mean of the teachers' own parts
    bool excluded = false;  // by the student, but not by every teacher

    __device__ void add(const Member& member, const Excess& excess, float s, float t, float p) {
        slope += member.weight * excess.slope;
        target += member.weight * p;
        loss += member.weight * excess.loss;
        excluded = excluded || (s == -kInfinity && t > -kInfinity);
    }

    // p (exp(u) - 1 - u) of the mean p, u = log(q / p) = log(1 + slope / p). log q is given for where q is much
    // smaller.
    __device__ float part_of_mean(float log_q) const {
        if (excluded) return kInfinity;
        if (target == 0.0f) return slope;
        const float ratio = slope / target;
        const float u = ratio > -0.5f ? log1pf(ratio) : log_q - logf(target);
        return fabsf(u) <= 1.0f ? target * (u * u * remainder_series(u)) : slope - target * u;
    }
};

// Compares every teacher with the student. False if a row is broken; `stats` holds the sums of the CE term.
template <class T>
__device__ bool compare(Team& team, const Panel<T>& panel, const Walk<T, true>& any, const Task& task,
                        float label_logit, Stats& stats) {
    for (int k = 0; k < panel.count(); ++k) {
        if (panel.weight(k) == 0.0f) continue;
        Walk<T, true> walk = any;
        walk.replace_teacher(panel.logits(k));
        stats = scan(team, walk, task, label_logit);
        if (!is_sound<true>(stats)) return false;
        Soft soft = soft_of(task, stats);
        if (needs_recentring(soft, plain_kl(stats))) recentre(team, walk, task, soft);
        if (team.rank() == 0) members()[k] = Member{soft, panel.weight(k)};
    }
    sync_block();
    return true;
}

// What a class of the student meets in all teachers together.
template <class T, class Plain>
__device__ __forceinline__ void gather(const Panel<T>& panel, const Walk<T, true>& any, const Task& task, int v,
                                       int quad, Plain plain, const Quad& s, const Quad& e_s, Mixture (&mixtures)[4]) {
    for (int k = 0; k < panel.count(); ++k) {
        if (panel.weight(k) == 0.0f) continue;
        const T* const logits = panel.logits(k);
        const Member member = members()[k];
        Quad t, e_t, gap;
        any.numbers(load_word(logits, any.frame, v, offset_in_word(logits) == any.frame.pad), v, quad, plain, t);
        exponentials(t, member.soft.teacher_max, task.soft_scale, e_t);
        gaps<Format<T>::kHalf>(member.soft, s, t, gap);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float q = e_s[j] * member.soft.student_share, p = e_t[j] * member.soft.teacher_share;
            mixtures[j].add(member, excess_of(member.soft, task.slope, gap[j], q, p), s[j], t[j], p);
        }
    }
}

// The gradient of both terms, and the divergence in every thread.
template <class T>
__device__ float finish(Team& team, const Panel<T>& panel, const Walk<T, true>& any, const Task& task,
                        const Stats& stats, const Hard& hard) {
    const HardSlope slope = hard_slope(task, hard, hard.sum * exp2_approx(-hard_excess(task, stats)));
    const float log_share = logf(exp2_approx(soft_excess(task, stats)) / stats.student_sum);
    const float soft_slope = task.kl_weight * task.slope;
    const bool of_mean = panel.soft && !panel.teachers.mean_of_losses;
    float loss = 0.0f;
    any.each_word([&](const Pair& words, int v, auto plain) {
        const int label_lane = v == any.label_word(task) ? task.label - first_of<T>(any.frame, v) : -1;
        uint4 out{};
#pragma unroll
        for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
            Quad s, e_s, grad = {0.0f, 0.0f, 0.0f, 0.0f};
            any.numbers(words.student, v, quad, plain, s);
            exponentials(s, stats.student_max, task.soft_scale, e_s);
            if (task.hard) exponentials(s, stats.student_max, kLog2e, grad);
            Mixture mixtures[4];
            gather(panel, any, task, v, quad, plain, s, e_s, mixtures);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float log_q = (s[j] - stats.student_max) * task.slope + log_share;
                const float own = 4 * quad + j == label_lane ? slope.own : fmaf(grad[j], slope.scale, -slope.less);
                loss += of_mean ? mixtures[j].part_of_mean(log_q) : mixtures[j].loss;
                grad[j] = fmaf(soft_slope, mixtures[j].slope, own);
            }
            Format<T>::pack(grad, quad, out);
        }
        if (any.grad != nullptr) any.store(v, plain, out);
    });
    return team_sum(team, loss);
}

template <class T>
__device__ float row_loss(Team& team, const Panel<T>& panel, const Walk<T, true>& any, const Task& task,
                          float label_logit) {
    Stats stats = Stats::nothing();
    if (!compare(team, panel, any, task, label_logit, stats)) {
        const float nan = kInfinity - kInfinity;
        any.fill_grad(nan);
        return nan;
    }
    Hard hard{0.0f, 0.0f, 1.0f};
    if (task.hard) hard = hard_of(task, stats, label_logit);
    float loss = task.hard ? task.ce_weight * hard.loss : 0.0f;
    const float divergence = finish(team, panel, any, task, stats, hard);
    // NaN here: the student excludes a class that a teacher does not, where it underflows.
    if (task.soft) loss += task.kl_weight * (divergence < kInfinity ? divergence : kInfinity);
    return loss;
}

template <class T>
__device__ float weighted_row(Team& team, const Problem& problem, const Teachers& teachers, const Task& task,
                              std::int64_t row) {
    const T* const student = static_cast<const T*>(problem.student) + row * problem.student_stride;
    Walk<T, true> any(team, 0, student, student, problem.classes);
    any.place_grad(problem, row);
    if (task.bad || !(task.soft || task.hard)) {
        const float value = task.bad ? kInfinity - kInfinity : 0.0f;
        any.fill_grad(value);
        return value;
    }
    const Panel<T> panel{teachers, student, row, task.soft};
    return row_loss(team, panel, any, task, task.hard ? load_number(student + task.label) : 0.0f);
}

template <class T>
__global__ void __launch_bounds__(256, 2) ensemble_kernel(const Problem problem, const Teachers teachers) {
    Team team(1);
    const int valid_rows = valid_rows_of(problem, lane_of_thread());
    for (std::int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
        const Task task = task_of<Format<T>::kHalf>(problem, row, valid_rows);
        const float loss = weighted_row<T>(team, problem, teachers, task, row);
        if (team.rank() == 0) problem.loss[row] = loss * problem.loss_scale;
    }
}

template <class T>
bool start_of(const Problem& problem, const Teachers& teachers, const Queue& queue) {
    Plan plan;
    const int warps = problem.classes / Format<T>::kWidth / (4 * kLanes);
    plan.block = dim3(unsigned(kLanes * (warps < 1 ? 1 : warps > 8 ? 8 : warps)), 1, 1);
    plan.teams = unsigned(problem.rows < (1 << 20) ? problem.rows : 1 << 20);
    plan.shared = kSlotBytes + int(sizeof(Member)) * KD_MAX_TEACHERS;
    return start(ensemble_kernel<T>, plan, queue, problem, teachers);
}

}  // namespace

bool start_ensemble(const Problem& problem, const Teachers& teachers, int dtype, const Queue& queue) {
    if (dtype == KD_BFLOAT16) return start_of<Bf16>(problem, teachers, queue);
    if (dtype == KD_FLOAT16) return start_of<Fp16>(problem, teachers, queue);
    return start_of<float>(problem, teachers, queue);
}

}  // namespace kd::cuda
