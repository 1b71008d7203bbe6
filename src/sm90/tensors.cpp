#include "sm90/tensors.hpp"

#include <string>

namespace foveal::sm90 {
namespace {

constexpr int64_t kCopyEngineBytes = 16;  // alignment of addresses and strides in a tensor map
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

void check_stride(const char* tensor, const char* which, int64_t stride, int64_t element_bytes) {
    if (stride * element_bytes % kCopyEngineBytes != 0)
        refuse(std::string(tensor) + "'s " + which + " stride is " + std::to_string(stride) +
               " elements; the sm90 backend needs a multiple of " + std::to_string(kCopyEngineBytes / element_bytes) +
               " (16 bytes)");
    if (stride * element_bytes >= kMaxStrideBytes)
        refuse(std::string(tensor) + "'s " + which + " stride is " + std::to_string(stride) +
               " elements; the sm90 backend needs less than 2^40 bytes");
}

}  // namespace

void check_strides(const char* tensor, const Strides& strides, int64_t element_bytes) {
    check_stride(tensor, "batch", strides.batch, element_bytes);
    check_stride(tensor, "row", strides.row, element_bytes);
    check_stride(tensor, "head", strides.head, element_bytes);
}

void check_alignment(const char* tensor, const void* data) {
    if (reinterpret_cast<uintptr_t>(data) % kCopyEngineBytes != 0)
        refuse(std::string(tensor) + ".data is not aligned to 16 bytes, which the sm90 backend needs");
}

void check_head_dim(const char* name, int64_t head_dim, int32_t widest) {
    if (head_dim % 8 != 0 || head_dim > widest)
        refuse(std::string(name) + "'s head dimension is " + std::to_string(head_dim) +
               "; the sm90 backend supports multiples of 8 up to " + std::to_string(widest));
}

void check_keys_in_e4m3(const ForwardProblem& p) {
    if (p.keys_dtype != DType::e4m3) return;
    const auto check = [](const char* name, int64_t head_dim) {
        if (head_dim % kCopyEngineBytes != 0)
            refuse(std::string(name) + "'s head dimension is " + std::to_string(head_dim) +
                   "; in e4m3 the sm90 backend supports multiples of " + std::to_string(kCopyEngineBytes));
    };
    check("k", p.head_dim);
    check("v", p.head_dim_v);
}

void check_strides(const ForwardProblem& p) {
    const int64_t element = bytes_of(p.dtype), element_of_keys = p.keys_dtype == DType::e4m3 ? 1 : element;
    check_strides("q", p.q, element);
    check_strides("k", p.k, element_of_keys);
    check_strides("v", p.v, element_of_keys);
    check_strides("out", p.out, bytes_of(p.out_dtype));
}

void check_pointers(const ForwardPointers& pointers) {
    check_alignment("q", pointers.q);
    check_alignment("k", pointers.k);
    check_alignment("v", pointers.v);
    check_alignment("out", pointers.out);
}

}  // namespace foveal::sm90
