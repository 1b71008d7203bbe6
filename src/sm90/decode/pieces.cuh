// Which pieces are a CTA's: worked out by one warp from the sequences' lengths (split.hpp).
#pragma once

#include <cstdint>

#include "sm90/decode/params.hpp"
#include "sm90/decode/sequence.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/split.hpp"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/warp.cuh"

namespace foveal::sm90 {

// Of 32 lanes: with this one's and all before it.
__device__ __forceinline__ uint32_t sum_up_to(uint32_t x, int32_t lane) {
#pragma unroll
    for (int32_t distance = 1; distance < kWarpThreads; distance *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, x, distance);
        if (lane >= distance) x += other;
    }
    return x;
}

// Up to 32 sequences are one a lane. Of more, every lane first counts the blocks of a run of neighbouring ones; then
// runs that have pieces are looked through, 32 sequences at a time.
template <DecodeConfig kConfig>
class Pieces {
    static constexpr DecodeTile kTile = kConfig.tile;

   public:
    __device__ __forceinline__ Pieces(const DecodeParams& params, int32_t lane) : params_(params), lane_(lane) {}

    // Reads all lengths; what the shares are.
    __device__ __forceinline__ void survey() {
        const auto cta = static_cast<int32_t>(blockIdx.x);
        const int32_t n = cta / params_.by_heads;
        head_ = cta - n * params_.heads;
        team_ = static_cast<uint32_t>(n);
        if (!params_.splits) {
            take(n);  // the whole sequence, all parts of it, and nothing else
            lanes_ = own_parts_ > 0 ? 1 : 0;
            has_parts_ = own_parts_ > 1;
            piece_ = {0, own_seen_.counted_blocks()};
            first_ = n;
            own_end_ = lane_ == 0 ? own_parts_ : 0;
            deal_ = {own_blocks(), own_blocks()};
            team_ = 0;
            return;
        }
        // Where only every second or fourth team has work, the CTAs that have some are then on different SMs.
        if (params_.teams.log2 > 0) team_ = __brev(team_) >> (32 - params_.teams.log2);
        count_blocks();
    }

    // Finds the next one; false: there is no more.
    __device__ __forceinline__ bool next() {
        while (lanes_ == 0) {
            if (has_parts_) {
                ++own_part_;
                find_pieces();
                continue;
            }
            if (runs_ == 0) return false;
            next_candidates();
        }
        from_ = __ffs(static_cast<int32_t>(lanes_)) - 1;
        lanes_ &= lanes_ - 1;
        return true;
    }

    // What next() has found: by the lane that knows it, for all to read after __syncwarp().
    __device__ __forceinline__ void describe(DecodeWork& work) const {
        if (lane_ != from_) return;
        work.number = first_ + from_;
        work.part = own_part_;
        work.head = head_;
        work.piece = piece_;
        work.sequence = own_;
        work.seen = own_seen_;
        work.node_set = params_.sets.set_of(static_cast<int32_t>(team_), head_, piece_.begin == 0);
        work.before = before_own_part();
    }

    // The same for all lanes at once, as far as it takes to bring the keys.
    __device__ __forceinline__ FoundKeys found() const {
        const auto of_finder = [&](int32_t x) { return __shfl_sync(~0u, x, from_); };
        FoundKeys keys;
        keys.number = first_ + from_;
        keys.first_k = of_finder(own_.first_k);
        keys.piece = {of_finder(piece_.begin), of_finder(piece_.end)};
        keys.seen = {{of_finder(own_seen_.keys.begin), of_finder(own_seen_.keys.end)},
                     of_finder(own_seen_.first_block),
                     of_finder(own_seen_.blocks)};
        keys.head = head_;
        return keys;
    }

    __device__ __forceinline__ const Deal& deal() const { return deal_; }

   private:
    __device__ __forceinline__ bool has_runs() const { return params_.batch > kWarpThreads; }

    __device__ __forceinline__ void take(int32_t sequence) {
        own_ = sequence_of(params_, sequence);
        own_seen_ = seen_of(own_, params_.window);
        own_parts_ = parts_of(own_, params_, kTile.columns);
    }
    __device__ __forceinline__ uint32_t own_part_blocks() const {
        return static_cast<uint32_t>(own_seen_.counted_blocks());
    }
    __device__ __forceinline__ uint32_t own_blocks() const {
        return own_part_blocks() * static_cast<uint32_t>(own_parts_);
    }
    __device__ __forceinline__ uint32_t before_own_part() const {
        return own_before_ + own_part_blocks() * static_cast<uint32_t>(own_part_);
    }

