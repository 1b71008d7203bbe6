// The forward kernel's tiles: the only place that knows their sizes.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// Tiles whose description one producer warp has published and others still read (cursor.cuh).
inline constexpr int32_t kWorkSlots = 8;

// Head dimensions that are no multiple of a panel, or smaller than the tile's, are filled up with zeros by the copy
// engine.
struct ForwardTile {
    int32_t head_dim;       // columns of Q and K
    int32_t head_dim_v;     // columns of V and O
    int32_t consumers;      // warpgroups that compute
    bool takes_turns;       // the consumers use the tensor cores one after the other; else as the hardware has it
    bool shares_rows;       // the consumers share 64 query rows and split O's columns; else each has 64 rows of its own
    bool sums_in_product;   // P V has eight columns more, of ones in place of V, which are the rows' sums
    int32_t keys;           // keys a K/V block
    int32_t stages;         // K blocks, and V blocks, in flight
    int32_t query_buffers;  // 2: the next tile's Q is loaded while this one is computed; 1: in its last step
    int32_t staged_panels;  // in shared memory for a warpgroup: of its O on their way out, or of a block's bias
    int32_t first_ksteps;   // ksteps (of 16 keys) of P V whose registers are free before the rest has run
    int32_t early_ksteps;   // the next ksteps, whose exponentials are taken before P V has run
    int32_t producer_registers;  // a thread
    int32_t consumer_registers;
    bool dense_only = false;  // no registers for the schedule of a varlen batch (balance.cuh)

    FOVEAL_HOST_DEVICE constexpr int32_t query_tiles() const { return shares_rows ? 1 : consumers; }
    FOVEAL_HOST_DEVICE constexpr int32_t rows() const { return query_tiles() * kWarpgroupRows; }
    FOVEAL_HOST_DEVICE constexpr int32_t segments() const { return rows() / kWarpRows; }
    FOVEAL_HOST_DEVICE constexpr int32_t out_columns() const {  // a warpgroup
        return shares_rows ? head_dim_v / consumers : head_dim_v;
    }
    FOVEAL_HOST_DEVICE constexpr int32_t accumulators() const {  // of P V, a thread
        return out_columns() / 2 + (sums_in_product ? 4 : 0);
    }
    // Warpgroups of one tile may need different K/V blocks.
    FOVEAL_HOST_DEVICE constexpr bool has_own_blocks() const { return !shares_rows && rows() > keys; }
    FOVEAL_HOST_DEVICE constexpr int32_t threads() const { return (consumers + 1) * kWarpgroupThreads; }
    FOVEAL_HOST_DEVICE constexpr int32_t query_bytes() const { return kWarpgroupRows * head_dim * 2; }
    FOVEAL_HOST_DEVICE constexpr int32_t k_bytes() const { return keys * head_dim * 2; }
    FOVEAL_HOST_DEVICE constexpr int32_t v_bytes() const { return keys * head_dim_v * 2; }
    FOVEAL_HOST_DEVICE constexpr int32_t staged_out_panels() const {  // at once
        return staged_panels * kPanelColumns < out_columns() ? staged_panels : out_columns() / kPanelColumns;
    }
    FOVEAL_HOST_DEVICE constexpr int32_t staging_bytes() const {  // a warpgroup
        return staged_panels * kWarpgroupRows * kPanelColumns * 2;
    }
};

// What a CTA needs: Q, K, V, O, ones, barriers and published tiles. kernel.cuh checks that its struct is no larger.
FOVEAL_HOST_DEVICE constexpr int32_t shared_bytes(const ForwardTile& tile) {
    // With the columns of ones, 2 KiB, and what their alignment may cost.
    const int32_t barriers_and_work = tile.sums_in_product ? 7168 : 3072;
    return tile.query_buffers * tile.query_tiles() * tile.query_bytes() +
           tile.stages * (tile.k_bytes() + tile.v_bytes()) + tile.consumers * tile.staging_bytes() + barriers_and_work;
}

