// Element types: their sizes, and what messages call them.
#pragma once

#include <cstdint>
#include <string>

#include "foveal/types.hpp"

namespace foveal {

constexpr int64_t bytes_of(DType dtype) {
    switch (dtype) {
        case DType::boolean:
        case DType::e4m3:
            return 1;
        case DType::bf16:
        case DType::f16:
            return 2;
        case DType::f32:
        case DType::i32:
        case DType::u32:
            return 4;
        case DType::i64:
            return 8;
    }
    return 1;  // no type that validate() lets through
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
        case DType::i64:
            return "i64";
        case DType::u32:
            return "u32";
        case DType::e4m3:
            return "e4m3";
    }
    return "unknown dtype " + std::to_string(static_cast<foveal_dtype>(dtype));
}

// One whose numbers need no scale.
constexpr bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

inline DType dtype_of(const foveal_tensor& t) { return static_cast<DType>(t.dtype); }

}  // namespace foveal
