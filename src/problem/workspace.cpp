#include "problem/workspace.hpp"

#include <limits>
#include <string>

#include "problem/argument.hpp"

namespace foveal {
namespace {

constexpr uintptr_t kWorkspaceAlignment = 16;

}  // namespace

void check_workspace(const void* workspace, uint64_t workspace_bytes) {
    const std::string bytes = std::to_string(workspace_bytes);
    if ((workspace == nullptr) != (workspace_bytes == 0))
        refuse(std::string("workspace is ") + (workspace == nullptr ? "NULL" : "present") + " and workspace_bytes is " +
               bytes + "; there are both or neither");
    if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0)
        refuse("workspace is not aligned to " + std::to_string(kWorkspaceAlignment) + " bytes");
    if (workspace_bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        refuse("workspace_bytes is " + bytes + "; no memory is that large");
}

foveal_tensor bytes_of_workspace(void* workspace, uint64_t workspace_bytes) {
    foveal_tensor bytes{};
    bytes.data = workspace;
    bytes.dtype = FOVEAL_BOOL;
    bytes.rank = workspace != nullptr ? 1 : 0;
    bytes.shape[0] = static_cast<int64_t>(workspace_bytes);
    bytes.stride[0] = 1;
    return bytes;
}

}  // namespace foveal