    __device__ __forceinline__ void count_blocks() {
        run_length_ = (params_.batch + kWarpThreads - 1) / kWarpThreads;
        const int32_t begin = params_.batch == 1 ? 0 : lane_ * run_length_,
                      end = min_i32(begin + run_length_, params_.batch);
#pragma unroll 1
        for (int32_t i = begin; i < end; ++i) {
            take(i);
            lane_blocks_ += own_blocks();
        }
        uint32_t all = lane_blocks_;
        if (params_.batch > 1) {
            const uint32_t up_to = sum_up_to(lane_blocks_, lane_);
            all = __shfl_sync(~0u, up_to, kWarpThreads - 1);
            lane_before_ = up_to - lane_blocks_;
        }
        deal_ = deal_of(all, params_.teams);
        begin_ = bound_of(team_, deal_);
        end_ = bound_of(team_ + 1, deal_);
        runs_ = has_runs() ? __ballot_sync(~0u, begin_ < lane_before_ + lane_blocks_ && end_ > lane_before_) : 1u;
    }

    // The next up to 32 sequences, and which lanes have pieces of this number.
    __device__ __forceinline__ void next_candidates() {
        bool exists = lane_ < params_.batch;
        if (has_runs()) {
            const int32_t run = __ffs(static_cast<int32_t>(runs_)) - 1;
            if (run_offset_ == 0) before_ = __shfl_sync(~0u, lane_before_, run);
            first_ = run * run_length_ + run_offset_;
            exists = run_offset_ + lane_ < run_length_ && first_ + lane_ < params_.batch;
            if (exists) take(first_ + lane_);
            const uint32_t blocks = exists ? own_blocks() : 0, up_to = sum_up_to(blocks, lane_);
            own_before_ = before_ + up_to - blocks;
            before_ += __shfl_sync(~0u, up_to, kWarpThreads - 1);
            run_offset_ += kWarpThreads;
            if (run_offset_ >= run_length_) {
                run_offset_ = 0;
                runs_ &= runs_ - 1;
            }
        } else {
            own_before_ = lane_before_;
            runs_ = 0;
        }
        own_part_ = 0;
        own_end_ = exists ? own_parts_ : 0;
        if (exists && own_parts_ > 1) {
            const uint32_t blocks = own_part_blocks();
            if (begin_ > own_before_) own_part_ = static_cast<int32_t>((begin_ - own_before_) / blocks);
            if (end_ < own_before_ + own_blocks())
                own_end_ = end_ > own_before_ ? static_cast<int32_t>((end_ - own_before_ + blocks - 1) / blocks) : 0;
        }
        find_pieces();
    }

    // Which lanes have pieces of the parts at hand, and whether there are further parts.
    __device__ __forceinline__ void find_pieces() {
        const auto blocks = static_cast<int32_t>(own_part_blocks());
        const bool exists = own_part_ < own_end_;
        piece_ = piece_of(team_, before_own_part(), blocks, leaves_of(blocks, kTile.levels), deal_);
        lanes_ = __ballot_sync(~0u, exists && !piece_.is_empty());
        has_parts_ = __any_sync(~0u, own_part_ + 1 < own_end_);
    }

    const DecodeParams& params_;
    const int32_t lane_;
    Deal deal_{};

    // This lane's run, or sequence.
    uint32_t lane_blocks_ = 0, lane_before_ = 0;
    int32_t run_length_ = 0;

    // The team and its share; where the search is: the runs that are left, sequences of the first of them that are done
    // and their blocks, and of the 32 at hand those that are left.
    int32_t head_ = 0;
    uint32_t team_ = 0, begin_ = 0, end_ = 0;
    uint32_t runs_ = 0, before_ = 0, lanes_ = 0;
    int32_t run_offset_ = 0, first_ = 0, from_ = 0;

    // This lane's of them, and of the parts that may have pieces of the team the one at hand, and the end.
    Sequence own_{};
    SeenKeys own_seen_{};
    int32_t own_parts_ = 1, own_part_ = 0, own_end_ = 0;
    bool has_parts_ = false;
    uint32_t own_before_ = 0;
    Piece piece_{};
};

}  // namespace foveal::sm90
