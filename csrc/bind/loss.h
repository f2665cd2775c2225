// The functions of the module that run for every loss; plain C calls, since a microsecond here is felt.
#pragma once

#include <pybind11/pybind11.h>

namespace kd::bind {

extern PyObject* loss_error;  // the exception type LossError(status, row)

// Each returns None where the tensors are not such as a kernel can read; the caller then prepares them, or says why.
PyObject* loss(PyObject* module, PyObject* const* arguments, Py_ssize_t count);
PyObject* log_sum_exp(PyObject* module, PyObject* const* arguments, Py_ssize_t count);
PyObject* scale(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace kd::bind
