#include "backend/plan.hpp"

#include <algorithm>
#include <bit>
#include <sstream>

#include "backend/backends.hpp"
#include "sm90/forward/order.hpp"
#include "sm90/forward/support.hpp"
#include "sm90/forward/tiles.hpp"

namespace foveal {
namespace {

// ForwardPlan's. Where all tiles are alike, it always pays. Else passing over one breaks the overlap of two tiles,
// which cost 3-10 % on sequences of up to 300 rows, and gains a quarter of a long tile (H100, 2026-11-25:
// docs/performance-log, 50).
int32_t passed_over_blocks(const Problem& p, const sm90::ForwardTile& tile, int32_t heads_log2) {
    const bool all_alike = !p.varlen && p.rows_q <= tile.rows() >> heads_log2;
    return all_alike ? 1 : 4;
}

// ForwardPlan's: what costs least, and of such the most heads, if that is less than without packing. Fewer tiles cost
// less, and so do tiles of fewer queries where they visit fewer K/V blocks: under a narrow window, or where a tile's
// rows are more than a block's keys (H200, 2026-11-28: docs/performance-log, 73). Varlen: the most heads, and the
// kernel decides for each sequence by itself: under softcap a row's rounding follows from the rows that it shares a
// tile with.
int32_t packed_heads_log2(const Problem& p, const sm90::ForwardTile& tile) {
    const auto group = static_cast<int32_t>(p.group());
    const int32_t most = std::min(std::countr_zero(static_cast<uint32_t>(tile.segments())),
                                  static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(group - 1))));
    if (p.varlen) return most;
    const auto cost = [&](int32_t log2) { return sm90::unit_cost(p, {tile.rows(), tile.keys, log2}); };
    const int64_t apart = cost(0);
    int32_t best = 0;
    for (int32_t log2 = 1; log2 <= most; ++log2)
        if (cost(log2) < apart && cost(log2) <= cost(best)) best = log2;
    return best;
}

// ForwardPlan's, of a varlen problem. From a sequence of many whole tiles, not from the batch, which must not decide
// how a sequence is computed.
int32_t least_saved_tiles(const Problem& p, const sm90::ForwardTile& tile, int32_t heads_log2) {
    constexpr int64_t kManyWholeTiles = 4096;
    Problem sequence = p;
    sequence.varlen = false;
    sequence.rows_q = sequence.rows_k = kManyWholeTiles;
    const auto cost = [&](int32_t log2) { return sm90::unit_cost(sequence, {tile.rows(), tile.keys, log2}); };
    return cost(heads_log2) < cost(0) ? 0 : 1;
}

ForwardPlan plan_forward(const Problem& p, sm90::ForwardChoice choice, const DeviceTraits& traits) {
    ForwardPlan plan;
    plan.choice = choice;
    const sm90::ForwardTile& tile = sm90::kForwardTiles[plan.choice.tile_index].tile;
    if (p.total_rows_q() == 0 || p.batch == 0) return plan;
    // A limit on the right gives later rows more keys.
    plan.last_rows_first = p.window().right < kUnlimitedWidth;
    plan.heads_log2 = packed_heads_log2(p, tile);
    if (p.varlen) plan.least_saved_tiles = least_saved_tiles(p, tile, plan.heads_log2);
    const sm90::TileShape shape{tile.rows(), tile.keys, plan.heads_log2};
    // Varlen: an upper bound, every sequence may end inside a tile. The kernel finds the rest.
    const int64_t tiles = p.varlen ? (p.rows_q / tile.rows() + p.batch) * p.heads_q
                                   : sm90::tile_order(p, shape, {}, plan.last_rows_first).tiles();
    plan.grid = static_cast<int32_t>(std::min<int64_t>(traits.sms, tiles));
    plan.order = sm90::choose_order(p, traits, shape, plan.grid, plan.last_rows_first);
    // CTAs that go in bundles take whole bundles of a row block's tiles, and packed it has fewer. (Whether they go in
    // bundles follows from the whole batch; so, then, does whether its heads are packed.)
    const int64_t packs = p.heads_k * sm90::packs_of(static_cast<int32_t>(p.group()), plan.heads_log2);
    if (plan.order.bundle > 0 && packs % plan.order.bundle != 0) plan.heads_log2 = 0;
    plan.passed_over_blocks = passed_over_blocks(p, tile, plan.heads_log2);
    return plan;
}

// Visible (query, key) pairs of one head of one dense sequence.
double visible_pairs(const Problem& p) {
    const Band band = band_of(p.window(), static_cast<int32_t>(p.rows_q), static_cast<int32_t>(p.rows_k));
    double pairs = 0;
    for (int32_t i = 0; i < p.rows_q; ++i) pairs += visible_keys(band, i).size();
    return pairs;
}

void describe_problem(std::ostream& out, const Problem& p) {
    out << "problem    " << (p.varlen ? "varlen" : "dense") << ' ' << name_of(p.dtype) << ", batch " << p.batch
        << ", rows " << p.rows_q << " x " << p.rows_k << (p.varlen ? " in total" : "") << ", heads " << p.heads_q
        << " / " << p.heads_k << ", d " << p.head_dim << ", d_v " << p.head_dim_v << ", scale " << p.scale << '\n';
    const auto side = [](int64_t width) {
        return width == FOVEAL_UNLIMITED ? std::string("unlimited") : std::to_string(width);
    };
    out << "mask       left " << side(p.window_left) << ", right " << side(p.window_right) << ", "
        << (p.alignment == FOVEAL_TOP_LEFT ? "top-left" : "bottom-right");
    if (p.chunk > 0) out << ", chunks of " << p.chunk;
    out << (p.has_mask ? ", boolean mask\n" : "\n");
    if (p.softcap == 0 && !p.has_alibi && !p.has_bias && !p.has_sinks) return;
    out << "scores    ";
    if (p.softcap > 0) out << " softcap " << p.softcap;
    if (p.has_alibi) out << " alibi";
    if (p.has_bias) out << " bias " << name_of(p.bias_dtype);
    if (p.has_sinks) out << " sinks";
    out << '\n';
}

