#include "sm90/forward/order.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "sm90/forward/schedule.hpp"

namespace foveal::sm90 {
namespace {

// Fitted to the times of 15 problems in eight to eleven orders each (H100, 2026-11-25: docs/performance-log, 45).
// What an SM computes while it is busy.
constexpr double kFlopsPerSecondOfSm = 700e12 / 132;
// The part of the DRAM's peak rate that the kernel draws without waiting, and the part of the reading that costs time
// where it could hide behind computation.
constexpr double kDramShare = 0.57;
constexpr double kVisibleReading = 0.08;
// Of the L2 cache, what K and V may fill and still be found there in the next round.
constexpr double kResidentShare = 0.7;

// K and V of a section of a varlen batch, whose lengths the host does not know.
constexpr int64_t kVarlenSectionBytes = int64_t{28} << 20;

// Tiles of a varlen batch that take at least as long on average are dealt out evenly (balance.cuh): for shorter ones
// that costs more than it brings (H100, 2026-11-27: docs/performance-log, 51 and 55).
constexpr double kBalancedTileSeconds = 7.6e-6;
// And a CTA's tiles together at least so long: its first one waits 4 us and more for the ranks.
constexpr double kBalancedSeconds = 100e-6;

// A run is the tiles of one section and row block. More of them would take milliseconds to simulate.
constexpr int64_t kMaxSimulatedRuns = 1 << 15;
// Where the busiest CTA has more than so much of the mean, all sections up to that size are tried, too: it takes up to
// a millisecond more. Lengths that are no power of two gained up to 10 % (H200, 2026-11-28: docs/performance-log,
// 77).
constexpr double kEvenEnough = 1.01;
constexpr int32_t kMaxSweptSection = 44;
// A candidate with larger sections has to be better by so much.
constexpr double kNotWorthwhile = 0.998;

// Of more row blocks, evenly spaced ones stand for their neighbours in a sum, which then takes less than a millisecond.
constexpr int64_t kMaxSummedRowBlocks = 1 << 17;

// That a tile of `rows` rows computes.
double seconds_of_key(const ForwardProblem& p, int32_t rows) {
    return 2.0 * rows * static_cast<double>(p.head_dim + p.head_dim_v) / kFlopsPerSecondOfSm;
}

// Of one head's K and V, or of its Q and output.
double key_bytes_of(const ForwardProblem& p) {
    return static_cast<double>((p.head_dim + p.head_dim_v) * bytes_of(p.dtype));
}

// The K/V blocks that each row block of a sequence visits.
class Visits {
   public:
    Visits(const ForwardProblem& p, TileShape tile)
        : band_(band_of(p.window(), static_cast<int32_t>(p.rows_q), static_cast<int32_t>(p.rows_k))),
          tile_(tile),
          rows_q_(static_cast<int32_t>(p.rows_q)) {}

    int32_t size() const { return row_blocks_of(rows_q_, tile_.rows, tile_.heads_log2); }

    Range operator[](int32_t row_block) const {
        const int32_t row = row_block * tile_.queries();
        return kv_range(band_, {row, std::min(row + tile_.queries(), rows_q_)}, tile_.keys).visit;
    }

