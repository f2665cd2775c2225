// Runs the calls of cpu_case.h, which includes this, on every instruction set and compares.
#pragma once

namespace kd::test {

constexpr double kCeWeight = 0.4, kKlWeight = 1.7;
constexpr const char* kInstructionSets[] = {"avx512", "avx2", "generic"};

// A case's arguments and the memory behind them.
struct Call {
    Matrix student, grad;
    std::vector<Matrix> teachers;
    Integers labels, indices;
    Numbers temperature, ce_weight, kl_weight, share, lse, row_loss;
    kd_loss_args args{};
    kd_loss_result result{};
};

inline void place_rows(const Case& c, const Data& data, Call* call) {
    const std::size_t rows = data.rows.size();
    const std::int64_t listed = c.listed > 0 ? c.listed : c.classes;
    call->student = Matrix(rows, c.classes, c.dtype, c.offset, c.padding);
    for (std::size_t i = 0; i < rows; ++i) call->student.fill_row(i, data.rows[i].student);
    if (c.with_grad && !c.in_place) call->grad = Matrix(rows, c.classes, c.dtype, c.offset, c.padding);
    for (int k = 0; k < c.teacher_count; ++k) {
        const std::size_t own = c.one_teacher_row && rows > 0 ? 1 : rows;
        Matrix teacher(own, listed, c.dtype, c.offset, c.padding);
        for (std::size_t i = 0; i < own; ++i) teacher.fill_row(i, data.rows[i].teachers[std::size_t(k)]);
        if (c.one_teacher_row) teacher.stride = 0;
        call->teachers.push_back(std::move(teacher));
    }
}

inline void place_row_numbers(const Case& c, const Data& data, Call* call) {
    call->temperature = data.temperature;
    call->ce_weight = data.ce_weight;
    call->kl_weight = data.kl_weight;
    call->share = data.share;
    call->lse = Numbers(data.rows.size());
    for (std::size_t i = 0; i < data.rows.size(); ++i) call->lse[i] = data.rows[i].teacher_lse;
    kd_loss_args& args = call->args;
    if (c.row_tensors) {
        args.row_ce_weight = call->ce_weight.data();
        args.row_kl_weight = call->kl_weight.data();
        args.row_label_share = call->share.data();
    }
    if (c.row_tensors || c.mask == Mask::kTemperature) args.row_temperature = call->temperature.data();
    if (c.with_lse || (c.listed > 0 && c.tail != KD_TAIL_RENORMALISE)) args.teacher_lse = call->lse.data();
}

inline void place_integers(const Case& c, const Data& data, Call* call) {
    std::vector<std::int64_t> indices;
    for (const RowCase& row : data.rows) indices.insert(indices.end(), row.listed.begin(), row.listed.end());
    call->labels = Integers(std::vector<std::int64_t>(data.labels), c.long_labels);
    call->indices = Integers(std::vector<std::int64_t>(indices), c.long_indices);
    kd_loss_args& args = call->args;
    args.labels = c.labelled ? call->labels.begin() : nullptr;
    args.label_dtype = c.long_labels ? KD_INT64 : KD_INT32;
    if (c.listed == 0 || c.teacher_count == 0) return;
    args.indices = call->indices.begin();
    args.index_dtype = c.long_indices ? KD_INT64 : KD_INT32;
    args.listed = c.listed;
    args.tail = c.tail;
}

// The addresses go with the object: it must stay where it is.
inline void make_call(const Case& c, const Data& data, Call* call) {
    kd_loss_args& args = call->args;
    place_rows(c, data, call);
    place_row_numbers(c, data, call);
    place_integers(c, data, call);
    call->row_loss = Numbers(data.rows.size(), -5);
    args.student = call->student.begin();
    args.student_stride = call->student.stride;
    args.teacher_count = c.teacher_count;
    for (int k = 0; k < c.teacher_count; ++k) {
        args.teachers[k] = call->teachers[std::size_t(k)].begin();
        args.teacher_strides[k] = call->teachers[std::size_t(k)].stride;
        if (!data.rows.empty()) args.teacher_weights[k] = data.rows[0].teacher_weights[std::size_t(k)];
    }
    args.ignore_index = kIgnored;
    args.temperature = c.temperature;
    args.ce_weight = kCeWeight;
    args.kl_weight = kKlWeight;
    args.label_share = c.share;
    args.rows = c.rows;
    args.classes = c.classes;
    Matrix& grad = c.in_place ? call->student : call->grad;
    args.grad = c.with_grad ? grad.begin() : nullptr;
    args.grad_stride = grad.stride;
    args.grad_scale = c.grad_scale;
    args.dtype = c.dtype;
    args.flags = c.flags;
}

// The rows' weights as kd/api.h defines them.
inline void weigh(const Case& c, Data* data) {
    double valid = 0;
    for (std::int64_t label : data->labels) valid += !c.labelled || label != kIgnored;
    const auto over = [](double weight, double count) { return count > 0 ? weight / count : 0; };
    const bool valid_only = c.labelled && (c.flags & KD_KL_VALID_ROWS) != 0;
    for (std::size_t i = 0; i < data->rows.size(); ++i) {
        RowCase& row = data->rows[i];
        const bool ignored = c.labelled && data->labels[i] == kIgnored;
        row.label = c.labelled ? data->labels[i] : -1;
        row.share = data->share[i];
        row.ce_weight = c.labelled && !ignored ? kCeWeight * data->ce_weight[i] : 0;
        if (c.flags & KD_CE_MEAN_VALID) row.ce_weight = over(row.ce_weight, valid);
        row.kl_weight = c.teacher_count == 0 || (valid_only && ignored) ? 0 : kKlWeight * data->kl_weight[i];
        if (c.flags & KD_KL_MEAN_ROWS) row.kl_weight = over(row.kl_weight, valid_only ? valid : double(c.rows));
        if (c.flags & KD_KL_MEAN_CLASSES) row.kl_weight /= double(c.classes);
        row.mean_of_losses = (c.flags & KD_MEAN_OF_LOSSES) != 0;
    }
}

// Double precision has about 7 digits more.
inline double unit_of(const Case& c) { return c.dtype == KD_FLOAT64 ? 1e-7 : 1; }

inline void compare_loss(const Case& c, double got, double want, double scale) {
    if (!std::isfinite(want)) {
        if (std::isnan(want) ? !std::isnan(got) : got != want) fail(c, "a row's loss", got, want);
        return;
    }
    const double allowed = unit_of(c) * (3e-6 * std::fabs(want) + c.loss_slack() * scale) + 1e-30;
    if (!(std::fabs(got - want) <= allowed)) fail(c, "a row's loss", got, want);
}

inline void compare_grad(const Case& c, const Matrix& grad, std::size_t row, const RowResult& want, double weight) {
    const double half_unit = c.dtype == KD_BFLOAT16 ? 1.0 / 256 : c.dtype == KD_FLOAT16 ? 1.0 / 2048 : 0;
    double peak = 0;
    for (double g : want.grad) peak = std::isfinite(g) ? std::max(peak, std::fabs(g)) : peak;
    const double slack = unit_of(c) * (1.5e-6 * peak + c.gradient_slack() * weight);
    for (std::int64_t i = 0; i < c.classes; ++i) {
        const double got = grad(row, i), exact = want.grad[std::size_t(i)] * c.grad_scale;
        if (std::isnan(exact)) {
            if (!std::isnan(got)) fail(c, "the gradient", got, exact);
            continue;
        }
        const double smallest = c.dtype == KD_FLOAT16 ? 3.1e-8 : 1e-36;
        const double allowed = slack * c.grad_scale + 1.01 * half_unit * std::fabs(exact) + smallest;
        if (!(std::fabs(got - exact) <= allowed)) fail(c, "the gradient", got, exact);
    }
}

inline void compare_between(const Case& c, const Matrix& m, const char* what) {
    for (std::size_t i = 0; i < std::size_t(m.offset); ++i) {
        if (m.get(i) != Matrix::kBetween) fail(c, what, m.get(i), Matrix::kBetween);
    }
    for (std::size_t i = 0; i + 1 < std::size_t(c.rows); ++i) {
        for (std::int64_t k = 0; k < c.padding; ++k) {
            const double got = m(i, c.classes + k);
            if (got != Matrix::kBetween) fail(c, what, got, Matrix::kBetween);
        }
    }
}

inline void compare(const Case& c, const Data& data, const std::vector<RowResult>& want, const Call& call) {
    const Matrix& grad = c.in_place ? call.student : call.grad;
    double sum = 0;
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
        compare_loss(c, call.row_loss[i], want[i].loss, want[i].scale);
        sum += call.row_loss[i];
        const RowCase& row = data.rows[i];
        const double weight = std::fabs(row.ce_weight) + std::fabs(row.kl_weight) / row.temperature;
        if (c.with_grad) compare_grad(c, grad, i, want[i], weight);
    }
    const double got = call.result.loss;
    if (std::isnan(sum) ? !std::isnan(got) : got != sum) fail(c, "the sum of the row losses", got, sum);
    if (c.with_grad) compare_between(c, grad, "memory between gradients");
}

