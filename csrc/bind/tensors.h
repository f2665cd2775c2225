// Tensors of whatever library handed over its exchange table: read, checked for what kernels need, made.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "dlpack.h"
#include "kd/api.h"

namespace kd::bind {

// The table that every call goes through; set once by use_tensors_of().
extern const dlpack::ExchangeApi* api;

// Takes the table from a tensor type. Python error and false: it has none, or one of another major version.
bool use_tensors_of(PyObject* tensor_type);

// False without a Python error: the object is no tensor of that library, or cannot be viewed.
bool view(PyObject* object, dlpack::Tensor* out);

// kd_dtype, or -1.
int dtype_of(dlpack::DataType type);

// kd_index_dtype, or -1.
int index_dtype_of(dlpack::DataType type);

bool same_device(const dlpack::Tensor& a, const dlpack::Tensor& b);

// A new tensor on the device of `like`; large ones on the CPU lie in the pool. Null with a Python error.
PyObject* make(const dlpack::Tensor& like, dlpack::DataType type, int ndim, const std::int64_t* shape, void** data);

}  // namespace kd::bind
