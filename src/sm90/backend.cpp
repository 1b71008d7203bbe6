#include "sm90/backend.hpp"

#include "sm90/device.hpp"
#include "sm90/forward/plan.hpp"
#include "sm90/forward/support.hpp"

namespace foveal::sm90 {

constinit const Backend kBackend{.id = FOVEAL_BACKEND_SM90,
                                 .name = "sm90",
                                 .is_built = FOVEAL_HAS_CUDA != 0,
                                 .holds = holds,
                                 .device_of = device_of,
                                 .check_supported = check_supported,
                                 .plan_forward = plan_forward,
                                 .merge = launch_merge,
                                 .append = launch_append,
                                 .copy_cache = launch_cache_copy};

}  // namespace foveal::sm90
