#include "foveal/types.hpp"
#include "parallel/streams.hpp"

namespace foveal::parallel {

StreamEvents::~StreamEvents() = default;

void StreamEvents::order(void* earlier, void* later) {
    if (earlier != later) throw Error(FOVEAL_NO_DEVICE, "this build has no CUDA: there are no streams");
}

bool has_ended(void* stream) {
    if (stream != nullptr) throw Error(FOVEAL_NO_DEVICE, "this build has no CUDA: there are no streams");
    return true;
}

}  // namespace foveal::parallel
