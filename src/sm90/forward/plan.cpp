#include "sm90/forward/plan.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "problem/work.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

// ForwardSchedule's. Where all tiles are alike, it always pays. Else passing over one breaks the overlap of two tiles,
// which cost 3-10 % on sequences of up to 300 rows, and gains a quarter of a long tile (H100, 2026-11-25:
// docs/performance-log, 50).
int32_t passed_over_blocks(const ForwardProblem& p, const ForwardTile& tile, int32_t heads_log2) {
    const bool all_alike = !p.varlen && p.rows_q <= tile.rows() >> heads_log2;
    return all_alike ? 1 : 4;
}

// May a row's rounding follow from the rows that it shares a tile with?
bool rounds_together(const ForwardProblem& p) { return p.softcap > 0 || p.has_alibi; }

// ForwardSchedule's: what costs least, and of such the most heads, if that is less than without packing. Fewer tiles
// cost less, and so do tiles of fewer queries where they visit fewer K/V blocks: under a narrow window, or where a
// tile's rows are more than a block's keys (H200, 2026-11-28: docs/performance-log, 73). Varlen: the most heads, and
// the kernel decides for each sequence by itself. Under softcap and ALiBi a row's rounding follows from the rows that
// it shares a tile with, so here nothing may depend on the batch or on the card (contract 1.7).
int32_t packed_heads_log2(const ForwardProblem& p, const ForwardTile& tile) {
    const auto heads_per_kv = static_cast<int32_t>(p.heads_per_kv());
    const int32_t most = std::min(std::countr_zero(static_cast<uint32_t>(tile.segments())),
                                  static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(heads_per_kv - 1))));
    if (p.varlen) return most;
    ForwardProblem decisive = p;
    if (rounds_together(p) && !knows_lengths_of_keys(p)) decisive.rows_k = p.rows_q;
    const auto cost = [&](int32_t log2) { return unit_cost(decisive, {tile.rows(), tile.keys, log2}); };
    const int64_t apart = cost(0);
    int32_t best = 0;
    for (int32_t log2 = 1; log2 <= most; ++log2)
        if (cost(log2) < apart && cost(log2) <= cost(best)) best = log2;
    return best;
}

// ForwardSchedule's, of a varlen problem. From a sequence of many whole tiles, not from the batch, which must not
// decide how a sequence is computed.
int32_t least_saved_tiles(const ForwardProblem& p, const ForwardTile& tile, int32_t heads_log2) {
    constexpr int64_t kManyWholeTiles = 4096;
    ForwardProblem sequence = p;
    sequence.varlen = false;
    sequence.rows_q = sequence.rows_k = kManyWholeTiles;
    const auto cost = [&](int32_t log2) { return unit_cost(sequence, {tile.rows(), tile.keys, log2}); };
    return cost(heads_log2) < cost(0) ? 0 : 1;
}

// CTAs that an SM gets one after the other. Those that share a unit's K and V drift apart over many rounds, because SMs
// get unequal shares of DRAM; where DRAM binds, K and V are then read again (6 % more at b128 s128) and the fast SMs
// end early. CTAs that the hardware deals out anew twice catch up: 0.962 of the time at b128 s128, 0.967 at b256 s64,
// with 32 heads on 8, on an H100; longer or fewer tiles lose up to 20 %, and an H200's faster DRAM gains nothing
// (docs/performance-log, 72 and 81).
int32_t ctas_of_sm(const ForwardProblem& p, const cuda::DeviceTraits& traits, const TileOrder& order) {
    constexpr double kSlowDramOfSm = 30e9;  // bytes a second: between an H100's 25e9 and an H200's 36e9
    constexpr double kFlopsOfSm = 5e12;     // a second
    constexpr int32_t kManyRounds = 24;
    if (traits.dram_bytes_per_second > kSlowDramOfSm * traits.sms || p.heads_per_kv() == 1) return 1;
    if (order.row_blocks > 1 || order.tiles() < kManyRounds * traits.sms) return 1;
    const UsefulWork work = useful_work_of_dense(p);
    const bool dram_binds = work.bytes / traits.dram_bytes_per_second > 2 * work.flops / (kFlopsOfSm * traits.sms);
    return dram_binds ? 3 : 1;
}

