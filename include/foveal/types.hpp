// foveal: the error and the element types that the C++ layer (foveal.hpp) and the library itself share.
#ifndef FOVEAL_TYPES_HPP
#define FOVEAL_TYPES_HPP

#include <stdexcept>
#include <string>

#include "foveal/foveal.h"

namespace foveal {
inline namespace v0 {

// What a call that did not return FOVEAL_OK throws. what() names the argument, the value and what is supported.
class Error : public std::runtime_error {
   public:
    // status: any but FOVEAL_OK.
    Error(foveal_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    // FOVEAL_INVALID_ARGUMENT, FOVEAL_UNSUPPORTED, ...
    foveal_status status() const noexcept { return status_; }

   private:
    foveal_status status_;
};

// The type of a tensor's elements.
enum class DType : foveal_dtype {
    f32 = FOVEAL_F32,
    bf16 = FOVEAL_BF16,
    f16 = FOVEAL_F16,
    i32 = FOVEAL_I32,
    boolean = FOVEAL_BOOL,
    i64 = FOVEAL_I64,
    u32 = FOVEAL_U32,
    e4m3 = FOVEAL_E4M3
};

}  // namespace v0
}  // namespace foveal

#endif
