// CE and KL of a teacher that lists the logits of a few classes: see kd_tail for what it says about the others. A block
// to a row. The listed classes are few and go through double precision, one a thread; the others are summed and written
// word by word, and a map of bits in shared memory tells the two apart.
//
// With u_k = log(q_k / p_k) the loss is sum_k p_k (exp(u_k) - 1 - u_k), plus the same for the others as one class where
// the teacher has a tail, plus their q where it says that they have no probability. Nothing is subtracted to get at the
// others' q: it has a sum of its own, relative to its own maximum, and may be as small as it likes.
#include "row.cuh"

namespace kd::cuda {
namespace {

constexpr int kMapWords = kEmulated ? 16 : 8192;  // of 32 classes each; more are done in several windows

// What thread 0 works out of the sums, for all.
struct Facts {
    double top;          // largest student logit
    double log_student;  // log sum_c exp((s_c - top) / T)
    double teacher_top;  // largest listed teacher logit, or 0
    double log_teacher;  // log of what exp((t_k - teacher_top) / T) is divided by
    double mass;         // sum_k p_k
    double hard_sum;     // sum_c exp(s_c - top)
    double hard_others;  // 1 - softmax(s)_y
    double log_others;   // log q of the others together, relative to their own sum
    float soft_others;   // what exp((s_c - their maximum) / T) is multiplied by in the gradient of one of the others
    float hard_scale;    // the same of exp(s_c - their maximum)
    float loss;
};

__device__ __forceinline__ Facts& facts() { return *reinterpret_cast<Facts*>(shared_memory() + kSlotBytes); }
__device__ __forceinline__ std::uint32_t* map_of_listed() {
    return reinterpret_cast<std::uint32_t*>(shared_memory() + kSlotBytes + sizeof(Facts));
}

// One row of the call; `listed` is the number of classes that take part as such, 0 in a row without a KL term.
template <class T>
struct SparseRow {
    Walk<T, false> walk;
    const T* teacher;
    const void* indices;
    const double* lse;
    std::int64_t begin;  // of the row's indices
    int listed;
    int tail;
    bool long_indices;
    double slope;  // 1 / T

    __device__ std::int64_t index(int k) const { return integer_at(indices, long_indices, begin + k); }
    __device__ double student_logit(int k) const { return double(load_number(walk.student + index(k))); }
    __device__ double teacher_logit(int k) const { return double(load_number(teacher + k)); }

    __device__ int window_words() const { return kMapWords * 32 / Format<T>::kWidth; }
    __device__ int windows() const { return (walk.frame.words + window_words() - 1) / window_words(); }
};

// Marks the listed classes of a window. True in every thread if an index is out of range or, in this window, there
// twice.
template <class T>
__device__ bool mark(Team& team, const SparseRow<T>& row, int window) {
    std::uint32_t* const map = map_of_listed();
    const int words = row.walk.frame.words < row.window_words() ? row.walk.frame.words : row.window_words();
    const int map_words = (words * Format<T>::kWidth + 31) / 32;
    sync_block();
    for (int i = team.rank(); i < map_words; i += team.size()) map[i] = 0;
    sync_block();
    int faults = 0;
    for (int k = team.rank(); k < row.listed; k += team.size()) {
        const std::int64_t c = row.index(k);
        if (c < 0 || c >= row.walk.frame.classes) {
            ++faults;
            continue;
        }
        const std::int64_t place =
            c + row.walk.frame.pad - std::int64_t(window) * row.window_words() * Format<T>::kWidth;
        if (place < 0 || place >= std::int64_t(map_words) * 32) continue;
        const std::uint32_t bit = 1u << (place % 32);
        faults += (set_bits(map + place / 32, bit) & bit) != 0;
    }
    return team_sum(team, faults) > 0;
}

// Which elements of word v, of a window that begins with word `first`, are listed.
template <class T>
__device__ __forceinline__ std::uint32_t listed_in(int v, int first) {
    const int place = (v - first) * Format<T>::kWidth;
    return map_of_listed()[place / 32] >> (place % 32) & ((1u << Format<T>::kWidth) - 1);
}

// Calls visit(v, bits of the listed elements) for every word of this thread. `marked`: the map holds the first window.
template <class T, class Visit>
__device__ void for_each_word(Team& team, const SparseRow<T>& row, const Visit& visit) {
    for (int window = 0; window < row.windows(); ++window) {
        const int first = window * row.window_words();
        const int end = first + row.window_words();
        if (row.windows() > 1) mark(team, row, window);
        for (int v = first + team.rank(); v < end && v < row.walk.frame.words; v += team.size()) {
            visit(v, listed_in<T>(v, first));
        }
    }
}

// The sums of stats.cuh over the classes that are not listed; other_logits over all of them.
template <class T>
__device__ Stats scan_others(Team& team, const SparseRow<T>& row, const Task& task, float label_logit) {
    const Walk<T, false>& walk = row.walk;
    Scan<T, false> sums(task, walk.label_word(task), label_logit);
    for_each_word(team, row, [&](int v, std::uint32_t listed) {
        const uint4 word = load_word(walk.student, walk.frame, v, true);
        const int first = first_of<T>(walk.frame, v);
        const int label_lane = v == sums.label_word ? task.label - first : -1;
        if (task.other != 0.0f) sums.stats.other_logits += sums.logits_beside(walk, word, v, label_lane);
#pragma unroll
        for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
            Quad s;
            Format<T>::unpack(word, quad, s);
            float top = -kInfinity;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int lane = 4 * quad + j;
                if (!inside(walk.frame, first + lane) || (listed >> lane & 1u) != 0) s[j] = -kInfinity;
                top = max_nan(top, s[j]);
            }
            sums.watch_student(top);
            Quad e[1];
#pragma unroll
            for (int j = 0; j < 4; ++j) e[0][j] = exp2_approx(exponent(s[j], task.soft_scale, sums.student.soft));
            sums.stats.student_sum += sum_of(e);
            const auto unpack = [&](int, Quad& x) { memcpy(x, s, sizeof x); };
            hard_exponentials<Format<T>::kHalf>(unpack, e, task.power, sums.student.hard);
            clear(e, label_lane - 4 * quad);
            sums.stats.other_sum += sum_of(e);
        }
    });
    rebase<false>(sums.stats, sums.student, sums.teacher, sums.stats.student_max, 0.0f, task);
    return all_reduce(team, sums.stats, Stats::nothing(), JoinStats<false>{task});
}

