// Which tile of each round a CTA gets in a varlen batch, where tiles differ and the host does not know how.
//
// A round is the next gridDim.x tiles of the order (schedule.hpp); of them the dearest goes to the CTA that has
// computed least so far, and so on. Every CTA plays this through for the whole grid, in a warp of its own and ahead of
// the computation, and keeps what falls to itself: no counter in global memory, and the same result every time.
//
// It deals in bundles of neighbouring CTAs and as many neighbouring tiles. Those are heads of the same rows, so they
// cost the same, and heads that share K and V stay side by side. (Where packed heads leave fewer tiles of the same rows
// than a bundle has, it goes on with the next rows or the next sequence, and counts as what its first tile costs.)
#pragma once

#include "sm90/forward/params.hpp"
#include "sm90/forward/schedule.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/warp.cuh"

namespace foveal::sm90 {

// In shared memory, by rank: a round's bundles of tiles, cost and number.
struct RankedTiles {
    int32_t costs[kMaxBundles];
    uint8_t numbers[kMaxBundles];
};

// Used by a whole, converged warp: lane l sees to bundles l and 32 + l. Other warps compute, so what counts is how few
// instructions a round needs.
template <WorkTraits kTraits>
class Balancer {
    static constexpr int32_t kSlots = kMaxBundles / 32, kKeyBits = 6;
    using Values = int32_t[kSlots];

   public:
    __device__ Balancer(const ForwardParams& params, RankedTiles& ranked)
        : params_(params),
          ranked_(ranked),
          window_(params),
          bundles_(static_cast<int32_t>(gridDim.x) / params.bundle) {}

    // The tile that this CTA computes in the next round. -1: none, nor in a later one.
    __device__ int32_t next() {
        const int32_t first_tile = round_ * static_cast<int32_t>(gridDim.x), lane = ptx::lane_id();
        Values costs, ranks;
        find_costs(costs);
        rank_tiles(costs, ranks);
        __syncwarp();
        for (int32_t s = 0; s < kSlots; ++s) {
            ranked_.costs[ranks[s]] = costs[s];
            ranked_.numbers[ranks[s]] = static_cast<uint8_t>(s * 32 + lane);
        }
        __syncwarp();
        rank<false>(loads_, ranks);
        for (int32_t s = 0; s < kSlots; ++s)
            if (s * 32 + lane < bundles_) loads_[s] += ranked_.costs[ranks[s]];
        const auto cta = static_cast<int32_t>(blockIdx.x);
        const int32_t mine = cta / params_.bundle, member = cta - mine * params_.bundle;
        const int32_t my_rank = __shfl_sync(~0u, mine < 32 ? ranks[0] : ranks[1], mine % 32);
        const int32_t tiles = ranked_.numbers[my_rank], my_cost = ranked_.costs[my_rank];
        ++round_;
        return my_cost == 0 ? -1 : first_tile + tiles * params_.bundle + member;
    }

   private:
    // Of the round's bundles of tiles; 0 past the last. A run is the tiles of one section and row block, which cost the
    // same: lane l works out run l from the next bundle's first tile on.
    __device__ void find_costs(Values& costs) {
        constexpr int32_t kKeys = kTraits.keys;
        const int32_t lane = ptx::lane_id();
#pragma unroll
        for (int32_t& cost : costs) cost = 0;
        for (int32_t dealt = 0; dealt < bundles_;) {
            if (sequence_ == 32) {
                if (!window_.advance()) return;
                sequence_ = 0;
            }
            const int32_t len_q = window_.len_q(sequence_), len_k = window_.len_k(sequence_);
            const SequenceTiles tiles = tiles_of_sequence<kTraits>(params_, len_q, len_k);
            const int32_t row_blocks = tiles.row_blocks, queries = kTraits.rows >> tiles.heads_log2;
            const int32_t units =
                min_i32(section_units(params_.section_keys, len_k, params_.heads_k, params_.bundle_units),
                        params_.heads_k - first_unit_);
            const int32_t in_run = units * tiles.heads_per_kv, in_section = row_blocks * in_run;
            const int32_t first_run = begun_ / in_run, in_first_run = begun_ - first_run * in_run;
            const int32_t left = bundles_up_to(in_section - begun_);
            const int32_t take = min_i32(min_i32(bundles_ - dealt, left), bundles_up_to(32 * in_run - in_first_run));
            const int32_t step = min_i32(first_run + lane, row_blocks - 1);
            const int32_t row = (params_.order.last_rows_first ? row_blocks - 1 - step : step) * queries;
            const Band band = band_in_sequence<kTraits>(params_, window_.sequence(sequence_), len_q, len_k);
            const int32_t cost = tile_cost(kv_range(band, {row, min_i32(row + queries, len_q)}, kKeys).visit, kKeys);
            const float runs_a_tile = 1.0f / static_cast<float>(in_run);
#pragma unroll
            for (int32_t s = 0; s < kSlots; ++s) {
                const int32_t i = s * 32 + lane - dealt;
                const int32_t tile = in_first_run + i * params_.bundle;
                // Exact: the half keeps the quotient off whole numbers.
                const auto run = static_cast<int32_t>((static_cast<float>(tile) + 0.5f) * runs_a_tile);
                const int32_t of_run = __shfl_sync(~0u, cost, run & 31);
                if (i >= 0 && i < take) costs[s] = of_run;
            }
            dealt += take;
            begun_ += take * params_.bundle;
            if (take < left) continue;
            begun_ -= in_section;
            first_unit_ += units;
            if (first_unit_ < params_.heads_k && row_blocks > 0) continue;
            first_unit_ = 0;
            ++sequence_;
        }
    }