// What a kernel can do beyond a positive scale, a window and sinks.
enum class ForwardVariant : int32_t {
    plain,
    lse,           // the log-sum-exp
    softcap,       // softcap, without other options of the scores
    softcap_lse,   // and the log-sum-exp
    bias,          // a bias of q's dtype, without other options of the scores
    bias_lse,      // and the log-sum-exp
    options,       // every option of the scores (scores.cuh)
    options_lse,   // and the log-sum-exp
    part,          // the log-sum-exp and an f32 out: what is merged with others, and rounded then
    options_part,  // and every option of the scores
    dropout        // every option of the scores, the log-sum-exp, and dropout
};

FOVEAL_HOST_DEVICE constexpr bool is_bias(ForwardVariant variant) {
    return variant == ForwardVariant::bias || variant == ForwardVariant::bias_lse;
}

constexpr int32_t bit_of(ForwardVariant variant) { return 1 << static_cast<int32_t>(variant); }
inline constexpr int32_t kPlain = bit_of(ForwardVariant::plain), kLse = bit_of(ForwardVariant::lse),
                         kSoftcap = bit_of(ForwardVariant::softcap), kSoftcapLse = bit_of(ForwardVariant::softcap_lse),
                         kBias = bit_of(ForwardVariant::bias), kBiasLse = bit_of(ForwardVariant::bias_lse),
                         kOptions = bit_of(ForwardVariant::options), kOptionsLse = bit_of(ForwardVariant::options_lse),
                         kPart = bit_of(ForwardVariant::part), kOptionsPart = bit_of(ForwardVariant::options_part),
                         kDropout = bit_of(ForwardVariant::dropout);

struct ForwardTileEntry {
    ForwardTile tile;
    int32_t variants;           // that it is used for
    int32_t any_keys_variants;  // the same of kernels that take keys of any form
    const char* limited_by;     // the resource that keeps it from being larger

    constexpr bool serves(ForwardVariant variant, bool any_keys) const {
        return ((any_keys ? any_keys_variants : variants) & bit_of(variant)) != 0;
    }
};

// Indices into kForwardTiles.
enum ForwardTileIndex : int32_t {
    kTileD64,
    kTileD64Long,
    kTileD64Options,
    kTileD128,
    kTileD192,
    kTileD256,
    kTileD512,
    kTileCount
};

// In ascending order: a problem gets (choice_of() in support.cpp) the first that is large enough for its head
// dimensions and serves its variant, or one that can do more. (d 192 without options but with a log-sum-exp, say, loses
// a few per cent that way.)
// clang-format off
inline constexpr ForwardTileEntry kForwardTiles[kTileCount] = {
    //  d, d_v, consumers, takes_turns, shares_rows, sums_in_product, keys, stages, query_buffers, staged_panels,
    //  first_ksteps, early_ksteps, registers, dense_only
    {{ 64,  64, 4, false, false, true,  64, 6, 2, 1, 1, 1, 32, 112},
     kPlain | kLse | kSoftcap | kSoftcapLse | kPart, kPlain | kLse | kSoftcapLse,
     "registers: 4 * 128 * 112 + 128 * 32 = 640 * 96"},
    {{ 64,  64, 3, true,  false, true, 128, 4, 2, 1, 1, 2, 32, 160, true}, kPlain, 0,
     "registers: 3 * 128 * 160 + 128 * 32 = 65536"},
    {{ 64,  64, 2, true,  false, false, 128, 5, 2, 2, 1, 3, 40, 232},
     kBias | kBiasLse | kOptions | kOptionsLse | kOptionsPart, kBiasLse | kOptionsLse | kDropout,
     "registers: options need more than 160"},
    {{128, 128, 2, true,  false, false, 128, 2, 2, 2, 1, 3, 40, 232},
     kPlain | kLse | kSoftcap | kSoftcapLse | kBias | kBiasLse | kOptions | kOptionsLse | kPart | kOptionsPart,
     kPlain | kLse | kSoftcapLse | kBiasLse | kOptionsLse | kOptionsPart | kDropout,
     "shared memory: Q 64, K 64, V 64 and O 32 of 227 KiB"},
    {{192, 128, 2, true,  false, false, 128, 2, 1, 1, 1, 3, 40, 232},
     kPlain | kOptionsLse | kOptionsPart, kPlain | kOptionsLse | kDropout,
     "shared memory: Q 48, K 96, V 64 and O 16 of 227 KiB"},
    {{256, 256, 2, true,  false, false,  64, 2, 1, 2, 1, 1, 40, 232},
     kPlain | kLse | kSoftcapLse | kBiasLse | kOptionsLse | kOptionsPart,
     kPlain | kLse | kSoftcapLse | kBiasLse | kOptionsLse | kOptionsPart | kDropout,
     "shared memory: Q 64, K 64, V 64 and O 32 of 227 KiB"},
    {{512, 512, 2, true,  true,  false,  32, 2, 1, 2, 1, 0, 40, 232},
     kPlain | kOptionsLse | kOptionsPart, kPlain | kOptionsLse | kDropout,
     "shared memory: Q 64, K 64, V 64 and O 32 of 227 KiB"},
};
// clang-format on

