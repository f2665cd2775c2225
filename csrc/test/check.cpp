// Walks the CPU kernels over odd sizes, with buffers that end where the data ends, for a build under sanitizers.
// Exits with 1 where a number is wrong by more than rounding; the sanitizers end the program themselves.
#include <string>

#include "cpu_case.h"

namespace kd::test {
namespace {

constexpr int kDtypes[] = {KD_FLOAT32, KD_FLOAT64, KD_BFLOAT16, KD_FLOAT16};

std::vector<std::int64_t> class_counts() {
    std::vector<std::int64_t> counts;
    for (std::int64_t n = 1; n <= 17; ++n) counts.push_back(n);
    counts.insert(counts.end(), {31, 32, 33, 63, 64, 65, 1000, 1023, 1024, 1025, 4097});
    return counts;
}

// Every number is a different mixture of the options that may be combined freely.
Case mixture(int number, std::int64_t classes, int dtype) {
    constexpr double kTemperatures[] = {1, 4, 2.5, 3, 2, 0.7, 5};
    Case c;
    c.classes = classes;
    c.rows = classes > 4000 ? 7 : classes > 900 ? 2 : 4;
    c.dtype = dtype;
    c.temperature = kTemperatures[number % 7];
    c.offset = number % 4;
    c.padding = number % 5 == 4 ? 3 : 0;
    c.long_labels = number % 2 != 0;
    c.long_indices = number % 3 != 0;
    c.in_place = number % 8 == 5;
    c.with_grad = c.in_place || number % 9 != 6;
    c.row_tensors = number % 6 == 3;
    c.one_teacher_row = number % 10 == 7;
    c.flags = number % 2 == 0 ? KD_CE_MEAN_VALID | KD_KL_MEAN_ROWS : KD_KL_VALID_ROWS;
    if (number % 7 == 1) c.flags |= KD_KL_MEAN_CLASSES;
    c.grad_scale = dtype == KD_FLOAT16 && number % 3 == 0 ? 1024 : 1;
    c.seed = std::uint32_t(number + 1);
    return c;
}

Case named(const char* name, Case c) {
    c.name = name;
    return c;
}

void check_one_teacher() {
    int number = 0;
    for (std::int64_t classes : class_counts()) {
        for (int dtype : kDtypes) {
            check(named("CE and KL", mixture(number, classes, dtype)));
            Case c = named("cross-entropy", mixture(number + 1, classes, dtype));
            c.teacher_count = 0;
            check(c);
            c = named("label share", mixture(number + 2, classes, dtype));
            c.teacher_count = 0;
            c.share = 0.85;
            check(c);
            c = named("KL", mixture(number + 3, classes, dtype));
            c.labelled = false;
            check(c);
            c = named("teacher's log-sum-exp", mixture(number + 4, classes, dtype));
            c.with_lse = true;
            c.one_teacher_row = false;
            check(c);
            ++number;
        }
    }
}

void check_several_teachers() {
    int number = 0;
    for (std::int64_t classes : class_counts()) {
        for (int dtype : kDtypes) {
            Case c = named("several teachers", mixture(number, classes, dtype));
            c.teacher_count = classes > 900 ? 2 : number % 11 == 0 ? KD_MAX_TEACHERS : 2 + number % 3;
            if (number % 2 != 0) c.flags |= KD_MEAN_OF_LOSSES;
            c.labelled = number % 5 != 0;
            check(c);
            ++number;
        }
    }
}

void check_sparse() {
    int number = 0;
    for (std::int64_t classes : class_counts()) {
        for (int dtype : kDtypes) {
            for (int tail : {KD_TAIL_RENORMALISE, KD_TAIL_UNNORMALISED, KD_TAIL_BUCKET}) {
                Case c = named("sparse teacher", mixture(number, classes, dtype));
                const std::int64_t listed[] = {1, 40, (classes + 1) / 2, 2};
                c.listed = std::min<std::int64_t>({listed[number % 4], classes, 60});
                c.tail = tail;
                c.one_teacher_row = false;
                c.row_tensors = false;  // a label share and a sparse teacher do not meet
                c.labelled = number % 5 != 0;
                check(c);
                ++number;
            }
        }
    }
}

void check_masks() {
    int number = 0;
    for (int mask = int(Mask::kTeacher); mask <= int(Mask::kTemperature); ++mask) {
        for (std::int64_t classes : {3, 16, 33, 1025}) {
            for (int dtype : kDtypes) {
                for (int form = 0; form < 4; ++form) {
                    Case c = named("mask", mixture(number++, classes, dtype));
                    c.mask = Mask(mask);
                    c.one_teacher_row = c.row_tensors = false;
                    c.labelled = form == 0 || number % 3 != 0;
                    if (form == 1) c.teacher_count = 2;
                    if (form == 2) c.listed = 1, c.tail = number % 3;
                    if (form == 3) c.teacher_count = 0, c.labelled = true;
                    const bool of_teacher = c.mask == Mask::kTeacherNaN || c.mask == Mask::kTeacherInfinity ||
                                            c.mask == Mask::kTemperature;
                    if (form != 3 || !of_teacher) check(c);
                }
            }
        }
    }
}

// Long rows in which the largest logits come late, so that origins move; and numbers of all sizes.
void check_orders() {
    int number = 0;
    for (Order order : {Order::kAscending, Order::kDescending, Order::kLate}) {
        for (int dtype : kDtypes) {
            for (double temperature : {1.0, 2.0, 2.5, 8.0}) {
                Case c = named("order", mixture(number++, 3500, dtype));
                c.order = order;
                c.temperature = temperature;
                c.row_tensors = c.one_teacher_row = false;
                check(c);
                c.nearness = 0.02;
                c.name = "order, close";
                check(c);
            }
        }
    }
}

// Student and teacher agree on a class of the last block; the first block is far below it, and further for the teacher.
void check_far_block() {
    for (int dtype : kDtypes) {
        for (double far : {200.0, 2000.0, 20000.0}) {
            Case c = named("far block", Case());
            c.dtype = dtype;
            c.classes = 2100;
            c.order = Order::kLate;
            c.far = far;
            c.labelled = false;
            check(c);
        }
    }
}

void check_sizes() {
    int number = 0;
    for (int dtype : kDtypes) {
        for (std::int64_t classes : {2, 17, 1025, 2100}) {
            for (double nearness : {1e-3, 0.1, 0.5, -1.0}) {
                Case c = named("close", mixture(number++, classes, dtype));
                c.nearness = nearness;
                c.row_tensors = c.one_teacher_row = false;
                c.shift = number % 3 == 0 ? 25 : 0;
                check(c);
                c.name = "1e4";
                c.spread = 1e4;
                c.nearness = -1;
                c.shift = 0;
                check(c);
            }
            Case c = named("equal", mixture(number++, classes, dtype));
            c.nearness = 0;
            c.labelled = c.row_tensors = c.one_teacher_row = false;
            check(c);
        }
    }
}

// ---- what is refused, and what is empty ----------------------------------------------------------------------------

template <class Change>
void refused(const char* what, kd_status status, std::int64_t row, const Case& base, Change change) {
    Case c = named(what, base);
    Data data = random_data(c);
    weigh(c, &data);
    Call call;
    make_call(c, data, &call);
    const std::vector<char> grad = call.grad.bytes;
    change(&call);
    const kd_status got = kd_loss_cpu(&call.args, call.row_loss.data(), 2, &call.result);
    if (got != status) fail(c, "the status", got, status);
    if (call.result.bad_row != row) fail(c, "the bad row", double(call.result.bad_row), double(row));
    if (call.grad.bytes != grad || call.row_loss[0] != -5) fail(c, "what was written", 1, 0);
    ++cases;
}

void check_refusals() {
    const Case plain;
    Case sparse;
    sparse.listed = 4;
    const auto wrong = [&](const char* what, auto change) { refused(what, KD_BAD_ARGUMENT, -1, plain, change); };
    refused("label above", KD_BAD_LABEL, 1, plain, [](Call* call) { call->labels.wide[1] = 10; });
    refused("label below", KD_BAD_LABEL, 0, plain, [](Call* call) { call->labels.wide[0] = -1; });
    refused("index above", KD_BAD_INDEX, 2, sparse, [](Call* call) { call->indices.wide[9] = 10; });
    refused("index below", KD_BAD_INDEX, 0, sparse, [](Call* call) { call->indices.wide[3] = -1; });
    refused("index twice", KD_BAD_INDEX, 1, sparse, [](Call* call) { call->indices.wide[4] = call->indices.wide[7]; });
    wrong("dtype", [](Call* call) { call->args.dtype = 4; });
    wrong("negative dtype", [](Call* call) { call->args.dtype = -1; });
    wrong("label dtype", [](Call* call) { call->args.label_dtype = 2; });
    wrong("no classes", [](Call* call) { call->args.classes = 0; });
    wrong("negative rows", [](Call* call) { call->args.rows = -1; });
    wrong("no student", [](Call* call) { call->args.student = nullptr; });
    wrong("no teacher", [](Call* call) { call->args.teachers[0] = nullptr; });
    wrong("too many teachers", [](Call* call) { call->args.teacher_count = KD_MAX_TEACHERS + 1; });
    wrong("temperature 0", [](Call* call) { call->args.temperature = 0; });
    wrong("temperature NaN", [](Call* call) { call->args.temperature = std::nan(""); });
    wrong("grad_scale 0", [](Call* call) { call->args.grad_scale = 0; });
    const auto sparsely = [&](const char* what, auto change) { refused(what, KD_BAD_ARGUMENT, -1, sparse, change); };
    sparsely("tail", [](Call* call) { call->args.tail = 3; });
    sparsely("more listed than classes", [](Call* call) { call->args.listed = 11; });
    sparsely("none listed", [](Call* call) { call->args.listed = 0; });
    sparsely("index dtype", [](Call* call) { call->args.index_dtype = 7; });
    sparsely("bucket without a log-sum-exp", [](Call* call) { call->args.tail = KD_TAIL_BUCKET; });
}

void check_empty() {
    for (int dtype : kDtypes) {
        Case c = named("no rows", Case());
        c.rows = 0;
        c.dtype = dtype;
        c.flags = KD_CE_MEAN_VALID | KD_KL_MEAN_ROWS;
        check(c);
    }
}

void check_log_sum_exp() {
    for (std::int64_t classes : class_counts()) {
        for (int dtype : kDtypes) {
            Case c = named("log-sum-exp", mixture(int(classes), classes, dtype));
            const Data data = random_data(c);
            Call call;
            make_call(c, data, &call);
            for (const char* name : kInstructionSets) {
                if (kd_cpu_force_isa(name) != KD_OK) continue;
                Numbers lse(data.rows.size());
                const kd_loss_args& a = call.args;
                const kd_status status = kd_log_sum_exp_cpu(a.student, a.student_stride, dtype, c.rows, classes,
                                                            c.temperature, a.row_temperature, 2, lse.data());
                if (status != KD_OK) fail(c, "the status", status, KD_OK);
                for (std::size_t i = 0; i < lse.size(); ++i) {
                    const double want = double(log_sum_exp(data.rows[i].student, data.temperature[i]));
                    const double allowed = unit_of(c) * 4e-7 * (1 + std::fabs(want));
                    if (!(std::fabs(lse[i] - want) <= allowed)) fail(c, "it", lse[i], want);
                }
            }
            ++cases;
        }
    }
}

// A gradient that is written past the caches, in rows that begin anywhere: the same bits as in two halves that are not.
void check_large(int dtype, std::int64_t rows, std::int64_t classes) {
    Case c = named("large", Case());
    c.dtype = dtype;
    c.rows = rows / 2;
    c.classes = classes;
    c.offset = 1;
    std::vector<RowCase> block;
    Noise noise(5);
    for (int i = 0; i < 5; ++i) block.push_back(random_row(c, noise));
    Data half;
    for (std::int64_t i = 0; i < c.rows; ++i) {
        half.rows.push_back(block[std::size_t(i % 5)]);
        half.labels.push_back(i % classes);
    }
    Data whole = half;
    whole.rows.insert(whole.rows.end(), half.rows.begin(), half.rows.end());
    whole.labels.insert(whole.labels.end(), half.labels.begin(), half.labels.end());
    Call small, large;
    make_call(c, half, &small);
    c.rows = rows;
    make_call(c, whole, &large);
    const std::size_t bytes = std::size_t(rows / 2 * classes) * size_of(dtype);
    for (const char* name : kInstructionSets) {
        if (kd_cpu_force_isa(name) != KD_OK) continue;
        run(c, &small, 1);
        run(c, &large, 2);
        const char* const first = static_cast<const char*>(large.grad.begin());
        for (const char* part : {first, first + bytes}) {
            if (std::memcmp(small.grad.begin(), part, bytes) != 0) fail(c, "the streamed gradient", 1, 0);
        }
        for (std::size_t i = 0; i < whole.rows.size(); ++i) {
            if (large.row_loss[i] != small.row_loss[i % half.rows.size()]) fail(c, "a loss", large.row_loss[i], 0);
        }
        compare_between(c, large.grad, "memory before the gradient");
    }
    ++cases;
}

}  // namespace
}  // namespace kd::test

int main() {
    using namespace kd::test;
    const std::string first = kd_cpu_isa();
    check_refusals();
    check_empty();
    check_one_teacher();
    check_several_teachers();
    check_sparse();
    check_masks();
    check_orders();
    check_far_block();
    check_sizes();
    check_log_sum_exp();
    check_large(KD_FLOAT32, 2100, 3001);
    std::string used;
    for (const char* name : kInstructionSets) {
        if (kd_cpu_force_isa(name) == KD_OK) used += std::string(" ") + name;
    }
    std::printf("ok: %d cases on%s; began with %s\n", cases, used.c_str(), first.c_str());
    return 0;
}
