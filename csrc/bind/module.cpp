// The Python module kdbench.ops._native: addresses in, status and loss out. It knows nothing of tensors; who calls it
// has checked shapes, types and strides and keeps the memory alive.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "kd/api.h"

namespace py = pybind11;

namespace {

template <class Pointer>
Pointer at(std::uintptr_t address) {
    return reinterpret_cast<Pointer>(address);
}

std::tuple<int, double, std::int64_t> loss(std::uintptr_t student, std::uintptr_t teacher, std::uintptr_t labels,
                                           std::uintptr_t grad, std::uintptr_t row_loss, std::int64_t rows,
                                           std::int64_t classes, std::int64_t student_stride,
                                           std::int64_t teacher_stride, std::int64_t grad_stride,
                                           std::int64_t ignore_index, double temperature, double ce_weight,
                                           double kl_weight, int dtype, int label_dtype, unsigned flags, int threads) {
    kd_loss_args args;
    args.student = at<const void*>(student);
    args.teacher = at<const void*>(teacher);
    args.labels = at<const void*>(labels);
    args.grad = at<void*>(grad);
    args.row_loss = at<double*>(row_loss);
    args.rows = rows;
    args.classes = classes;
    args.student_stride = student_stride;
    args.teacher_stride = teacher_stride;
    args.grad_stride = grad_stride;
    args.ignore_index = ignore_index;
    args.temperature = temperature;
    args.ce_weight = ce_weight;
    args.kl_weight = kl_weight;
    args.dtype = dtype;
    args.label_dtype = label_dtype;
    args.flags = flags;
    args.threads = threads;
    kd_loss_result result;
    kd_status status;
    {
        py::gil_scoped_release release;
        status = kd_loss_cpu(&args, &result);
    }
    return {int(status), result.loss, result.bad_row};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Distillation kernels over raw addresses; call kdbench.losses instead.";
    module.attr("api_level") = KD_API_LEVEL;
    module.attr("openmp") = kd_has_openmp() != 0;
    module.attr("isa") = kd_cpu_isa();
    module.attr("FLOAT32") = int(KD_FLOAT32);
    module.attr("FLOAT64") = int(KD_FLOAT64);
    module.attr("INT32") = int(KD_INT32);
    module.attr("INT64") = int(KD_INT64);
    module.attr("CE_MEAN_OVER_VALID_ROWS") = int(KD_CE_MEAN_OVER_VALID_ROWS);
    module.attr("OK") = int(KD_OK);
    module.attr("BAD_LABEL") = int(KD_BAD_LABEL);
    module.attr("BAD_ARGUMENT") = int(KD_BAD_ARGUMENT);
    module.attr("NO_MEMORY") = int(KD_NO_MEMORY);
    module.def("loss", &loss, "(status, summed loss, first bad row or -1); see csrc/include/kd/api.h.");
}
