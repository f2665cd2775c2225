// Walks the CPU kernels over odd sizes, with buffers that end where the data ends, for a build under sanitizers.
// Exits with 1 where a number is wrong by more than rounding; the sanitizers end the program themselves.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <type_traits>
#include <vector>

#include "kd/api.h"

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::uint32_t state = 12345;

double noise() {  // in [-2, 2]
    state = state * 1664525u + 1013904223u;
    return double(state) / double(1u << 30) - 2.0;
}

void fail(const char* what, std::int64_t classes, double got, double want) {
    std::printf("%s at %lld classes: %.17g, expected %.17g\n", what, (long long)classes, got, want);
    std::exit(1);
}

template <class Real>
double expected_kl(const Real* s, const Real* t, std::int64_t n, double temperature) {
    double zs = 0, zt = 0, sum = 0;
    for (std::int64_t i = 0; i < n; ++i) zs += std::exp(s[i] / temperature), zt += std::exp(t[i] / temperature);
    for (std::int64_t i = 0; i < n; ++i) {
        const double log_p = t[i] / temperature - std::log(zt);
        sum += std::exp(log_p) * (log_p - s[i] / temperature + std::log(zs));
    }
    return sum;
}

template <class Real>
kd_loss_args arguments(std::int64_t rows, std::int64_t classes, double temperature) {
    kd_loss_args args{};
    args.rows = rows;
    args.classes = classes;
    args.student_stride = args.teacher_stride = args.grad_stride = classes;
    args.ignore_index = -100;
    args.temperature = temperature;
    args.ce_weight = 0.5;
    args.kl_weight = 1.5;
    args.dtype = std::is_same<Real, float>::value ? KD_FLOAT32 : KD_FLOAT64;
    args.label_dtype = KD_INT64;
    args.threads = 2;
    return args;
}

template <class Real>
void check(std::int64_t rows, std::int64_t classes, double temperature) {
    std::vector<Real> student(rows * classes), teacher(rows * classes), grad(rows * classes, Real(7));
    std::vector<std::int64_t> labels(rows);
    std::vector<double> row_loss(rows);
    for (auto& x : student) x = Real(noise());
    for (auto& x : teacher) x = Real(noise());
    for (std::int64_t i = 0; i < rows; ++i) labels[i] = i % 3 == 2 ? -100 : i % classes;
    kd_loss_args args = arguments<Real>(rows, classes, temperature);
    args.student = student.data();
    args.teacher = teacher.data();
    args.labels = labels.data();
    args.grad = grad.data();
    args.row_loss = row_loss.data();
    kd_loss_result result;
    if (kd_loss_cpu(&args, &result) != KD_OK) fail("status", classes, 1, 0);
    const double loss = result.loss;
    double slope = 0;
    for (auto g : grad) slope += double(g);
    if (!(std::fabs(slope) < 1e-4)) fail("sum of the gradient", classes, slope, 0);

    args.labels = nullptr;  // the KL alone, without a gradient and without row losses
    args.grad = nullptr;
    args.row_loss = nullptr;
    kd_loss_cpu(&args, &result);
    double want = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
        want += 1.5 * expected_kl(&student[i * classes], &teacher[i * classes], classes, temperature);
    }
    if (!(std::fabs(result.loss - want) <= 1e-5 * want + 1e-6)) fail("KL", classes, result.loss, want);
    if (classes > 1 && !(loss > result.loss)) fail("KL and cross-entropy", classes, loss, result.loss);

    student[0] = Real(-kInf);  // masks and NaN run through the same vector code
    teacher[classes - 1] = Real(-kInf);
    teacher[rows * classes - 1] = Real(std::nan(""));
    args.labels = labels.data();
    args.grad = grad.data();
    kd_loss_cpu(&args, &result);
    if (!std::isnan(result.loss)) fail("NaN", classes, result.loss, std::nan(""));

    labels[0] = classes;
    if (kd_loss_cpu(&args, &result) != KD_BAD_LABEL || result.bad_row != 0) fail("bad label", classes, 0, 1);
}

}  // namespace

int main() {
    for (std::int64_t classes : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1000, 1023, 1025, 4097}) {
        for (double temperature : {1.0, 4.0}) {
            check<float>(5, classes, temperature);
            check<double>(5, classes, temperature);
        }
    }
    check<float>(257, 130, 2.5);  // enough logits for two threads
    std::printf("ok on %s\n", kd_cpu_isa());
    return 0;
}