// A CTA has the SM to itself. setmaxnreg deals out what the launch was given: a multiple of 8 registers a thread.
constexpr bool fits_sm(const ForwardTileEntry& entry) {
    const ForwardTile& tile = entry.tile;
    const int32_t given = kRegistersPerSm / tile.threads() / 8 * 8 * tile.threads();
    return shared_bytes(tile) <= kMaxSharedBytes &&
           kWarpgroupThreads * (tile.producer_registers + tile.consumers * tile.consumer_registers) <= given;
}
static_assert([] {
    for (const ForwardTileEntry& entry : kForwardTiles)
        if (!fits_sm(entry)) return false;
    return true;
}());

// What the kernel is instantiated for.
struct ForwardConfig {
    DType dtype;
    ForwardTile tile;
    ForwardVariant variant;
    // K and V may be in pages, or of a form that is not q's, and sequences have a query_offset or a tree.
    bool any_keys = false;
    bool counts_rescales = false;  // a test's kernels do: rescale_count (consumer.cuh)

    FOVEAL_HOST_DEVICE constexpr bool has_options() const {
        return variant == ForwardVariant::options || variant == ForwardVariant::options_lse ||
               variant == ForwardVariant::options_part || drops_weights();
    }
    FOVEAL_HOST_DEVICE constexpr bool drops_weights() const { return variant == ForwardVariant::dropout; }
    FOVEAL_HOST_DEVICE constexpr bool has_softcap() const {  // alone
        return variant == ForwardVariant::softcap || variant == ForwardVariant::softcap_lse;
    }
    FOVEAL_HOST_DEVICE constexpr bool has_bias() const { return is_bias(variant); }  // alone
    FOVEAL_HOST_DEVICE constexpr bool modifies_scores() const { return has_options() || has_softcap() || has_bias(); }
    // May a score be anywhere in fp32's range? (Softcap alone bounds it; else it is as large as q.k.)
    FOVEAL_HOST_DEVICE constexpr bool has_wide_scores() const { return has_options() || has_bias(); }
    FOVEAL_HOST_DEVICE constexpr bool has_lse() const {
        return variant == ForwardVariant::lse || variant == ForwardVariant::softcap_lse ||
               variant == ForwardVariant::bias_lse || variant == ForwardVariant::options_lse || drops_weights() ||
               writes_f32();
    }
    FOVEAL_HOST_DEVICE constexpr bool writes_f32() const {
        return variant == ForwardVariant::part || variant == ForwardVariant::options_part;
    }
};

// The same as a type: nvcc 13.0 writes host stubs that do not compile for a __global__ template whose argument is a
// structure.
template <DType kType, int32_t kTileIndex, ForwardVariant kVariant, bool kAnyKeys = false>
struct ForwardInstance {
    static constexpr ForwardConfig kConfig{kType, kForwardTiles[kTileIndex].tile, kVariant, kAnyKeys};
};

}  // namespace foveal::sm90