    // Bundles that begin with one of `tiles` neighbouring tiles, if the first begins with the first.
    __device__ int32_t bundles_up_to(int32_t tiles) const {
        return max_i32(tiles + params_.bundle - 1, 0) / params_.by_bundle;
    }

    // Mostly they descend by themselves.
    __device__ void rank_tiles(Values& costs, Values& ranks) const {
        const int32_t lane = ptx::lane_id();
        const int32_t next = __shfl_down_sync(~0u, costs[0], 1), first_of_second = __shfl_sync(~0u, costs[1], 0),
                      next_of_second = __shfl_down_sync(~0u, costs[1], 1);
        const bool descends = costs[0] >= (lane < 31 ? next : first_of_second) && costs[1] >= next_of_second;
        if (__all_sync(~0u, descends)) {
#pragma unroll
            for (int32_t s = 0; s < kSlots; ++s) ranks[s] = s * 32 + lane;
        } else {
            rank<true>(costs, ranks);
        }
    }

    // Ranks of all bundles, equal ones by their number; told apart in 2^kKeyBits steps. Ascending, the least is taken
    // off all values: of loads only the differences matter.
    template <bool kDescending>
    __device__ void rank(Values& values, Values& ranks) const {
        const int32_t lane = ptx::lane_id();
        int32_t least = lane < bundles_ ? values[0] : INT32_MAX, most = lane < bundles_ ? values[0] : 0;
        if (32 + lane < bundles_) {
            least = min_i32(least, values[1]);
            most = max_i32(most, values[1]);
        }
        least = __reduce_min_sync(~0u, least);
        most = __reduce_max_sync(~0u, most);
        const int32_t shift = max_i32(0, 32 - kKeyBits - __clz(most - least));
        Values keys;
        uint32_t same[kSlots][kSlots];  // bit l of [s][o]: bundle o * 32 + l has the key of bundle s * 32 + lane
#pragma unroll
        for (int32_t s = 0; s < kSlots; ++s) {
            const int32_t key = (kDescending ? most - values[s] : values[s] - least) >> shift;
            keys[s] = s * 32 + lane < bundles_ ? key : (1 << kKeyBits) - 1;
            if (!kDescending) values[s] -= least;
            ranks[s] = 0;
#pragma unroll
            for (int32_t o = 0; o < kSlots; ++o) same[s][o] = ~0u;
        }
        // Bit by bit from the highest: those that have been the same so far and have a 0 where this one has a 1 are
        // less.
#pragma unroll 2
        for (int32_t bit = kKeyBits - 1; bit >= 0; --bit)
#pragma unroll
            for (int32_t o = 0; o < kSlots; ++o) {
                const uint32_t ones = __ballot_sync(~0u, keys[o] >> bit & 1);
#pragma unroll
                for (int32_t s = 0; s < kSlots; ++s) {
                    const bool one = keys[s] >> bit & 1;
                    if (one) ranks[s] += __popc(same[s][o] & ~ones);
                    same[s][o] &= one ? ones : ~ones;
                }
            }
        const uint32_t below = (1u << lane) - 1;
        ranks[0] += __popc(same[0][0] & below);
        ranks[1] += __popc(same[1][0]) + __popc(same[1][1] & below);
    }

    const ForwardParams& params_;
    RankedTiles& ranked_;
    SequenceWindow<kTraits> window_;
    const int32_t bundles_;
    int32_t round_ = 0;
    // Where the next round begins: the sequence's lane in the window, its section, and of that the tile with which the
    // next bundle begins.
    int32_t sequence_ = 0, first_unit_ = 0, begun_ = 0;
    Values loads_ = {};  // of each bundle of CTAs, above the least
};

}  // namespace foveal::sm90