// Sums over the listed classes: of exponentials, then of what depends on them.
struct ListedSums {
    double student, teacher, hard;
};

template <class T>
__device__ ListedSums sum_listed(Team& team, const SparseRow<T>& row, const Task& task, double top,
                                 double teacher_top) {
    ListedSums sums{0.0, 0.0, 0.0};
    for (int k = team.rank(); k < row.listed; k += team.size()) {
        const double below = row.student_logit(k) - top;
        sums.student += exp(below * row.slope);
        if (task.hard && row.index(k) != task.label) sums.hard += exp(below);
        if (teacher_top > -kInfinity) sums.teacher += exp((row.teacher_logit(k) - teacher_top) * row.slope);
    }
    sums.student = team_sum(team, sums.student);
    sums.teacher = team_sum(team, sums.teacher);
    sums.hard = team_sum(team, sums.hard);
    return sums;
}

// Thread 0: normalisers, and the CE term.
template <class T>
__device__ void normalise(const SparseRow<T>& row, const Task& task, const Stats& others, const ListedSums& sums,
                          double top, double teacher_top, float label_logit) {
    Facts& f = facts();
    const bool any_others = others.student_max > -kInfinity;
    const double below = any_others ? double(others.student_max) - top : -kInfinity;
    const double soft = any_others ? double(others.student_sum) * exp2(-double(soft_excess(task, others))) : 0.0;
    const double hard = any_others ? double(others.other_sum) * exp2(-double(hard_excess(task, others))) : 0.0;
    f.top = top;
    f.log_student = log(sums.student + soft * exp(below * row.slope));
    f.log_others = any_others ? below * row.slope + log(soft) - f.log_student : -kInfinity;
    f.teacher_top = teacher_top > -kInfinity ? teacher_top : 0.0;
    f.log_teacher =
        row.tail == KD_TAIL_RENORMALISE || row.listed == 0 ? log(sums.teacher) : *row.lse - f.teacher_top * row.slope;
    f.soft_others = any_others && task.soft ? float(1.0 / soft) : 0.0f;  // completed by `weigh_tail`
    f.loss = 0.0f;
    f.hard_scale = 0.0f;
    if (!task.hard) return;
    const double label = double(label_logit) - top;
    const double without_label = sums.hard + hard * exp(below);
    f.hard_sum = without_label + exp(label);
    f.hard_others = without_label / f.hard_sum;
    f.hard_scale = any_others ? float(double(task.ce_weight) * exp(below) / f.hard_sum) : 0.0f;
    double loss = label == 0.0 ? log1p(without_label) : log(f.hard_sum) - label;
    if (task.other != 0.0f) {  // as in hard_of
        if (label_logit == -kInfinity) loss = task.share == 0.0f ? log(f.hard_sum) + top : kInfinity;
        loss -= double(task.other) * double(others.other_logits);
    }
    f.loss = float(double(task.ce_weight) * loss);
}

// Log-probabilities of a listed class.
template <class T>
__device__ __forceinline__ double log_target(const SparseRow<T>& row, int k) {
    return (row.teacher_logit(k) - facts().teacher_top) * row.slope - facts().log_teacher;
}

