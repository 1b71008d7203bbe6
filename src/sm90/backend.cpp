#include "sm90/backend.hpp"

#include "sm90/device.hpp"
#include "sm90/forward/plan.hpp"
#include "sm90/forward/support.hpp"

namespace foveal::sm90 {

constinit const Backend kBackend{FOVEAL_BACKEND_SM90, "sm90",          FOVEAL_HAS_CUDA != 0, holds,
                                 device_of,           check_supported, plan_forward,         launch_merge};

}  // namespace foveal::sm90