void describe_bound(std::ostream& out, const Problem& p) {
    if (p.varlen || p.has_seqused_q || p.has_seqused_k) {
        out << "bound      the lengths are on the device\n";
        return;
    }
    const double heads = static_cast<double>(p.batch * p.heads_q);
    const double flops = 2 * static_cast<double>(p.head_dim + p.head_dim_v) * visible_pairs(p) * heads;
    const double elements = static_cast<double>((p.head_dim + p.head_dim_v) * p.batch) *
                            static_cast<double>(p.rows_q * p.heads_q + p.rows_k * p.heads_k);
    const double bytes = elements * static_cast<double>(bytes_of(p.dtype)) +
                         (p.wants_lse ? 4 * heads * static_cast<double>(p.rows_q) : 0);
    const double compute_us = flops / kSustainedFlopsPerSecond * 1e6,
                 memory_us = bytes / kSustainedBytesPerSecond * 1e6;
    out << "bound      " << std::max(compute_us, memory_us) << " us on an H200: " << flops / 1e9 << " GFLOP ("
        << compute_us << " us), " << bytes / 1e6 << " MB (" << memory_us << " us)\n";
}

void describe_sm90(std::ostream& out, const Plan& plan) {
    const sm90::ForwardTileEntry& entry = sm90::kForwardTiles[plan.forward.choice.tile_index];
    const sm90::ForwardTile& tile = entry.tile;
    const sm90::ForwardConfig config{plan.problem.dtype, tile, plan.forward.choice.variant};
    const int64_t heads = std::min<int64_t>(1 << plan.forward.heads_log2, plan.problem.group());
    out << "kernel     sm90 forward, " << name_of(plan.problem.dtype) << ", d up to " << tile.head_dim << ", d_v up to "
        << tile.head_dim_v << ", " << sm90::name_of(plan.forward.choice.variant) << '\n'
        << "tile       " << tile.rows() << " rows (" << tile.consumers << " warpgroups "
        << (tile.shares_rows ? "that split the columns of the output" : "of 64 rows") << ") x " << tile.keys
        << " keys, " << tile.stages << " stages; limited by " << entry.limited_by << '\n';
    if (sm90::is_bias(config.variant)) {
        const sm90::ForwardChoice other = plan.unaligned_bias.choice;
        const sm90::ForwardTile& other_tile = sm90::kForwardTiles[other.tile_index].tile;
        out << "           if bias.data is not aligned to 16 bytes: " << other_tile.rows() << " rows x "
            << other_tile.keys << " keys, " << sm90::name_of(other.variant) << '\n';
    }
    out << "           rows of " << (heads == 1 ? "one head" : std::to_string(heads) + " heads")
        << (plan.forward.heads_log2 == 0 || !plan.problem.varlen ? ""
            : plan.forward.least_saved_tiles > 0                 ? " in sequences that have fewer tiles then"
                                                                 : " in sequences that do not have more tiles then")
        << "; warpgroups without rows pass over tiles of " << plan.forward.passed_over_blocks << " or more K/V blocks\n"
        << "grid       " << plan.forward.grid << " CTAs of " << tile.threads() << " threads on " << plan.traits.sms
        << " SMs\n"
        << "shared     " << sm90::shared_bytes(tile) << " bytes a CTA\n"
        << "registers  " << tile.producer_registers << " a producer thread, " << config.tile.consumer_registers
        << " a consumer thread\n";
    const sm90::OrderChoice& order = plan.forward.order;
    const char* direction = plan.forward.last_rows_first ? "last" : "first";
    if (!plan.problem.varlen)
        out << "order      " << order.section_units << " heads of K a section, " << order.sections
            << " sections (the last has what is left), " << direction << " rows first; busiest CTA at "
            << order.imbalance << " of the mean\n";
    else if (order.bundle == 0)
        out << "order      sections of " << order.section_keys << " keys, " << direction
            << " rows first, in serpentines\n";
    else
        out << "order      sections of " << order.section_keys << " keys, " << direction
            << " rows first, dealt out to bundles of " << order.bundle << " CTAs by what they have computed\n";
}

}  // namespace

Plan make_plan(const Problem& problem, foveal_backend backend, int32_t device, const DeviceTraits& traits) {
    check_supported(problem, backend);
    Plan plan{problem, backend, device, traits, {}, {}};
    if (backend != FOVEAL_BACKEND_SM90) return plan;
    plan.forward = plan_forward(problem, sm90::choice_of(problem), traits);
    if (sm90::is_bias(plan.forward.choice.variant))
        plan.unaligned_bias = plan_forward(problem, sm90::choice_for_unaligned_bias(problem), traits);
    return plan;
}

std::string describe(const Plan& plan) {
    std::ostringstream out;
    describe_problem(out, plan.problem);
    if (plan.backend == FOVEAL_BACKEND_SM90)
        describe_sm90(out, plan);
    else
        out << "kernel     cpu forward\n";
    out << "workspace  0 bytes\n";
    if (plan.backend == FOVEAL_BACKEND_SM90) describe_bound(out, plan.problem);
    return out.str();
}

}  // namespace foveal
