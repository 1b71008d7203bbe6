#include "order.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "schedule.hpp"

namespace foveal::sm90 {
namespace {

// A tile costs its K/V blocks and, for its start and end, as much as so many keys (measured on the study's kernels,
// H200, 2026-11-23: hopper-notes, schedule_sim.py).
constexpr double kTileOverheadKeys = 50;

// K and V that live in L2 while a section is computed. Larger sections than 33 MB were never better on an H200 unless
// they held the whole problem (same notes).
constexpr int32_t kLargestSection = 33;
constexpr int32_t kSectionMegabytes[] = {28, kLargestSection, 24, 20, 17, 13};
constexpr int32_t kWholeProblem = kMaxSequenceLength;

// Above this many tiles a CTA walks so many that no candidate is unbalanced, and simulating them would cost a
// millisecond.
constexpr int64_t kMaxSimulatedTiles = 8192;

// Rates of an H200 for the comparison of candidates: what a busy kernel computes, and the DRAM's share that it pays for
// although the copies run beside the computation (energy, and L2 misses that the rings do not hide).
constexpr double kFlopsPerSecond = 700e12;
constexpr double kVisibleDramShare = 0.3;

TileOrder order_of(const Problem& p, int32_t rows, int32_t section_keys, bool last_rows_first) {
    const auto units = static_cast<int32_t>(p.batch * p.heads_k);
    return {units, static_cast<int32_t>(p.group()), static_cast<int32_t>((p.rows_q + rows - 1) / rows),
            section_units(section_keys, static_cast<int32_t>(p.rows_k), units), last_rows_first};
}

// Keys that the K/V blocks of every row block hold, and the overhead.
std::vector<double> costs_of_rows(const Problem& p, int32_t rows, int32_t keys) {
    const Band band = band_of(p.window(), static_cast<int32_t>(p.rows_q), static_cast<int32_t>(p.rows_k));
    std::vector<double> costs;
    for (int32_t row = 0; row < p.rows_q; row += rows) {
        const Range tile{row, std::min(row + rows, static_cast<int32_t>(p.rows_q))};
        costs.push_back(std::max(1, kv_range(band, tile, keys).visit.size()) * keys + kTileOverheadKeys);
    }
    return costs;
}

int64_t bytes_of_key(const Problem& p) { return (p.head_dim + p.head_dim_v) * bytes_of(p.dtype); }

// Bytes that come from DRAM: a section that fits is read once; else every turn of the grid reads its units again.
double dram_bytes(const Problem& p, const TileOrder& order, int32_t grid, double mean_keys) {
    const double unit_bytes = static_cast<double>(p.rows_k * bytes_of_key(p));
    constexpr double kResidentBytes = 36e6;
    if (order.section_units * unit_bytes <= kResidentBytes) return order.units * unit_bytes;
    const double turns = static_cast<double>(order.tiles()) / grid;
    const double units_a_turn =
        std::min<double>(order.section_units, std::max(1.0, static_cast<double>(grid) / order.group));
    return turns * units_a_turn * mean_keys * static_cast<double>(bytes_of_key(p));
}

// costs: of each row block.
double imbalance_of(const TileOrder& order, const std::vector<double>& costs, int32_t grid) {
    std::vector<double> load(static_cast<size_t>(grid), 0.0);
    double total = 0;
    for (int32_t turn = 0; turn * grid < order.tiles(); ++turn)
        for (int32_t cta = 0; cta < grid; ++cta) {
            const int32_t t = serpentine(turn, cta, grid);
            if (t >= order.tiles()) continue;
            const double cost = costs[static_cast<size_t>(tile_place(order, t).row_block)];
            load[static_cast<size_t>(cta)] += cost;
            total += cost;
        }
    return *std::max_element(load.begin(), load.end()) * grid / total;
}

}  // namespace

double order_imbalance(const Problem& problem, int32_t rows, int32_t keys, int32_t grid, int32_t section_keys,
                       bool last_rows_first) {
    return imbalance_of(order_of(problem, rows, section_keys, last_rows_first), costs_of_rows(problem, rows, keys),
                        grid);
}

OrderChoice choose_order(const Problem& p, int32_t rows, int32_t keys, int32_t grid, bool last_rows_first) {
    const auto keys_of_megabytes = [&](int64_t megabytes) {
        return static_cast<int32_t>(std::min<int64_t>((megabytes << 20) / bytes_of_key(p), kWholeProblem));
    };
    // Where all row blocks visit the same keys nothing is gained by longest first: one KV head after the other, so that
    // the CTAs that run side by side read as few keys as can be. (The study: b16 s1024 h8 d256 full 215 -> 196 us.)
    if (!p.window().limited() && !p.varlen) {
        const auto one_unit = static_cast<int32_t>(p.rows_k);
        const bool few = order_of(p, rows, one_unit, false).tiles() <= kMaxSimulatedTiles;
        return {one_unit, few ? order_imbalance(p, rows, keys, grid, one_unit, false) : 1.0};
    }
    const int32_t usual = keys_of_megabytes(kSectionMegabytes[0]);
    if (p.varlen || order_of(p, rows, usual, last_rows_first).tiles() > kMaxSimulatedTiles) return {usual, 1.0};

    const std::vector<double> costs = costs_of_rows(p, rows, keys);
    double mean_keys = -kTileOverheadKeys;
    for (const double cost : costs) mean_keys += cost / static_cast<double>(costs.size());
    const double pairs = mean_keys * static_cast<double>(p.batch * p.heads_q * p.rows_q);
    const double compute_seconds = pairs * 2 * static_cast<double>(p.head_dim + p.head_dim_v) / kFlopsPerSecond;

    OrderChoice best{usual, 1.0};
    double best_seconds = 1e300;
    const auto consider = [&](int32_t section_keys) {
        const TileOrder order = order_of(p, rows, section_keys, last_rows_first);
        const double imbalance = imbalance_of(order, costs, grid);
        const double dram_seconds = dram_bytes(p, order, grid, mean_keys) / kSustainedBytesPerSecond;
        const double seconds = std::max(compute_seconds * imbalance + kVisibleDramShare * dram_seconds, dram_seconds);
        if (seconds >= best_seconds) return;
        best_seconds = seconds;
        best = {section_keys, imbalance};
    };
    for (const int32_t megabytes : kSectionMegabytes) consider(keys_of_megabytes(megabytes));
    // Sections of whole turns of the grid, or of thirds of them, leave no CTA without a tile at their ends.
    const int32_t row_blocks = order_of(p, rows, usual, last_rows_first).row_blocks;
    const int32_t turn_units = grid / std::gcd(grid, static_cast<int32_t>(p.group()) * row_blocks);
    for (const int32_t thirds : {6, 3, 2, 1})
        if (const int64_t section_keys = p.rows_k * (turn_units * thirds / 3);
            section_keys > 0 && section_keys <= keys_of_megabytes(kLargestSection))
            consider(static_cast<int32_t>(section_keys));
    consider(kWholeProblem);
    return best;
}

}  // namespace foveal::sm90
