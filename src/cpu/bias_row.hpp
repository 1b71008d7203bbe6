// A query's bias and mask of a run of keys, as one row of floats to be added.
#if defined(FOVEAL_CPU_BIAS_ROW_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_BIAS_ROW_HPP
#undef FOVEAL_CPU_BIAS_ROW_HPP
#else
#define FOVEAL_CPU_BIAS_ROW_HPP
#endif

#include <algorithm>

#include "cpu/convert.hpp"
#include "cpu/scores.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// row[j] = -inf where the tree hides key first_key + j.
inline void hide_by_tree(const HeadGroup& group, const Query& query, int32_t first_key, int64_t count, float* row) {
    const uint32_t* const words = group.tree + query.row * group.tree_row_stride;
    const int32_t before = first_key - group.tree_first_key;
    const int64_t end = std::min<int64_t>(before + count, group.tree_keys);
    for (int64_t m = std::max(before, 0); m < end; ++m)
        if ((words[m / 32] >> (m % 32) & 1) == 0) row[m - before] = kMinusInfinity;
}

// row: [kBlockKeys]; of the keys first_key .. first_key + count - 1. load: of the bias's type.
inline void load_bias_row(const HeadGroup& group, LoadRow load, const Query& query, int32_t first_key, int64_t count,
                          float* row) {
    if (group.bias != nullptr) {
        const int64_t key_stride = group.bias_stride.key;
        const int64_t offset = query.offset(group.bias_stride) + key_stride * first_key;
        load(advance(group.bias, group.bias_dtype, offset), key_stride == 0 ? 1 : count, row);
        if (key_stride == 0) std::fill_n(row, kBlockKeys, row[0]);
    } else {
        std::fill_n(row, kBlockKeys, 0.0f);
    }
    if (group.mask != nullptr) {
        const uint8_t* const mask = group.mask + query.offset(group.mask_stride);
        if (group.mask_stride.key != 0)
            hide_masked(mask + first_key, count, row);
        else if (*mask == 0)
            std::fill_n(row, kBlockKeys, kMinusInfinity);
    }
    if (group.tree != nullptr) hide_by_tree(group, query, first_key, count, row);
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