template <class T>
__device__ __forceinline__ double log_guess(const SparseRow<T>& row, int k) {
    return (row.student_logit(k) - facts().top) * row.slope - facts().log_student;
}

// p (exp(u) - 1 - u), u = log q - log p; q where p is 0.
__device__ __forceinline__ double part_of(double log_p, double log_q) {
    if (log_p == -kInfinity) return exp(log_q);
    if (log_q == -kInfinity) return kInfinity;
    const double u = log_q - log_p;
    const double p = exp(log_p);
    return p == 0.0 ? exp(log_q) : p * (expm1(u) - u);
}

// sum p and the listed classes' part of the divergence, in every thread.
struct Divergence {
    double mass, loss;
};

template <class T>
__device__ Divergence diverge(Team& team, const SparseRow<T>& row) {
    Divergence d{0.0, 0.0};
    for (int k = team.rank(); k < row.listed; k += team.size()) {
        const double log_p = log_target(row, k), log_q = log_guess(row, k);
        d.mass += exp(log_p);
        if (row.tail != KD_TAIL_UNNORMALISED) {
            d.loss += part_of(log_p, log_q);
        } else if (log_p > -kInfinity) {
            d.loss += log_q == -kInfinity ? kInfinity : exp(log_p) * (log_p - log_q);
        }
    }
    d.mass = team_sum(team, d.mass);
    d.loss = team_sum(team, d.loss);
    return d;
}

// Thread 0: the others' part of the divergence, and what their gradient needs.
template <class T>
__device__ void weigh_tail(const SparseRow<T>& row, const Task& task, Divergence d) {
    Facts& f = facts();
    const double others = exp(f.log_others);
    double excess = others;  // of the student's probability for the others over the teacher's
    f.mass = 1.0;
    if (row.tail == KD_TAIL_UNNORMALISED) {
        f.mass = d.mass;
        excess = d.mass * others;
    } else if (row.tail == KD_TAIL_BUCKET && row.listed < row.walk.frame.classes && d.mass < 1.0) {
        const double rest = 1.0 - d.mass;
        excess = others - rest;
        d.loss += part_of(log(rest), f.log_others);
    } else {
        // All others have no probability: their part is q. A mass above 1 is another's rounding.
        d.loss += others + (row.tail == KD_TAIL_BUCKET ? d.mass - 1.0 : 0.0);
    }
    f.soft_others *= float(double(task.kl_weight) * row.slope * excess);
    f.loss += float(double(task.kl_weight) * d.loss);
}

// The label's own entry in the gradient of the CE term.
__device__ __forceinline__ float label_part(const Task& task) {
    return task.ce_weight * ((1.0f - task.share) - float(facts().hard_others));
}

template <class T>
__device__ void write_others(Team& team, const SparseRow<T>& row, const Task& task, float top) {
    const Walk<T, false>& walk = row.walk;
    const float soft_scale = facts().soft_others, hard_scale = facts().hard_scale;
    const float less = task.ce_weight * task.other;
    const float base = top > -kInfinity ? top : 0.0f;
    for_each_word(team, row, [&](int v, std::uint32_t listed) {
        const uint4 word = load_word(walk.student, walk.frame, v, true);
        const int label_lane = v == walk.label_word(task) ? task.label - first_of<T>(walk.frame, v) : -1;
        uint4 out{};
#pragma unroll
        for (int quad = 0; quad < Format<T>::kQuads; ++quad) {
            Quad s, soft, hard, grad;
            walk.numbers(word, v, quad, std::false_type{}, s);
            exponentials(s, base, task.soft_scale, soft);
            exponentials(s, base, kLog2e, hard);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float own = 4 * quad + j == label_lane ? label_part(task) : fmaf(hard[j], hard_scale, -less);
                grad[j] = fmaf(soft[j], soft_scale, task.hard ? own : 0.0f);
            }
            Format<T>::pack(grad, quad, out);
        }
        store_word(walk.grad, walk.frame, v, walk.grad_fits, out, listed);
    });
}

template <class T>
__device__ void write_listed(const Team& team, const SparseRow<T>& row, const Task& task) {
    const Facts& f = facts();
    for (int k = team.rank(); k < row.listed; k += team.size()) {
        const std::int64_t c = row.index(k);
        const double log_p = log_target(row, k), log_q = log_guess(row, k);
        const double u = log_q - log_p, p = exp(log_p);
        const double excess = f.mass == 1.0 && fabs(u) <= 1.0 ? p * expm1(u) : f.mass * exp(log_q) - p;
        double grad = double(task.kl_weight) * row.slope * excess;
        if (task.hard) {
            const double guess = exp(row.student_logit(k) - f.top) / f.hard_sum;
            grad += c == task.label ? double(label_part(task)) : double(task.ce_weight) * (guess - double(task.other));
        }
        store_number(row.walk.grad + c, float(grad));
    }
}