   private:
    const Band band_;
    const TileShape tile_;
    const int32_t rows_q_;
};

// tile_cost() of all row blocks together.
double cost_of_row_blocks(const ForwardProblem& p, TileShape tile) {
    const Visits visits(p, tile);
    const int64_t size = visits.size(), step = (size + kMaxSummedRowBlocks - 1) / kMaxSummedRowBlocks;
    double cost = 0;
    for (int64_t i = 0; i < size; i += step)
        cost += static_cast<double>(tile_cost(visits[static_cast<int32_t>(i)], tile.keys)) *
                static_cast<double>(std::min(step, size - i));
    return cost;
}

struct RowBlock {
    double cost;        // tile_cost()
    double keys;        // that its K/V blocks hold
    double fresh_keys;  // of them, those that the row block before it in the order does not visit
};

std::vector<RowBlock> row_blocks_with_costs(const ForwardProblem& p, TileShape tile, bool last_rows_first) {
    const Visits visits(p, tile);
    std::vector<RowBlock> row_blocks(static_cast<size_t>(visits.size()));
    Range before{0, 0};
    for (int32_t step = 0; step < visits.size(); ++step) {
        const int32_t i = last_rows_first ? visits.size() - 1 - step : step;
        const Range visit = visits[i];
        const int32_t again = std::max(0, std::min(visit.end, before.end) - std::max(visit.begin, before.begin));
        row_blocks[static_cast<size_t>(i)] = {static_cast<double>(tile_cost(visit, tile.keys)),
                                              static_cast<double>(visit.size() * tile.keys),
                                              static_cast<double>((visit.size() - again) * tile.keys)};
        before = visit;
    }
    return row_blocks;
}

// What a tile takes on average in a batch of sequences of its mean length: computing, or reading and writing, each row
// and each key once. Where keys are not packed, their number only has a bound, which may be far off; then, as many as
// queries.
double mean_tile_seconds(const ForwardProblem& p, const cuda::DeviceTraits& traits, TileShape tile, int32_t grid) {
    ForwardProblem mean = p;
    mean.rows_q = std::max<int64_t>(1, p.rows_q / p.batch);
    mean.rows_k = p.keys == KeyForm::varlen ? p.rows_k / p.batch : std::min(p.rows_k, mean.rows_q);
    const double cost = cost_of_row_blocks(mean, tile) / Visits(mean, tile).size();
    // Of a query head, where lengths vary: the last one is half full.
    const double tiles = static_cast<double>(mean.rows_q) / tile.rows + 0.5;
    const double bytes =
        key_bytes_of(p) / tiles *
        (static_cast<double>(mean.rows_q) + static_cast<double>(mean.rows_k) / static_cast<double>(p.heads_per_kv()));
    return std::max(cost * seconds_of_key(p, tile.rows), bytes * grid / (kDramShare * traits.dram_bytes_per_second));
}

// CTAs that take as many neighbouring tiles together, heads of the same rows. 0: too few heads for that, or tiles so
// short or so few that dealing them out evenly costs more than it brings.
int32_t bundle_of(const ForwardProblem& p, const cuda::DeviceTraits& traits, TileShape tile, int32_t grid) {
    const int32_t bundle = std::gcd(static_cast<int32_t>(p.heads_q), grid);
    if (grid / bundle > kMaxBundles) return 0;
    const double tile_seconds = mean_tile_seconds(p, traits, tile, grid);
    const double tiles = (static_cast<double>(p.rows_q) / tile.rows + 0.5 * static_cast<double>(p.batch)) *
                         static_cast<double>(p.heads_q) / grid;
    return tile_seconds >= kBalancedTileSeconds && tile_seconds * tiles >= kBalancedSeconds ? bundle : 0;
}

OrderChoice choose_varlen_order(const ForwardProblem& p, const cuda::DeviceTraits& traits, TileShape tile,
                                int32_t grid) {
    OrderChoice choice;
    choice.section_keys = static_cast<int32_t>(
        std::min<int64_t>(kVarlenSectionBytes / static_cast<int64_t>(key_bytes_of(p)), kMaxSequenceLength));
    choice.bundle = bundle_of(p, traits, tile, grid);
    return choice;
}

// Foretells how long `grid` CTAs take that walk an order in serpentines: round by round, the longer of computing and of
// reading from DRAM; and then for the busiest CTA.
class Model {
   public:
    struct Forecast {
        double seconds, imbalance;
    };

    // order: of whatever sections.
    Model(const ForwardProblem& p, const cuda::DeviceTraits& traits, TileShape tile, int32_t grid,
          const TileOrder& order)
        : order_(order),
          row_blocks_(row_blocks_with_costs(p, tile, order.last_rows_first)),
          grid_(grid),
          key_bytes_(key_bytes_of(p)),
          unit_bytes_(static_cast<double>(p.rows_k) * key_bytes_),
          tile_bytes_(tile.rows * key_bytes_),
          seconds_a_key_(seconds_of_key(p, tile.rows)),
          seconds_a_byte_(1 / (kDramShare * traits.dram_bytes_per_second)),
          resident_bytes_(kResidentShare * static_cast<double>(traits.l2_bytes)) {}

    // Of sections of `section_units`, the last of at least `least_in_last`.
    Forecast of(int32_t section_units, int32_t least_in_last) const {
        const TileOrder order = with_sections(section_units, least_in_last);
        std::vector<double> changes(static_cast<size_t>(grid_) + 1);  // of the CTAs' loads, from one CTA to the next
        double seconds = 0, total_cost = 0, turn_cost = 0, turn_bytes = 0;
        for (int32_t t = 0; t < order.tiles();) {
            const TilePlace place = tile_place(order, t);
            const int32_t units = order.units_of(place.section), heads = units * order.heads_per_kv;
            const int32_t run_end = t + heads - (t - place.section * order.section_tiles()) % heads;
            const int32_t round = t / grid_, round_end = std::min((round + 1) * grid_, order.tiles());
            const int32_t end = std::min(run_end, round_end);
            const RowBlock& row_block = row_blocks_[static_cast<size_t>(place.row_block)];
            // An odd round runs from the last CTA to the first.
            const bool back = serpentine(round, 0, grid_) != round * grid_;
            const int32_t first = t - round * grid_, last = end - round * grid_;
            changes[static_cast<size_t>(back ? grid_ - last : first)] += row_block.cost;
            changes[static_cast<size_t>(back ? grid_ - first : last)] -= row_block.cost;
            turn_cost += row_block.cost * (end - t);
            turn_bytes += dram_bytes(row_block, units) * (end - t);
            t = end;
            if (t < round_end) continue;
            const double computing = turn_cost / grid_ * seconds_a_key_, reading = turn_bytes * seconds_a_byte_;
            seconds += std::max(computing, reading) + kVisibleReading * reading;
            total_cost += turn_cost;
            turn_cost = turn_bytes = 0;
        }
        std::partial_sum(changes.begin(), changes.end(), changes.begin());
        const double busiest = *std::max_element(changes.begin(), changes.end()), mean = total_cost / grid_;
        return {seconds + (busiest - mean) * seconds_a_key_, busiest / mean};
    }

