// A library of a later version: c_api.cpp, compiled against a header whose structures have one more field (see
// tests/CMakeLists.txt), over the other objects of this version, which look at no more than they know.
#include "c_api.cpp"

extern "C" {

FOVEAL_API int64_t foveal_later_forward_field(const foveal_forward_args* args) { return known(args)->later_option; }
FOVEAL_API int64_t foveal_later_backward_field(const foveal_backward_args* args) { return known(args)->later_option; }
FOVEAL_API int64_t foveal_later_append_field(const foveal_append_args* args) { return known(args)->later_option; }
FOVEAL_API int64_t foveal_later_copy_pages_field(const foveal_copy_pages_args* args) {
    return known(args)->later_option;
}
FOVEAL_API int64_t foveal_later_gather_field(const foveal_gather_args* args) { return known(args)->later_option; }
FOVEAL_API int64_t foveal_later_merge_field(const foveal_merge_args* args) { return known(args)->later_option; }

}  // extern "C"
