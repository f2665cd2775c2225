// The parts of the DLPack ABI (version 1.x, dmlc/dlpack) that the binding uses. Tensor libraries publish a table of
// functions as the capsule `__dlpack_c_exchange_api__` on their tensor type; through it tensors are read and made
// without their C++ headers or libraries, in nanoseconds, by code that was built without them.
#pragma once

#include <cstdint>

namespace dlpack {

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2 };

struct Device {
    std::int32_t type;
    std::int32_t id;
};

enum TypeCode : std::uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4 };

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;

    bool is(TypeCode c, int b) const { return code == c && bits == b && lanes == 1; }
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; never null from libraries that publish the table
    std::uint64_t byte_offset;

    char* begin() const { return static_cast<char*>(data) + byte_offset; }
};

struct ManagedTensor {
    Version version;
    void* manager;
    void (*deleter)(ManagedTensor*);
    std::uint64_t flags;
    Tensor tensor;
};

using SetError = void (*)(void* context, const char* kind, const char* message);

struct ExchangeApi {
    Version version;
    ExchangeApi* previous;
    int (*allocate)(Tensor* like, ManagedTensor** out, void* context, SetError);
    int (*managed_from_object)(void* object, ManagedTensor** out);
    int (*managed_to_object)(ManagedTensor*, void** out);
    int (*view_of_object)(void* object, Tensor* out);
    int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr std::uint32_t kMajor = 1;

}  // namespace dlpack