void set_order(ForwardParams& params, const ForwardProblem& p, const ForwardSchedule& schedule) {
    const OrderChoice& order = schedule.order;
    const ForwardTile& tile = kForwardTiles[schedule.choice.tile_index].tile;
    if (!p.varlen)
        params.order = FastTileOrder(
            tile_order(p, {tile.rows(), tile.keys, schedule.heads_log2}, order, schedule.last_rows_first));
    params.order.last_rows_first = schedule.last_rows_first;
    params.by_heads_k = Divisor(params.heads_k);
    params.section_keys = order.section_keys;
    params.packed_section_keys = order.section_keys / params.heads_k;
    params.bundle = order.bundle;
    params.by_bundle = Divisor(std::max(1, order.bundle));
    params.bundle_units = Divisor(std::max(1, order.bundle / std::gcd(order.bundle, params.heads_per_kv)));
}

}  // namespace

ForwardSchedule schedule_of(const ForwardProblem& p, ForwardChoice choice, const cuda::DeviceTraits& traits) {
    ForwardSchedule schedule;
    schedule.choice = choice;
    const ForwardTile& tile = kForwardTiles[choice.tile_index].tile;
    if (p.total_rows_q() == 0 || p.batch == 0) return schedule;
    // A limit on the right gives later rows more keys.
    schedule.last_rows_first = p.window().right < kUnlimitedWidth;
    schedule.heads_log2 = packed_heads_log2(p, tile);
    if (p.varlen) schedule.least_saved_tiles = least_saved_tiles(p, tile, schedule.heads_log2);
    const TileShape shape{tile.rows(), tile.keys, schedule.heads_log2};
    if (p.varlen) {
        // An upper bound, every sequence may end inside a tile. The kernel finds the rest.
        const int64_t tiles = (p.rows_q / tile.rows() + p.batch) * p.heads_q;
        schedule.grid = static_cast<int32_t>(std::min<int64_t>(traits.sms, tiles));
    } else {
        const TileOrder order = tile_order(p, shape, {}, schedule.last_rows_first);
        schedule.grid = std::min(traits.sms * ctas_of_sm(p, traits, order), order.tiles());
    }
    schedule.order = choose_order(p, traits, shape, schedule.grid, schedule.last_rows_first);
    schedule.passed_over_blocks = passed_over_blocks(p, tile, schedule.heads_log2);
    return schedule;
}

ForwardParams params_of(const ForwardProblem& p, const ForwardSchedule& schedule) {
    ForwardParams params{};
    params.batch = static_cast<int32_t>(p.batch);
    params.rows_q = static_cast<int32_t>(p.rows_q);
    params.rows_k = static_cast<int32_t>(p.rows_k);
    params.mapped_rows_k = params.rows_k > 0 ? params.rows_k : 1;
    params.heads_k = static_cast<int32_t>(p.heads_k);
    params.heads_per_kv = static_cast<int32_t>(p.heads_per_kv());
    params.heads_log2 = schedule.heads_log2;
    params.least_saved_tiles = schedule.least_saved_tiles;
    params.passed_over_blocks = schedule.passed_over_blocks;
    params.window = p.window();
    params.scale_log2 = static_cast<float>(static_cast<double>(p.scale) * kLog2E);
    set_order(params, p, schedule);
    params.out_batch_stride = p.out.batch;
    params.out_row_stride = p.out.row;
    params.out_head_stride = p.out.head;
    params.lse_batch_stride = p.lse.batch;
    params.lse_head_stride = p.lse.head;
    params.head_dim_v = static_cast<int32_t>(p.head_dim_v);
    params.scores = score_options_of(p);
    params.places = key_places_of(p, kForwardTiles[schedule.choice.tile_index].tile.keys);
    params.places.decoded_rows = schedule.decoded_rows;
    return params;
}

PreparedForward prepare_forward(const ForwardProblem& p, const ForwardSchedule& schedule) {
    if (schedule.grid == 0) return {schedule, {}};  // an order without tiles has no divisors
    return {schedule, params_of(p, schedule)};
}

Sm90ForwardPlan::Sm90ForwardPlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits)
    : ForwardPlan(problem, FOVEAL_BACKEND_SM90, device),
      traits_(traits),
      kernel_(prepare_forward(problem, schedule_of(problem, choice_of(problem), traits))) {}

void Sm90ForwardPlan::launch(const ForwardPointers& pointers, void* stream) const {
    check_pointers(pointers);
    if (kernel_.schedule.grid > 0) launch_forward(problem(), kernel_, device(), pointers, stream);
}

std::unique_ptr<ForwardPlan> plan_forward(const ForwardProblem& problem, int32_t device) {
    check_supported(problem);
    return std::make_unique<Sm90ForwardPlan>(problem, device, traits_of(device));
}

}  // namespace foveal::sm90
