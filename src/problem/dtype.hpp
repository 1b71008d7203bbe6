// Element types: their sizes, and what messages call them.
#pragma once

#include <cstdint>
#include <string>

#include "foveal/types.hpp"

namespace foveal {

constexpr int64_t bytes_of(DType dtype) {
    return dtype == DType::boolean ? 1 : dtype == DType::f32 || dtype == DType::i32 ? 4 : 2;
}

inline std::string name_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "f32";
        case DType::bf16:
            return "bf16";
        case DType::f16:
            return "f16";
        case DType::i32:
            return "i32";
        case DType::boolean:
            return "bool";
    }
    return "unknown dtype " + std::to_string(static_cast<foveal_dtype>(dtype));
}

constexpr bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

inline DType dtype_of(const foveal_tensor& t) { return static_cast<DType>(t.dtype); }

}  // namespace foveal
