// DLPack's binary interface, version 1: how array libraries hand each other tensors without a copy.
// https://dmlc.github.io/dlpack/latest/c_api.html; the C exchange table: version 1.2, "C Exchange API".
#pragma once

#include <cstdint>

namespace foveal::python::dlpack {

struct Version {
    uint32_t major;
    uint32_t minor;
};
inline constexpr uint32_t kMajorVersion = 1;

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6, kFloat8E4M3FN = 10 };

struct Device {
    int32_t type;
    int32_t id;
    bool operator==(const Device&) const = default;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t rank;
    DataType dtype;
    int64_t* shape;    // [rank]
    int64_t* strides;  // [rank], in elements; may be null: packed
    uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

inline constexpr uint64_t kReadOnly = 1;

// What a capsule named "dltensor_versioned" holds.
struct VersionedTensor {
    Version version;
    void* context;
    void (*deleter)(VersionedTensor*);
    uint64_t flags;
    Tensor tensor;
};

// The capsule "dlpack_exchange_api" that a tensor's type may carry as __dlpack_c_exchange_api__.
struct ExchangeApi {
    Version version;
    const ExchangeApi* previous;  // an older version's table, or null
    int (*allocate)(Tensor* prototype, VersionedTensor** out, void* error_context,
                    void (*set_error)(void* error_context, const char* kind, const char* message));
    int (*own_from_object)(void* object, VersionedTensor** out);
    int (*object_from_owned)(VersionedTensor* tensor, void** object);
    int (*borrow_from_object)(void* object, Tensor* out);  // may be null
    int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace foveal::python::dlpack
