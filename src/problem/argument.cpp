#include "problem/argument.hpp"

#include <algorithm>
#include <set>
#include <utility>

namespace foveal {

void refuse(const std::string& message) { throw Error(FOVEAL_INVALID_ARGUMENT, message); }

std::string text_of(foveal_dtype dtype) {
    switch (dtype) {
        case FOVEAL_F32:
            return "f32";
        case FOVEAL_BF16:
            return "bf16";
        case FOVEAL_F16:
            return "f16";
        case FOVEAL_I32:
            return "i32";
        case FOVEAL_BOOL:
            return "bool";
        default:
            return "unknown dtype " + std::to_string(dtype);
    }
}

int64_t element_bytes(foveal_dtype dtype) {
    return dtype == FOVEAL_BOOL ? 1 : dtype == FOVEAL_F32 || dtype == FOVEAL_I32 ? 4 : 2;
}

bool Argument::empty() const {
    return std::any_of(tensor.shape, tensor.shape + tensor.rank, [](int64_t n) { return n == 0; });
}

void require_known_backend(foveal_backend backend) {
    if (backend != FOVEAL_BACKEND_AUTO && backend != FOVEAL_BACKEND_CPU && backend != FOVEAL_BACKEND_SM90)
        refuse("backend is " + std::to_string(backend) + "; known are 0 (auto), 1 (cpu) and 2 (sm90)");
}

namespace {

// Neither the number of bytes nor the byte offset of the last element overflows 64 bits.
void require_addressable(const Argument& a) {
    int64_t bytes = element_bytes(a.tensor.dtype), offset = 0;
    for (int i = 0; i < a.tensor.rank; ++i)
        if (__builtin_mul_overflow(bytes, a.tensor.shape[i], &bytes))
            refuse(a.text() + ": the product of its shape overflows 64 bits at " + a.dim(i) + " = " +
                   std::to_string(a.tensor.shape[i]));
    for (int i = 0; i < a.tensor.rank; ++i) {
        int64_t reach = 0;
        bool overflow = __builtin_mul_overflow(std::max<int64_t>(a.tensor.shape[i] - 1, 0), a.tensor.stride[i], &reach);
        overflow |= __builtin_mul_overflow(reach, element_bytes(a.tensor.dtype), &reach);
        overflow |= __builtin_add_overflow(offset, reach, &offset);
        if (overflow)
            refuse(a.text() + ": its elements lie beyond 64 bits; the strides up to " + a.stride(i) + " = " +
                   std::to_string(a.tensor.stride[i]) + " reach too far");
    }
}

void require_strides(const Argument& a) {
    const int last = a.tensor.rank - 1;
    for (int i = 0; i < a.tensor.rank; ++i) {
        const int64_t n = a.tensor.shape[i], stride = a.tensor.stride[i];
        if (n <= 1) continue;
        if (i == last && stride != 1)
            refuse(a.stride(i) + " is " + std::to_string(stride) + "; the last dimension's must be 1");
        if (stride <= 0)
            refuse(a.stride(i) + " is " + std::to_string(stride) + "; it must be positive where " + a.dim(i) + " is " +
                   std::to_string(n));
    }
}

void require_shape(const Argument& a) {
    for (int i = 0; i < a.tensor.rank; ++i)
        if (a.tensor.shape[i] < 0)
            refuse(a.dim(i) + " is " + std::to_string(a.tensor.shape[i]) + "; a length is not negative");
}

}  // namespace

void require_rank(const Argument& a, int rank, const char* layout) {
    if (a.tensor.rank != rank)
        refuse(a.text() + ".rank is " + std::to_string(a.tensor.rank) + "; " + layout + " needs " +
               std::to_string(rank));
}

void require_dtype(const Argument& a, foveal_dtype dtype, const char* why) {
    if (a.tensor.dtype != dtype)
        refuse(a.text() + ".dtype is " + text_of(a.tensor.dtype) + "; " + why + " needs " + text_of(dtype));
}

void require_dim(const Argument& a, int i, int64_t expected, const char* same_as) {
    if (a.tensor.shape[i] != expected)
        refuse(a.dim(i) + " is " + std::to_string(a.tensor.shape[i]) + " but " + same_as + " is " +
               std::to_string(expected));
}

// Sorted by stride, each dimension steps over the whole previous one.
void require_no_overlap(const Argument& a) {
    std::set<std::pair<int64_t, int>> order;  // (stride, dimension)
    for (int i = 0; i < a.tensor.rank; ++i)
        if (a.tensor.shape[i] > 1) order.emplace(a.tensor.stride[i], i);
    int64_t reach = 1;
    for (const auto& [stride, i] : order) {
        if (stride < reach)
            refuse(a.stride(i) + " is " + std::to_string(stride) + " but the dimensions inside it span " +
                   std::to_string(reach) + " elements: " + a.text() + " would overlap itself");
        reach += stride * (a.tensor.shape[i] - 1);
    }
}

void check_strided(const Argument& a) {
    require_shape(a);
    require_strides(a);
    require_addressable(a);
}

void require_known_rank(const Argument& a) {
    if (a.tensor.rank < 0 || a.tensor.rank > FOVEAL_MAX_RANK)
        refuse(a.text() + ".rank is " + std::to_string(a.tensor.rank) + "; ranks are 0 (absent) to " +
               std::to_string(FOVEAL_MAX_RANK));
}

const void* data_of(const Argument& a, int64_t alignment_bytes) {
    if (!a.present()) return nullptr;
    if (a.tensor.data == nullptr && !a.empty()) refuse(a.text() + ".data is NULL but the tensor has elements");
    if (reinterpret_cast<uintptr_t>(a.tensor.data) % static_cast<uintptr_t>(alignment_bytes) != 0)
        refuse(a.text() + ".data is not aligned to its element of " + std::to_string(alignment_bytes) + " bytes");
    return a.tensor.data;
}

int64_t stride_or_zero(const foveal_tensor& t, int i) { return t.shape[i] > 1 ? t.stride[i] : 0; }

Strides strides_of(const foveal_tensor& t) {
    if (Argument{"", t}.empty()) return {};
    const int row = t.rank == 4 ? 1 : 0;
    return {t.rank == 4 ? stride_or_zero(t, 0) : 0, stride_or_zero(t, row), stride_or_zero(t, row + 1)};
}

Strides lse_strides_of(const foveal_tensor& t) {
    if (Argument{"", t}.empty()) return {};
    const int head = t.rank == 3 ? 1 : 0;
    return {t.rank == 3 ? stride_or_zero(t, 0) : 0, 1, stride_or_zero(t, head)};
}

Strides score_strides_of(const foveal_tensor& t) {
    if (Argument{"", t}.empty()) return {};
    return {stride_or_zero(t, 0), stride_or_zero(t, 2), stride_or_zero(t, 1)};
}

}  // namespace foveal
