#include "backend/backends.hpp"

#include <cstdlib>
#include <string_view>

#include "cpu/forward.hpp"
#include "cpu/merge.hpp"
#include "sm90/forward/support.hpp"
#if FOVEAL_HAS_CUDA
#include "sm90/forward/launch.hpp"
#include "sm90/merge/merge.hpp"
#endif

namespace foveal {
namespace {

void require_built(foveal_backend backend) {
    if (!backend_built(backend))
        throw Error(FOVEAL_NO_DEVICE, "backend is sm90, but this build of foveal has no CUDA part");
}

void require_no_stream(void* stream) {
    if (stream != nullptr) throw Error(FOVEAL_INVALID_ARGUMENT, "stream is not NULL; the cpu backend has no streams");
}

// FOVEAL_BACKEND, or AUTO if it is unset.
foveal_backend forced_backend() {
    const char* text = std::getenv("FOVEAL_BACKEND");
    if (text == nullptr || *text == '\0' || std::string_view(text) == "auto") return FOVEAL_BACKEND_AUTO;
    if (std::string_view(text) == "cpu") return FOVEAL_BACKEND_CPU;
    if (std::string_view(text) == "sm90") return FOVEAL_BACKEND_SM90;
    throw Error(FOVEAL_INVALID_ARGUMENT, std::string("the environment variable FOVEAL_BACKEND is \"") + text +
                                             "\"; known are cpu, sm90 and auto");
}

}  // namespace

bool backend_built(foveal_backend backend) {
    return backend == FOVEAL_BACKEND_CPU || (backend == FOVEAL_BACKEND_SM90 && FOVEAL_HAS_CUDA);
}

foveal_backend resolve_backend(foveal_backend asked, [[maybe_unused]] const void* first_input) {
    foveal_backend backend = asked;
    if (backend == FOVEAL_BACKEND_AUTO) backend = forced_backend();
#if FOVEAL_HAS_CUDA
    if (backend == FOVEAL_BACKEND_AUTO && sm90::is_device_pointer(first_input)) backend = FOVEAL_BACKEND_SM90;
#endif
    if (backend == FOVEAL_BACKEND_AUTO) backend = FOVEAL_BACKEND_CPU;
    require_built(backend);
    return backend;
}

void check_supported(const Problem& problem, foveal_backend backend) {
    if (backend == FOVEAL_BACKEND_SM90) sm90::check_supported(problem);
}

void launch(const Plan& plan, const Pointers& pointers, void* stream) {
    if (plan.backend == FOVEAL_BACKEND_CPU) {
        require_no_stream(stream);
        cpu::forward(plan.problem, pointers);
        return;
    }
    require_built(plan.backend);
#if FOVEAL_HAS_CUDA
    sm90::check_pointers(pointers);
    sm90::launch_forward(plan, pointers, stream);
#endif
}

void launch(const Merge& merge, foveal_backend backend, void* stream) {
    if (backend == FOVEAL_BACKEND_CPU) {
        require_no_stream(stream);
        cpu::merge(merge);
        return;
    }
    require_built(backend);
#if FOVEAL_HAS_CUDA
    sm90::launch_merge(merge, stream);
#endif
}

}  // namespace foveal
