// The Python module kdbench.ops._native. It knows nothing of torch: tensors are read and made through the DLPack
// exchange table of whoever calls it. kdbench.ops is the only caller.
#include <pybind11/pybind11.h>

#include <string>

#include "kd/api.h"
#include "kd/pool.h"
#include "loss.h"
#include "tensors.h"

namespace py = pybind11;

namespace {

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction as_method() {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"loss", as_method<kd::bind::loss>(), METH_FASTCALL,
     "loss(student, teachers, labels, extras, spec, gradient, threads) -> (loss, gradient, unscale) or None"},
    {"log_sum_exp", as_method<kd::bind::log_sum_exp>(), METH_FASTCALL,
     "log_sum_exp(logits, temperature, row_temperature, threads) -> [N] float64 or None"},
    {"scale", as_method<kd::bind::scale>(), METH_FASTCALL, "scale(gradient, factors, factor) -> whether it was done"},
    {nullptr, nullptr, 0, nullptr},
};

void use_tensors_of(const py::object& tensor_type) {
    if (!kd::bind::use_tensors_of(tensor_type.ptr())) throw py::error_already_set();
}

void force_isa(const py::object& name) {
    const std::string wanted = name.is_none() ? "" : py::cast<std::string>(name);
    if (kd_cpu_force_isa(name.is_none() ? nullptr : wanted.c_str()) != KD_OK) {
        throw py::value_error("instruction set '" + wanted + "' is not in this build or not on this machine");
    }
}

py::dict pool_statistics() {
    const kd_pool_state state = kd_pool_statistics();
    py::dict found;
    found["idle_bytes"] = state.idle_bytes;
    found["used_bytes"] = state.used_bytes;
    found["reused"] = state.reused;
    found["allocated"] = state.allocated;
    return found;
}

int cuda_devices() {
#ifdef KD_HAVE_CUDA
    return kd_cuda_device_count();
#else
    return 0;
#endif
}

std::string cuda_error() {
#ifdef KD_HAVE_CUDA
    return kd_cuda_error();
#else
    return "this build has no CUDA kernels";
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Distillation kernels; call kdbench.losses instead.";
    module.attr("api_level") = KD_API_LEVEL;
    module.attr("openmp") = kd_has_openmp() != 0;
#ifdef KD_HAVE_CUDA
    module.attr("cuda") = true;
#else
    module.attr("cuda") = false;
#endif
    module.attr("BAD_LABEL") = int(KD_BAD_LABEL);
    module.attr("BAD_ARGUMENT") = int(KD_BAD_ARGUMENT);
    module.attr("NO_MEMORY") = int(KD_NO_MEMORY);
    module.attr("BAD_INDEX") = int(KD_BAD_INDEX);
    module.attr("CUDA_ERROR") = int(KD_CUDA_ERROR);
    kd::bind::loss_error = PyErr_NewException("kdbench.ops._native.LossError", nullptr, nullptr);
    if (kd::bind::loss_error == nullptr || PyModule_AddFunctions(module.ptr(), methods) != 0) {
        throw py::error_already_set();
    }
    module.attr("LossError") = py::handle(kd::bind::loss_error);
    module.def("use_tensors_of", &use_tensors_of, "Takes the exchange table of a tensor type; once, before anything else.");
    module.def("isa", &kd_cpu_isa, "The instruction set in use.");
    module.def("force_isa", &force_isa, "Uses another one; None returns to the widest.");
    module.def("pool_statistics", &pool_statistics, "What the pool of gradient buffers holds.");
    module.def("pool_limit", &kd_pool_limit, "Most bytes that may lie idle.");
    module.def("pool_trim", &kd_pool_trim, "Returns idle buffers to the system.");
    module.def("cuda_devices", &cuda_devices, "Devices that a driver offers.");
    module.def("cuda_error", &cuda_error, "Text of the last CUDA error of this thread.");
}
