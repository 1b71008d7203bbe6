// Tensor arguments: the checks that every operation makes of them.
// Each require_ and check_ throws Error(INVALID_ARGUMENT) naming the argument and the value.
#pragma once

#include <cstdint>
#include <string>

#include "foveal/foveal.h"
#include "problem/dtype.hpp"

namespace foveal {

[[noreturn]] void refuse(const std::string& message);

// A tensor argument and what messages call it: "q", or one of several, "outs[2]".
struct Argument {
    const char* name;
    const foveal_tensor& tensor;
    int32_t index = -1;  // -1: not one of several

    std::string text() const { return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]"; }
    std::string dim(int i) const { return text() + ".shape[" + std::to_string(i) + "]"; }
    std::string stride(int i) const { return text() + ".stride[" + std::to_string(i) + "]"; }
    bool present() const { return tensor.rank != 0; }
    DType dtype() const { return dtype_of(tensor); }
    int64_t element_bytes() const { return bytes_of(dtype()); }
};

void require_known_backend(foveal_backend backend);
void require_known_rank(const Argument& a);  // what else reads shapes needs this first
void require_rank(const Argument& a, int rank, const char* layout);
void require_dtype(const Argument& a, DType dtype, const char* why);
void require_dim(const Argument& a, int i, int64_t expected, const char* same_as);
// A tensor that is written must not lie on itself.
void require_no_overlap(const Argument& a);
// Lengths, strides, and that 64 bits reach every byte. Strides are not negative, and 0 where neighbours are the same
// element: of what is written require_no_overlap() refuses that.
enum class LastStride { one, one_or_shared };
void check_strided(const Argument& a, LastStride last_stride = LastStride::one);

// null if absent; else present where elements are, and aligned to the element.
const void* data_of(const Argument& a);

}  // namespace foveal