template <class T>
__device__ float broken(const SparseRow<T>& row) {
    const float nan = kInfinity - kInfinity;
    row.walk.fill_grad(nan);
    return nan;
}

template <class T>
__device__ float row_loss(Team& team, const SparseRow<T>& row, const Task& task, float label_logit) {
    // The last window first: where there is one only, it stays marked.
    for (int window = row.windows(); window-- > 0;) {
        if (mark(team, row, window)) return broken(row);
    }
    const Stats others = scan_others(team, row, task, label_logit);
    float top = -kInfinity, teacher_top = -kInfinity;
    for (int k = team.rank(); k < row.listed; k += team.size()) {
        top = max_nan(top, float(row.student_logit(k)));
        teacher_top = max_nan(teacher_top, float(row.teacher_logit(k)));
    }
    top = max_nan(others.student_max, team_max(team, top));
    teacher_top = team_max(team, teacher_top);
    const bool no_teacher = task.soft && row.tail == KD_TAIL_RENORMALISE && teacher_top == -kInfinity;
    if (!(fabsf(top) < kInfinity && teacher_top < kInfinity) || no_teacher) return broken(row);
    const ListedSums sums = sum_listed(team, row, task, double(top), double(teacher_top));
    if (team.rank() == 0) normalise(row, task, others, sums, double(top), double(teacher_top), label_logit);
    sync_block();
    if (task.soft) {
        const Divergence d = diverge(team, row);
        if (d.mass != d.mass || d.loss != d.loss) return broken(row);
        if (team.rank() == 0) weigh_tail(row, task, d);
        sync_block();
    }
    if (row.walk.grad != nullptr) {
        write_others(team, row, task, others.student_max);
        sync_block();  // in place, the words just read hold listed logits too
        write_listed(team, row, task);
    }
    return facts().loss;
}

template <class T>
__device__ float weighted_row(Team& team, const Problem& problem, const Listed& listed, const Task& task,
                              std::int64_t row) {
    const T* const student = static_cast<const T*>(problem.student) + row * problem.student_stride;
    Walk<T, false> walk(team, 0, student, student, problem.classes);
    walk.place_grad(problem, row);
    if (task.bad || !(task.soft || task.hard)) {
        const float value = task.bad ? kInfinity - kInfinity : 0.0f;
        walk.fill_grad(value);
        return value;
    }
    const SparseRow<T> all{
        walk,
        static_cast<const T*>(problem.teacher) + row * problem.teacher_stride,
        listed.indices,
        listed.lse == nullptr ? nullptr : listed.lse + row,
        row * listed.count,
        task.soft ? listed.count : 0,
        listed.tail,
        listed.long_indices,
        problem.row_temperature == nullptr ? problem.per_temperature : 1.0 / problem.row_temperature[row]};
    return row_loss(team, all, task, task.hard ? load_number(student + task.label) : 0.0f);
}

template <class T>
__global__ void __launch_bounds__(256, 2) sparse_kernel(const Problem problem, const Listed listed) {
    Team team(1);
    const int valid_rows = valid_rows_of(problem, lane_of_thread());
    for (std::int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
        const Task task = task_of<Format<T>::kHalf>(problem, row, valid_rows);
        const float loss = weighted_row<T>(team, problem, listed, task, row);
        if (team.rank() == 0) problem.loss[row] = loss * problem.loss_scale;
    }
}

template <class T>
bool start_of(const Problem& problem, const Listed& listed, const Queue& queue) {
    constexpr int kWidth = Format<T>::kWidth;
    Plan plan;
    const int warps = problem.classes / kWidth / (4 * kLanes);
    plan.block = dim3(unsigned(kLanes * (warps < 1 ? 1 : warps > 8 ? 8 : warps)), 1, 1);
    plan.teams = unsigned(problem.rows < (1 << 20) ? problem.rows : 1 << 20);
    const int map_words = (problem.classes + 2 * kWidth) / 32 + 1;
    plan.shared = kSlotBytes + int(sizeof(Facts)) + 4 * (map_words < kMapWords ? map_words : kMapWords);
    return start(sparse_kernel<T>, plan, queue, problem, listed);
}

}  // namespace

bool start_sparse(const Problem& problem, const Listed& listed, int dtype, const Queue& queue) {
    if (dtype == KD_BFLOAT16) return start_of<Bf16>(problem, listed, queue);
    if (dtype == KD_FLOAT16) return start_of<Fp16>(problem, listed, queue);
    return start_of<float>(problem, listed, queue);
}

}  // namespace kd::cuda
