// Runs the calls of cuda_case.h, which includes this, and compares.
#pragma once

namespace kd::test {

constexpr double kCeWeight = 0.4, kKlWeight = 1.7;

// A case's arguments and the memory behind them.
struct Call {
    Matrix student, grad;
    std::vector<Matrix> teachers;
    Memory labels, indices, temperature, ce_weight, kl_weight, share, lse, workspace, loss;
    kd_loss_args args{};
    kd_cuda_call call{};
};

inline Memory integers(const std::vector<std::int64_t>& values, bool is_long) {
    if (is_long) return Memory(values);
    return Memory(std::vector<std::int32_t>(values.begin(), values.end()));
}

inline void place_rows(const Case& c, const Data& data, Call* call) {
    std::vector<Numbers> student, zeros;
    for (const RowCase& row : data.rows) {
        student.push_back(row.student);
        zeros.push_back(Numbers(row.student.size(), -3));
    }
    call->student = Matrix(student, c.classes, c.dtype, c.student_offset, c.padding);
    if (c.with_grad && !c.in_place) call->grad = Matrix(zeros, c.classes, c.dtype, c.grad_offset, c.padding);
    for (int k = 0; k < c.teacher_count; ++k) {
        std::vector<Numbers> teacher;
        for (const RowCase& row : data.rows) teacher.push_back(row.teachers[std::size_t(k)]);
        call->teachers.push_back(
            Matrix(teacher, c.listed > 0 ? c.listed : c.classes, c.dtype, c.teacher_offset, c.padding));
    }
}

inline void place_listed(const Case& c, const Data& data, Call* call) {
    std::vector<std::int64_t> indices;
    Numbers lse;
    for (const RowCase& row : data.rows) {
        indices.insert(indices.end(), row.listed.begin(), row.listed.end());
        lse.push_back(row.teacher_lse);
    }
    call->indices = integers(indices, c.long_indices);
    call->lse = Memory(lse);
    call->args.indices = call->indices.at<void>();
    call->args.listed = c.listed;
    call->args.index_dtype = c.long_indices ? KD_INT64 : KD_INT32;
    call->args.tail = c.tail;
    call->args.teacher_lse = c.tail == KD_TAIL_RENORMALISE ? nullptr : call->lse.at<double>();
}

inline void place_row_tensors(const Data& data, Call* call) {
    call->temperature = Memory(data.temperature);
    call->ce_weight = Memory(data.ce_weight);
    call->kl_weight = Memory(data.kl_weight);
    call->share = Memory(data.share);
    call->args.row_temperature = call->temperature.at<double>();
    call->args.row_ce_weight = call->ce_weight.at<double>();
    call->args.row_kl_weight = call->kl_weight.at<double>();
    call->args.row_label_share = call->share.at<double>();
}

inline double grad_scale(const Case& c) { return c.dtype == KD_FLOAT16 ? 8 : 1; }

inline Call make_call(const Case& c, const Data& data) {
    Call call;
    kd_loss_args& args = call.args;
    place_rows(c, data, &call);
    if (c.listed > 0 && c.teacher_count > 0) place_listed(c, data, &call);
    if (c.row_tensors) place_row_tensors(data, &call);
    args.student = call.student.begin();
    args.student_stride = call.student.stride;
    args.teacher_count = c.teacher_count;
    for (int k = 0; k < c.teacher_count; ++k) {
        args.teachers[k] = call.teachers[std::size_t(k)].begin();
        args.teacher_strides[k] = call.teachers[std::size_t(k)].stride;
        args.teacher_weights[k] = 1.0 / c.teacher_count;
    }
    call.labels = integers(data.labels, c.long_labels);
    args.labels = c.labelled ? call.labels.at<void>() : nullptr;
    args.label_dtype = c.long_labels ? KD_INT64 : KD_INT32;
    args.ignore_index = kIgnored;
    args.temperature = c.temperature;
    args.ce_weight = kCeWeight;
    args.kl_weight = kKlWeight;
    args.label_share = c.share;
    args.grad_scale = grad_scale(c);
    args.rows = c.rows;
    args.classes = c.classes;
    const Matrix& grad = c.in_place ? call.student : call.grad;
    args.grad = c.with_grad ? grad.begin() : nullptr;
    args.grad_stride = grad.stride;
    args.dtype = c.dtype;
    args.flags = c.flags | (c.per_row ? KD_PER_ROW : 0);
    call.workspace = Memory(std::vector<char>(std::size_t(kd_cuda_workspace(&args)), char(0xFF)));
    call.loss = Memory(std::vector<float>(c.per_row ? std::size_t(c.rows) : 1, -5.0f));
    call.call.device = c.device;
    call.call.workspace = call.workspace.at<void>();
    call.call.loss = call.loss.at<float>();
    return call;
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

inline void compare_loss(const Case& c, double got, double want, double scale) {
    if (std::isnan(want) || std::isinf(want)) {
        if (std::isnan(want) != std::isnan(got) || (std::isinf(want) && got != want)) fail(c, "the loss", got, want);
        return;
    }
    const double allowed = c.tight ? 2e-5 * std::fabs(want) : 3e-6 * std::fabs(want) + 4e-7 * scale;
    if (!(std::fabs(got - want) <= allowed + 1e-30)) fail(c, "the loss", got, want);
    if (c.exactly_zero && got != 0) fail(c, "the loss of equal rows", got, 0);
}

inline void compare_grad(const Case& c, const Matrix& grad, std::size_t row, const RowResult& want, double weight) {
    const double unit = c.dtype == KD_FLOAT32 ? 0 : c.dtype == KD_BFLOAT16 ? 1.0 / 256 : 1.0 / 2048;
    double peak = 0;
    for (double g : want.grad) peak = std::isfinite(g) ? std::max(peak, std::fabs(g) * grad_scale(c)) : peak;
    const double slack = (c.tight ? 1e-5 : 2e-6) * peak + (c.tight ? 0 : 4e-7 * weight * grad_scale(c));
    for (std::int64_t i = 0; i < c.classes; ++i) {
        const double got = grad(row, i), exact = want.grad[std::size_t(i)] * grad_scale(c);
        if (std::isnan(exact)) {
            if (!std::isnan(got)) fail(c, "the gradient", got, exact);
            continue;
        }
        const double allowed = slack + 1.01 * unit * std::fabs(exact) + (unit > 0 ? 6e-8 : 0) + 1e-36;
        if (!(std::fabs(got - exact) <= allowed)) fail(c, "the gradient", got, exact);
        if (c.exactly_zero && got != 0) fail(c, "the gradient of equal rows", got, 0);
    }
}

inline void compare(const Case& c, const Data& data, Call& call) {
    Matrix& grad = c.in_place ? call.student : call.grad;
    if (c.with_grad) grad.memory.download();
    call.loss.download();
    const float* const loss = reinterpret_cast<const float*>(call.loss.bytes.data());
    double sum = 0, scale = 0;
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
        RowResult want = reference(data.rows[i]);
        if (data.broken[i]) {
            want.loss = std::nan("");
            want.grad.assign(want.grad.size(), std::nan(""));
        }
        if (c.per_row) compare_loss(c, loss[i], want.loss, want.scale);
        sum += want.loss;
        scale += want.scale;
        const RowCase& row = data.rows[i];
        const double weight = std::fabs(row.ce_weight) + std::fabs(row.kl_weight) / row.temperature;
        if (c.with_grad) compare_grad(c, grad, i, want, weight);
    }
    if (!c.per_row) compare_loss(c, loss[0], sum, scale);
    for (std::size_t i = 0; c.with_grad && i + 1 < data.rows.size(); ++i) {
        for (std::int64_t k = 0; k < c.padding; ++k) {
            if (grad(i, c.classes + k) != Matrix::kBetween) fail(c, "memory between rows", grad(i, c.classes + k), 7);
        }
    }
}

inline void run(const Case& c, Call& call) {
    if (kd_loss_cuda(&call.args, &call.call) != KD_OK) {
        std::printf("%s\n", kd_cuda_error());
        fail(c, "the status", 1, 0);
    }
}

// One case in so many is run.
inline int one_in = 1;

inline void check(const Case& c) {
    if (cases++ % one_in != 0) return;
    cudaSetDevice(c.device);
    Data data = random_data(c);
    weigh(c, &data);
    Call call = make_call(c, data);
    run(c, call);
    compare(c, data, call);
    if (c.in_place || c.seed % 3 != 0) return;
    const std::vector<char> loss = call.loss.bytes, grad = call.grad.memory.bytes;
    run(c, call);  // same input, same bits
    compare(c, data, call);
    if (call.loss.bytes != loss || call.grad.memory.bytes != grad) fail(c, "a second run", 1, 0);
}

inline void check_log_sum_exp(int device, int dtype, std::int64_t rows, std::int64_t classes, std::int64_t offset) {
    Case c;
    c.name = "log-sum-exp";
    c.device = device;
    c.dtype = dtype;
    c.rows = rows;
    c.classes = classes;
    c.student_offset = offset;
    c.spread = 3;
    c.row_tensors = offset != 0;
    c.temperature = 2.5;
    cudaSetDevice(device);
    const Data data = random_data(c);
    Call call = make_call(c, data);
    Memory lse(Numbers(std::size_t(rows), -1));
    const kd_status status =
        kd_log_sum_exp_cuda(call.args.student, call.args.student_stride, dtype, rows, classes, c.temperature,
                            call.args.row_temperature, lse.at<double>(), nullptr, device);
    require(status == KD_OK, "log-sum-exp");
    lse.download();
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
        const double got = reinterpret_cast<const double*>(lse.bytes.data())[i];
        const double want = double(log_sum_exp(data.rows[i].student, data.temperature[i]));
        if (!(std::fabs(got - want) <= 1e-7)) fail(c, "the log-sum-exp", got, want);
    }
    ++cases;
}