   private:
    TileOrder with_sections(int32_t section_units, int32_t least_in_last) const {
        TileOrder order = order_;
        order.section_units = section_units;
        order.sections = section_count(order.units, section_units, least_in_last);
        return order;
    }

    // Of one tile: its Q and O, and its share of its unit's K and V. Where a section's K and V do not stay in L2, each
    // round reads again what is missing, for all its tiles of the unit together.
    double dram_bytes(const RowBlock& row_block, int32_t section_units) const {
        const double missing = std::max(0.0, 1 - resident_bytes_ / (section_units * unit_bytes_));
        const double sharers = std::max<double>(order_.heads_per_kv, static_cast<double>(grid_) / section_units);
        return tile_bytes_ + key_bytes_ * (row_block.fresh_keys / order_.heads_per_kv +
                                           missing * (row_block.keys - row_block.fresh_keys) / sharers);
    }

    const TileOrder order_;
    const std::vector<RowBlock> row_blocks_;
    const int32_t grid_;
    const double key_bytes_;   // of one head's K and V
    const double unit_bytes_;  // all of them
    const double tile_bytes_;  // Q and O
    const double seconds_a_key_, seconds_a_byte_;
    const double resident_bytes_;
};

}  // namespace

int64_t unit_cost(const ForwardProblem& p, TileShape tile) {
    return packs_of(static_cast<int32_t>(p.heads_per_kv()), tile.heads_log2) *
           static_cast<int64_t>(cost_of_row_blocks(p, tile));
}

TileOrder tile_order(const ForwardProblem& p, TileShape tile, const OrderChoice& choice, bool last_rows_first) {
    return {static_cast<int32_t>(p.batch * p.heads_k),
            packs_of(static_cast<int32_t>(p.heads_per_kv()), tile.heads_log2),
            row_blocks_of(static_cast<int32_t>(p.rows_q), tile.rows, tile.heads_log2),
            choice.section_units,
            choice.sections,
            last_rows_first};
}

OrderChoice choose_order(const ForwardProblem& p, const cuda::DeviceTraits& traits, TileShape tile, int32_t grid,
                         bool last_rows_first) {
    if (p.varlen) return choose_varlen_order(p, traits, {tile.rows, tile.keys, 0}, grid);
    OrderChoice best;
    const TileOrder order = tile_order(p, tile, best, last_rows_first);
    const int32_t unit_tiles = order.heads_per_kv * order.row_blocks;
    const auto set_sections = [&](int32_t section_units, int32_t least_in_last) {
        best.section_units = std::min(section_units, order.units);
        best.sections = section_count(order.units, best.section_units, least_in_last);
    };
    const auto runs = [&](int32_t section_units) { return int64_t{order.units} / section_units * order.row_blocks; };
    constexpr int32_t kSmallSection = 3;
    set_sections(kSmallSection, 1);
    // So many rounds that no CTA is left behind.
    if (std::max<int64_t>(order.row_blocks, runs(kSmallSection)) > kMaxSimulatedRuns) return best;
    const Model model(p, traits, tile, grid, order);
    double best_seconds = 1e300;
    const auto consider = [&](int32_t section_units, int32_t least_in_last) {
        if (section_units < 1 || section_units > order.units || least_in_last > order.units) return;
        if (runs(section_units) > kMaxSimulatedRuns) return;
        const Model::Forecast forecast = model.of(section_units, least_in_last);
        if (forecast.seconds >= best_seconds * kNotWorthwhile) return;
        best_seconds = forecast.seconds;
        best.imbalance = forecast.imbalance;
        set_sections(section_units, least_in_last);
    };
    // The least number of units whose tiles are whole rounds of the grid.
    const int32_t turn_units = grid / std::gcd(grid, unit_tiles);
    const int32_t sizes[] = {1, kSmallSection, turn_units / 3, turn_units * 2 / 3, turn_units, turn_units * 2};
    const auto consider_ends = [&](int32_t section_units) {
        consider(section_units, 1);
        // Half rounds: the last section ends together.
        for (const int32_t half_turns : {3, 5, 7, 13})
            consider(section_units, (half_turns * grid / 2 + unit_tiles - 1) / unit_tiles);
    };
    for (const int32_t section_units : sizes) consider_ends(section_units);
    consider(order.units, 1);
    for (int32_t section_units = 2; section_units <= kMaxSweptSection && best.imbalance > kEvenEnough; ++section_units)
        consider_ends(section_units);
    return best;
}

}  // namespace foveal::sm90
