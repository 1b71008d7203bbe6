// Preloaded by the tool's tests: foveal_forward and foveal_merge whose results are wrong in the way that
// FOVEAL_TEST_BREAK names. What the tool then says of it shows that its checks can fail.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "foveal/foveal.h"

namespace {

// In every type of element these bits are far from any result of normal inputs.
constexpr uint32_t kFarOff = 0x46404640;
constexpr uint32_t kNaN = 0x7FC07FC0;

int64_t element_bytes(const foveal_tensor& tensor) { return tensor.dtype == FOVEAL_F32 ? 4 : 2; }

void set_element(const foveal_tensor& tensor, int64_t index, uint32_t bits) {
    const int64_t bytes = element_bytes(tensor);
    std::memcpy(static_cast<char*>(tensor.data) + index * bytes, &bits, static_cast<size_t>(bytes));
}

std::string how_to_break() {
    const char* variable = std::getenv("FOVEAL_TEST_BREAK");
    return variable == nullptr ? "" : variable;
}

// Calls the library's own function, and spoils what it has written.
template <class Args>
foveal_status call_and_break(const char* name, const Args* args, void* stream) {
    const std::string how = how_to_break();
    if (how == "nothing_written") return FOVEAL_OK;
    void* symbol = dlsym(RTLD_NEXT, name);
    foveal_status (*function)(const Args*, void*) = nullptr;
    std::memcpy(&function, &symbol, sizeof function);
    const foveal_status status = function(args, stream);
    if (status != FOVEAL_OK) return status;
    if (how == "wrong_value") set_element(args->out, 1, kFarOff);
    if (how == "nan") set_element(args->out, 1, kNaN);
    if (how == "out_of_bounds") set_element(args->out, -1, kFarOff);
    if (how == "wrong_lse") set_element(args->lse, 0, kFarOff);
    return status;
}

}  // namespace

extern "C" foveal_status foveal_forward(const foveal_forward_args* args, void* stream) {
    return call_and_break("foveal_forward", args, stream);
}

extern "C" foveal_status foveal_merge(const foveal_merge_args* args, void* stream) {
    return call_and_break("foveal_merge", args, stream);
}
