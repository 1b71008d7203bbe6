// A block of keys and values, packed once for all subtiles of a tile, in the forms that they ask for.
#if defined(FOVEAL_CPU_PACKED_BLOCK_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_PACKED_BLOCK_HPP
#undef FOVEAL_CPU_PACKED_BLOCK_HPP
#else
#define FOVEAL_CPU_PACKED_BLOCK_HPP
#endif

#include <optional>

#include "cpu/amx.hpp"
#include "cpu/convert.hpp"
#include "cpu/dequantise.hpp"
#include "cpu/pack.hpp"
#include "cpu/pairs.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

class PackedBlock {
    // Calls pack with the rows in the type that is computed in.
    template <class Pack>
    auto with_rows(const KeyRows& rows, const std::optional<Dequantiser>& dequantiser, int64_t channels,
                   const Pack& pack) const {
        if (!dequantiser) return pack(rows);
        const auto pitch_bytes = round_up(channels, kAlignment) * static_cast<int64_t>(sizeof(float));
        return pack(
            DequantisedRows(rows, *dequantiser, channels, reinterpret_cast<std::byte*>(shared_.two_rows), pitch_bytes));
    }
    template <class Pack>
    auto with_k(const Pack& pack) const {
        return with_rows(group_.k, dequantise_k_, group_.head_dim, pack);
    }
    template <class Pack>
    auto with_v(const Pack& pack) const {
        return with_rows(group_.v, dequantise_v_, group_.head_dim_v, pack);
    }

   public:
    // shared: where the forms lie.
    PackedBlock(const HeadGroup& group, const Shared& shared)
        : group_(group),
          shared_(shared),
          seen_(seen_keys(group.band, group.len_q)),
          load_row_(row_loader(group.dtype)),
          may_be_pairs_(group.dtype == DType::bf16 && has_bf16_pairs()),
          uses_amx_(may_be_pairs_ && has_amx()) {
        if (!group.dequantises()) return;
        dequantise_k_.emplace(group.dtype, group.k_descale, group.k_descales);
        dequantise_v_.emplace(group.dtype, group.v_descale, group.v_descales);
    }

    // Forgets the block before.
    void begin(int32_t block) {
        rows_ = {block * kBlockKeys, group_.len_k, seen_};
        has_k_ = has_v_ = false;
        has_pairs_.reset();
        values_are_finite_.reset();
    }

    // Are products of bf16 pairs possible, if the data allow them?
    bool may_be_pairs() const { return may_be_pairs_; }
    // Are they then AMX's?
    bool uses_amx() const { return uses_amx_; }

    // Do the data of this block allow them? If so they are in the shared k_pairs and v_pairs, and v_tiles for AMX.
    bool has_pairs() {
        if (!has_pairs_) has_pairs_ = may_be_pairs_ && pack_pairs();
        return *has_pairs_;
    }

    const float* k() {
        if (!has_k_) with_k([&](const auto& k) { pack_rows(load_row_, k, group_.head_dim, rows_, shared_.k); });
        has_k_ = true;
        return shared_.k;
    }
    const float* v() {
        if (!has_v_) with_v([&](const auto& v) { pack_rows(load_row_, v, group_.head_dim_v, rows_, shared_.v); });
        has_v_ = true;
        return shared_.v;
    }

    // Asked for where some queries do not see all of the block.
    bool values_are_finite() {
        if (!values_are_finite_) values_are_finite_ = all_finite(v(), rows_.count(), group_.head_dim_v);
        return *values_are_finite_;
    }

   private:
    bool pack_pairs() {
        const auto of_k = [&](const auto& k) { return pack_key_pairs(k, group_.head_dim, rows_, shared_.k_pairs); };
        const auto of_v = [&](const auto& v) { return pack_value_pairs(v, group_.head_dim_v, rows_, shared_.v_pairs); };
        if (!with_k(of_k) || !with_v(of_v)) return false;
        if (uses_amx_) tile_value_pairs(shared_.v_pairs, group_.head_dim_v, rows_, shared_.v_tiles);
        return true;
    }

    const HeadGroup& group_;
    const Shared shared_;
    const Range seen_;  // keys that some query of the sequence sees
    const LoadRow load_row_;
    const bool may_be_pairs_, uses_amx_;
    std::optional<Dequantiser> dequantise_k_, dequantise_v_;  // if they are in e4m3
    BlockOfRows rows_{};
    bool has_k_ = false, has_v_ = false;
    std::optional<bool> has_pairs_, values_are_finite_;  // once it is known
};

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
