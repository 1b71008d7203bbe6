#include "problem/argument.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "problem/strides.hpp"

namespace foveal {

void refuse(const std::string& message) { throw Error(FOVEAL_INVALID_ARGUMENT, message); }

void require_known_backend(foveal_backend backend) {
    if (backend != FOVEAL_BACKEND_AUTO && backend != FOVEAL_BACKEND_CPU && backend != FOVEAL_BACKEND_SM90)
        refuse("backend is " + std::to_string(backend) + "; known are 0 (auto), 1 (cpu) and 2 (sm90)");
}

namespace {

// Neither the number of bytes nor the offset of the byte behind the last element overflows 64 bits.
void require_addressable(const Argument& a) {
    int64_t bytes = a.element_bytes(), end = bytes;
    for (int i = 0; i < a.tensor.rank; ++i)
        if (__builtin_mul_overflow(bytes, a.tensor.shape[i], &bytes))
            refuse(a.text() + ": the product of its shape overflows 64 bits at " + a.dim(i) + " = " +
                   std::to_string(a.tensor.shape[i]));
    for (int i = 0; i < a.tensor.rank; ++i) {
        int64_t reach = 0;
        bool overflow = __builtin_mul_overflow(std::max<int64_t>(a.tensor.shape[i] - 1, 0), a.tensor.stride[i], &reach);
        overflow |= __builtin_mul_overflow(reach, a.element_bytes(), &reach);
        overflow |= __builtin_add_overflow(end, reach, &end);
        if (overflow)
            refuse(a.text() + ": its elements lie beyond 64 bits; the strides up to " + a.stride(i) + " = " +
                   std::to_string(a.tensor.stride[i]) + " reach too far");
    }
}

void require_strides(const Argument& a, LastStride last_stride) {
    const int last = a.tensor.rank - 1;
    for (int i = 0; i < a.tensor.rank; ++i) {
        const int64_t n = a.tensor.shape[i], stride = a.tensor.stride[i];
        if (n <= 1) continue;
        const bool may_be_shared = last_stride == LastStride::one_or_shared;
        if (i == last && stride != 1 && !(stride == 0 && may_be_shared))
            refuse(a.stride(i) + " is " + std::to_string(stride) + "; the last dimension's must be 1" +
                   (may_be_shared ? ", or 0 where one element stands for all" : ""));
        if (stride < 0)
            refuse(a.stride(i) + " is " + std::to_string(stride) + "; it must not be negative where " + a.dim(i) +
                   " is " + std::to_string(n));
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

void require_dtype(const Argument& a, DType dtype, const char* why) {
    if (a.dtype() != dtype)
        refuse(a.text() + ".dtype is " + name_of(a.dtype()) + "; " + why + " needs " + name_of(dtype));
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

void check_strided(const Argument& a, LastStride last_stride) {
    require_shape(a);
    require_strides(a, last_stride);
    require_addressable(a);
}

void require_known_rank(const Argument& a) {
    if (a.tensor.rank < 0 || a.tensor.rank > FOVEAL_MAX_RANK)
        refuse(a.text() + ".rank is " + std::to_string(a.tensor.rank) + "; ranks are 0 (absent) to " +
               std::to_string(FOVEAL_MAX_RANK));
}

const void* data_of(const Argument& a) {
    if (!a.present()) return nullptr;
    if (a.tensor.data == nullptr && has_elements(a.tensor))
        refuse(a.text() + ".data is NULL but the tensor has elements");
    if (reinterpret_cast<uintptr_t>(a.tensor.data) % static_cast<uintptr_t>(a.element_bytes()) != 0)
        refuse(a.text() + ".data is not aligned to its element of " + std::to_string(a.element_bytes()) + " bytes");
    return a.tensor.data;
}

}  // namespace foveal