inline void check_scale(int device, int dtype, std::int64_t rows, std::int64_t classes, std::int64_t offset) {
    Case c;
    c.name = "scale";
    c.device = device;
    c.dtype = dtype;
    c.rows = rows;
    c.classes = classes;
    c.student_offset = offset;
    c.padding = offset;
    cudaSetDevice(device);
    const Data data = random_data(c);
    Call call = make_call(c, data);
    const std::vector<float> factors = {0.5f, 1.0f, 3.0f};
    Memory scale(factors);
    const std::int64_t stride = offset == 0 ? 1 : 0;
    const double factor = offset == 0 ? 1 : 0.25;
    const kd_status status = kd_scale_cuda(call.student.begin(), call.student.stride, dtype, rows, classes,
                                           scale.at<float>(), stride, factor, nullptr, device);
    require(status == KD_OK, "scale");
    call.student.memory.download();
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
        for (std::int64_t k = 0; k < classes; ++k) {
            const double want =
                rounded(data.rows[i].student[std::size_t(k)] * factors[stride == 0 ? 0 : i] * factor, dtype);
            if (call.student(i, k) != want) fail(c, "a scaled number", call.student(i, k), want);
        }
    }
    ++cases;
}

// A captured call, replayed over other data in the same memory, twice.
inline void check_graph(int device) {
    cudaSetDevice(device);
    Case c;
    c.name = "graph";
    c.device = device;
    c.rows = 5;
    c.classes = 1100;
    c.flags = KD_CE_MEAN_VALID | KD_KL_MEAN_ROWS;
    Data data = random_data(c);
    weigh(c, &data);
    Call call = make_call(c, data);
    run(c, call);  // what happens once, happens before the capture
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t runnable;
    require(cudaStreamCreate(&stream) == cudaSuccess, "cudaStreamCreate");
    call.call.stream = stream;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess, "the capture");
    run(c, call);
    require(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "the end of the capture");
    require(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess, "cudaGraphInstantiate");
    for (std::uint32_t seed : {7u, 8u}) {
        c.seed = seed;
        data = random_data(c);
        weigh(c, &data);
        const Call other = make_call(c, data);
        call.student.memory.bytes = other.student.memory.bytes;
        call.student.memory.upload();
        call.teachers[0].memory.bytes = other.teachers[0].memory.bytes;
        call.teachers[0].memory.upload();
        call.labels.bytes = other.labels.bytes;
        call.labels.upload();
        require(cudaGraphLaunch(runnable, stream) == cudaSuccess, "cudaGraphLaunch");
        require(cudaStreamSynchronize(stream) == cudaSuccess, "the replay");
        compare(c, data, call);
    }
    cudaGraphExecDestroy(runnable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    ++cases;
}

}  // namespace kd::test
