#include "tensors.h"

#include <cstdlib>

#include "kd/pool.h"

namespace kd::bind {

const dlpack::ExchangeApi* api = nullptr;

namespace {

// A tensor over memory of our own, with what its header points to. Small ones have their numbers right behind it:
// that is one allocation, where the library's own way from a table of functions takes four.
struct Owned {
    dlpack::ManagedTensor managed;
    std::int64_t shape[2];
    std::int64_t strides[2];
};

constexpr std::size_t kHead = (sizeof(Owned) + 63) / 64 * 64;

void release_small(dlpack::ManagedTensor* managed) { std::free(managed->manager); }

void release_pooled(dlpack::ManagedTensor* managed) {
    kd_pool_give(managed->tensor.data);
    std::free(managed->manager);
}

void raise(void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); }

PyObject* to_object(dlpack::ManagedTensor* managed) {
    void* object = nullptr;
    if (api->managed_to_object(managed, &object) != 0) {
        if (managed->deleter != nullptr) managed->deleter(managed);
        return nullptr;
    }
    return static_cast<PyObject*>(object);
}

std::int64_t count(int ndim, const std::int64_t* shape) {
    std::int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
}

PyObject* make_on_cpu(dlpack::DataType type, int ndim, const std::int64_t* shape, void** data) {
    const std::size_t bytes = std::size_t(count(ndim, shape)) * (type.bits / 8);
    const bool pooled = bytes >= KD_POOL_SMALLEST;
    const std::size_t whole = pooled ? kHead : kHead + (bytes + 63) / 64 * 64;
    Owned* const owned = static_cast<Owned*>(std::aligned_alloc(64, whole));
    if (owned == nullptr) return PyErr_NoMemory();
    void* const memory = pooled ? kd_pool_take(bytes) : reinterpret_cast<char*>(owned) + kHead;
    if (memory == nullptr) {
        std::free(owned);
        return PyErr_NoMemory();
    }
    for (int d = ndim - 1; d >= 0; --d) {
        owned->shape[d] = shape[d];
        owned->strides[d] = d == ndim - 1 ? 1 : owned->strides[d + 1] * shape[d + 1];
    }
    const dlpack::Tensor view{memory, {dlpack::kCpu, 0}, ndim, type, owned->shape, owned->strides, 0};
    owned->managed = {{dlpack::kMajor, 0}, owned, pooled ? release_pooled : release_small, 0, view};
    *data = memory;
    return to_object(&owned->managed);
}

}  // namespace

bool use_tensors_of(PyObject* tensor_type) {
    PyObject* const capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
    if (capsule == nullptr) return false;
    auto* const found = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
    Py_DECREF(capsule);
    if (found == nullptr) return false;
    if (found->version.major != dlpack::kMajor) {
        PyErr_Format(PyExc_ImportError, "DLPack %u is not version %u", found->version.major, dlpack::kMajor);
        return false;
    }
    api = found;
    return true;
}

bool view(PyObject* object, dlpack::Tensor* out) {
    if (api->view_of_object(object, out) == 0) return true;
    PyErr_Clear();
    return false;
}

int dtype_of(dlpack::DataType type) {
    if (type.is(dlpack::kFloat, 32)) return KD_FLOAT32;
    if (type.is(dlpack::kFloat, 64)) return KD_FLOAT64;
    if (type.is(dlpack::kBfloat, 16)) return KD_BFLOAT16;
    if (type.is(dlpack::kFloat, 16)) return KD_FLOAT16;
    return -1;
}

int index_dtype_of(dlpack::DataType type) {
    if (type.is(dlpack::kInt, 32)) return KD_INT32;
    if (type.is(dlpack::kInt, 64)) return KD_INT64;
    return -1;
}

bool same_device(const dlpack::Tensor& a, const dlpack::Tensor& b) {
    return a.device.type == b.device.type && a.device.id == b.device.id;
}

PyObject* make(const dlpack::Tensor& like, dlpack::DataType type, int ndim, const std::int64_t* shape, void** data) {
    if (like.device.type == dlpack::kCpu) return make_on_cpu(type, ndim, shape, data);
    dlpack::Tensor wanted = like;
    wanted.dtype = type;
    wanted.ndim = ndim;
    wanted.shape = const_cast<std::int64_t*>(shape);
    wanted.strides = nullptr;
    wanted.byte_offset = 0;
    dlpack::ManagedTensor* managed = nullptr;
    if (api->allocate(&wanted, &managed, nullptr, raise) != 0) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "the tensor library could not allocate");
        return nullptr;
    }
    *data = managed->tensor.begin();
    return to_object(managed);
}

}  // namespace kd::bind
