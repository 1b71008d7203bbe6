#include "cpu/backward.hpp"

namespace foveal::cpu {

void backward(const BackwardProblem&, const BackwardPointers&) {
    throw Error(FOVEAL_UNSUPPORTED, "backward on cpu: not yet");
}

}  // namespace foveal::cpu
