#include "backend/backends.hpp"

#include <cstdlib>
#include <string>
#include <string_view>

#include "cpu/backend.hpp"
#include "sm90/backend.hpp"

namespace foveal {
namespace {

// A new backend gets its row here.
constexpr const Backend* kBackends[] = {&cpu::kBackend, &sm90::kBackend};

const Backend* find_backend(foveal_backend id) {
    for (const Backend* backend : kBackends)
        if (backend->id == id) return backend;
    return nullptr;
}

// FOVEAL_BACKEND, or AUTO if it is unset.
foveal_backend forced_backend() {
    const char* text = std::getenv("FOVEAL_BACKEND");
    if (text == nullptr || *text == '\0' || std::string_view(text) == "auto") return FOVEAL_BACKEND_AUTO;
    for (const Backend* backend : kBackends)
        if (std::string_view(text) == backend->name) return backend->id;
    throw Error(FOVEAL_INVALID_ARGUMENT, std::string("the environment variable FOVEAL_BACKEND is \"") + text +
                                             "\"; known are cpu, sm90 and auto");
}

}  // namespace

bool backend_built(foveal_backend id) {
    const Backend* backend = find_backend(id);
    return backend != nullptr && backend->is_built;
}

const Backend& backend_of(foveal_backend id) {
    const Backend* backend = find_backend(id);
    if (backend == nullptr)
        throw Error(FOVEAL_INVALID_ARGUMENT, "args.backend is " + std::to_string(id) +
                                                 " (auto); a plan is made for one backend: 1 (cpu) or 2 (sm90)");
    return *backend;
}

const Backend& require_built(const Backend& backend) {
    if (!backend.is_built)
        throw Error(FOVEAL_NO_DEVICE,
                    std::string("backend is ") + backend.name + ", but this build of foveal has no CUDA part");
    return backend;
}

std::string environment_note(foveal_backend asked) {
    const char* text = std::getenv("FOVEAL_BACKEND");
    if (asked != FOVEAL_BACKEND_AUTO || text == nullptr) return "";
    for (const Backend* backend : kBackends)
        if (std::string_view(text) == backend->name)
            return std::string(" (the environment variable FOVEAL_BACKEND is \"") + text + "\")";
    return "";
}

const Backend& resolve_backend(foveal_backend asked, const void* first_input) {
    foveal_backend id = asked != FOVEAL_BACKEND_AUTO ? asked : forced_backend();
    if (asked == FOVEAL_BACKEND_AUTO && id != FOVEAL_BACKEND_AUTO) {
        for (const Backend* backend : kBackends)
            if (backend->id != id && backend->holds(first_input))
                throw Error(FOVEAL_INVALID_ARGUMENT,
                            std::string("the first tensor lies where backend ") + backend->name + " computes");
    }
    if (id == FOVEAL_BACKEND_AUTO) {
        id = FOVEAL_BACKEND_CPU;
        for (const Backend* backend : kBackends)
            if (backend->holds(first_input)) id = backend->id;
    }
    return require_built(backend_of(id));
}

}  // namespace foveal
