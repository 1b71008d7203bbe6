#include "cpu/ends.hpp"

#include "problem/argument.hpp"

namespace foveal::cpu {

void refuse_entry(const std::string& name, int64_t index, int64_t value, const std::string& requirement) {
    throw Error(FOVEAL_INVALID_ARGUMENT,
                name + "[" + std::to_string(index) + "] is " + std::to_string(value) + "; " + requirement);
}

std::string range_of(int64_t least, int64_t most) {
    return "it must lie in [" + std::to_string(least) + ", " + std::to_string(most) + "]";
}

void check_ends(const int32_t* ends, int64_t batch, int64_t rows, const char* name, const char* rows_name) {
    if (ends == nullptr) return;
    if (ends[0] != 0) refuse_entry(name, 0, ends[0], "it must be 0");
    for (int64_t i = 1; i <= batch; ++i)
        if (ends[i] < ends[i - 1] || ends[i] > rows) refuse_entry(name, i, ends[i], range_of(ends[i - 1], rows));
    if (ends[batch] != rows)
        refuse_entry(name, batch, ends[batch],
                     "the last must be " + std::string(rows_name) + ", " + std::to_string(rows));
}

}  // namespace foveal::cpu