inline void run(const Case& c, Call* call, int threads, bool with_rows = true) {
    double* const rows = with_rows ? call->row_loss.data() : nullptr;
    const kd_status status = kd_loss_cpu(&call->args, rows, threads, &call->result);
    if (status != KD_OK) fail(c, "the status", status, KD_OK);
}

inline bool same_bits(const Call& a, const Call& b) {
    const std::size_t bytes = a.row_loss.size() * sizeof(double);
    return a.grad.bytes == b.grad.bytes && a.student.bytes == b.student.bytes &&
           (bytes == 0 || std::memcmp(a.row_loss.data(), b.row_loss.data(), bytes) == 0);
}

// Every instruction set on one thread; on two, if there is work for them, and without row losses: the same bits.
inline void check(const Case& c) {
    Data data = random_data(c);
    weigh(c, &data);
    std::vector<RowResult> want;
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
        want.push_back(reference(data.rows[i]));
        if (!data.broken[i]) continue;
        want[i].loss = std::nan("");
        want[i].grad.assign(want[i].grad.size(), std::nan(""));
    }
    for (const char* name : kInstructionSets) {
        if (kd_cpu_force_isa(name) != KD_OK) continue;
        Call call;
        make_call(c, data, &call);
        run(c, &call, 1);
        compare(c, data, want, call);
        if (c.rows * c.classes >= 24576) {
            Call other;
            make_call(c, data, &other);
            run(c, &other, 2);
            if (!same_bits(call, other)) fail(c, "the result on two threads", 1, 0);
        }
        if (c.seed % 4 == 0) {
            Call other;
            make_call(c, data, &other);
            run(c, &other, 1, false);
            other.row_loss = call.row_loss;
            if (!same_bits(call, other)) fail(c, "the result without row losses", 1, 0);
        }
    }
    ++cases;
}

}  // namespace kd::test
