#include "parallel/schedule.hpp"

#include <algorithm>
#include <limits>
#include <map>

namespace foveal::parallel {
namespace {

constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;

int64_t length_of(const Layout& layout, int64_t sequence) {
    const auto i = static_cast<size_t>(sequence);
    return i < layout.length_of.size() ? layout.length_of[i] : 0;
}

// The keys that queries of one sequence see; both ends ascend with the query.
class Band {
   public:
    Band(const Visibility& v, int64_t len_q, int64_t len_k)
        : left_(v.left == FOVEAL_UNLIMITED ? kFar : v.left),
          right_(v.right == FOVEAL_UNLIMITED ? kFar : v.right),
          chunk_(v.chunk),
          off_(v.top_left ? 0 : len_k - len_q),
          len_k_(len_k) {}

    int64_t place_of(int64_t query) const { return query + off_; }
    int64_t first_key(int64_t query) const {
        const int64_t at = place_of(query), first = std::max<int64_t>(at - left_, 0);
        return chunk_ == 0 || at < 0 ? first : std::max(first, at / chunk_ * chunk_);
    }
    int64_t end_key(int64_t query) const {
        const int64_t at = place_of(query), end = std::min(at + right_ + 1, len_k_);
        if (chunk_ == 0) return end;
        return at < 0 ? 0 : std::min(end, at / chunk_ * chunk_ + chunk_);
    }

   private:
    int64_t left_, right_, chunk_, off_, len_k_;
};

// Keys of one source, neighbours in its sequence and in its memory, within one attention chunk.
struct Run {
    int32_t source = 0;
    int64_t position = 0, keys = 0, row = 0;
};

std::vector<Run> runs_of(const std::vector<Span>& spans, int64_t chunk) {
    std::vector<Run> runs;
    for (const Span& span : spans) {
        for (int64_t begin = span.position; begin < span.end();) {
            const int64_t end = chunk == 0 ? span.end() : std::min(span.end(), begin / chunk * chunk + chunk);
            runs.push_back({span.rank, begin, end - begin, span.row + begin - span.position});
            begin = end;
        }
    }
    return runs;
}

// The first of [begin, end) for which `holds`, which stays true once it is.
template <class Condition>
int64_t first_where(int64_t begin, int64_t end, const Condition& holds) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (holds(middle))
            end = middle;
        else
            begin = middle + 1;
    }
    return begin;
}

// Queries [begin, end) see keys of `run`.
struct Sight {
    const Run* run;
    int64_t begin, end;
};

std::vector<Sight> sights_of(const Span& q, const std::vector<Run>& runs, const Band& band) {
    std::vector<Sight> sights;
    for (const Run& run : runs) {
        const auto begin = first_where(q.position, q.end(), [&](int64_t i) { return band.end_key(i) > run.position; });
        const auto end =
            first_where(q.position, q.end(), [&](int64_t i) { return band.first_key(i) >= run.position + run.keys; });
        if (begin < end) sights.push_back({&run, begin, end});
    }
    return sights;
}

// 1 + 2 + ... + n, or 0.
double sum_to(double n) { return n <= 0 ? 0 : n * (n + 1) / 2; }

// Sum over 0 <= i < n of clamp(from + i, 0, limit).
double sum_clamped(int64_t from, int64_t n, int64_t limit) {
    const auto below = [](int64_t end, int64_t count) {  // sum of max(end - count + 1 + t, 0), ending at `end`
        return sum_to(static_cast<double>(end)) - sum_to(static_cast<double>(end - count));
    };
    const int64_t last = from + n - 1;
    return below(last, n) - below(last - limit, n);
}

Cell cell_of(const Visibility& v, const Band& band, const Run& run, int64_t first, int64_t rows) {
    const int64_t last = first + rows - 1;
    const int64_t begin = std::max(run.position, band.first_key(first));
    const int64_t end = std::min(run.position + run.keys, band.end_key(last));
    Cell cell;
    cell.row = run.row + begin - run.position;
    cell.keys = end - begin;
    cell.position = begin;
    cell.offset = band.place_of(first) - begin;
    // The first query's window begins at or before the first key, and ends at or behind it: neither is negative.
    if (v.left != FOVEAL_UNLIMITED && v.left - cell.offset < rows - 1) cell.left = v.left - cell.offset;
    if (v.right != FOVEAL_UNLIMITED && v.right + cell.offset < cell.keys - 1) cell.right = v.right + cell.offset;
    const int64_t ends = cell.right == FOVEAL_UNLIMITED ? cell.keys : cell.right + 1;
    cell.pairs = sum_clamped(ends, rows, cell.keys);
    if (cell.right == FOVEAL_UNLIMITED) cell.pairs = static_cast<double>(rows) * static_cast<double>(cell.keys);
    if (cell.left != FOVEAL_UNLIMITED) cell.pairs -= sum_clamped(-cell.left, rows, cell.keys);
    return cell;
}

// Keys that every query sees may stand in any order, also before keys of which each query sees the first: cells that
// lie one behind the other become one.
void append_cell(const Visibility& v, Cell cell, std::vector<Cell>& cells) {
    const auto sees_all = [](const Cell& c) { return c.left == FOVEAL_UNLIMITED && c.right == FOVEAL_UNLIMITED; };
    if (cells.empty() || v.counts_places || cell.left != FOVEAL_UNLIMITED || !sees_all(cells.back()) ||
        cells.back().hop != cell.hop || cells.back().row + cells.back().keys != cell.row) {
        cells.push_back(cell);
        return;
    }
    Cell& both = cells.back();
    if (cell.right != FOVEAL_UNLIMITED) both.right = cell.right + both.keys;
    both.keys += cell.keys;
    both.pairs += cell.pairs;
}

// The stretches of one span: cut where the runs that its queries see change.
void add_stretches(const Span& q, const std::vector<Run>& runs, const Visibility& v, const Band& band, int32_t rank,
                   int32_t ranks, std::vector<Stretch>& stretches) {
    std::vector<Sight> sights = sights_of(q, runs, band);
    const auto hop_of = [&](const Sight& sight) { return (rank - sight.run->source + ranks) % ranks; };
    std::ranges::stable_sort(sights, [&](const Sight& a, const Sight& b) { return hop_of(a) < hop_of(b); });
    std::vector<int64_t> cuts{q.position, q.end()};
    for (const Sight& sight : sights) cuts.insert(cuts.end(), {sight.begin, sight.end});
    std::ranges::sort(cuts);
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        Stretch stretch{q.sequence, q.row + cuts[i] - q.position, cuts[i + 1] - cuts[i], {}};
        for (const Sight& sight : sights) {
            if (sight.begin > cuts[i] || sight.end < cuts[i + 1]) continue;
            Cell cell = cell_of(v, band, *sight.run, cuts[i], stretch.rows);
            cell.hop = hop_of(sight);
            append_cell(v, cell, stretch.cells);
        }
        if (stretch.cells.empty()) stretch.cells.emplace_back();
        stretches.push_back(std::move(stretch));
    }
}

std::vector<Stretch> stretches_of(const Layout& q, const Layout& k, const Visibility& v, int32_t rank, bool by_source) {
    std::vector<Stretch> stretches;
    const auto ranks = static_cast<int32_t>(q.rows_of_rank.size());
    std::map<int64_t, std::vector<Run>> runs;  // by sequence
    for (const Span& span : q.spans) {
        if (span.rank != rank) continue;
        const auto sequence = static_cast<size_t>(span.sequence);
        const auto [found, is_new] = runs.try_emplace(span.sequence);
        if (is_new && sequence < k.keys_of.size()) found->second = runs_of(k.keys_of[sequence], v.chunk);
        const Band band(v, length_of(q, span.sequence), length_of(k, span.sequence));
        add_stretches(span, found->second, v, band, by_source ? rank : 0, by_source ? ranks : 1, stretches);
    }
    return stretches;
}

// Rows [begin, end) of a source, without overlap, and where they lie in a buffer that holds them one after the other.
struct Interval {
    int64_t begin, end, buffer_row;
};

// What the cells of a hop need, as few intervals as may be; moves the cells to where they lie in the buffer.
std::vector<Interval> pack_cells(std::vector<Stretch>& stretches, int32_t hop, int64_t& buffer_rows) {
    std::vector<Interval> needed;
    for (const Stretch& stretch : stretches)
        for (const Cell& cell : stretch.cells)
            if (cell.hop == hop && cell.keys > 0) needed.push_back({cell.row, cell.row + cell.keys, 0});
    std::ranges::sort(needed, {}, &Interval::begin);
    std::vector<Interval> packed;
    for (const Interval& next : needed) {
        if (packed.empty() || next.begin > packed.back().end)
            packed.push_back(next);
        else
            packed.back().end = std::max(packed.back().end, next.end);
    }
    buffer_rows = 0;
    for (Interval& interval : packed) {
        interval.buffer_row = buffer_rows;
        buffer_rows += interval.end - interval.begin;
    }
    for (Stretch& stretch : stretches) {
        for (Cell& cell : stretch.cells) {
            if (cell.hop != hop || cell.keys == 0) continue;
            const auto behind = std::ranges::upper_bound(packed, cell.row, {}, &Interval::begin);
            const Interval& interval = *(behind - 1);
            cell.row += interval.buffer_row - interval.begin;
        }
    }
    return packed;
}

}  // namespace

Schedule ring_schedule(const Layout& q, const Layout& k, const Visibility& visibility, int32_t rank) {
    const auto ranks = static_cast<int32_t>(q.rows_of_rank.size());
    Schedule schedule{stretches_of(q, k, visibility, rank, true), std::vector<Hop>(static_cast<size_t>(ranks))};
    for (int32_t h = 1; h < ranks; ++h) {
        Hop& hop = schedule.hops[static_cast<size_t>(h)];
        const int32_t source = (rank - h + ranks) % ranks;
        for (const Interval& i : pack_cells(schedule.stretches, h, hop.buffer_rows))
            hop.transfers.push_back({source, i.begin, i.end - i.begin, i.buffer_row});
    }
    return schedule;
}

Schedule all_gather_schedule(const Layout& q, const Layout& k, const Visibility& visibility, int32_t rank) {
    const Layout gathered = gathered_layout(k);
    Schedule schedule{stretches_of(q, gathered, visibility, rank, false), std::vector<Hop>(1)};
    Hop& hop = schedule.hops[0];
    const std::vector<Interval> intervals = pack_cells(schedule.stretches, 0, hop.buffer_rows);
    if (intervals.empty()) return schedule;
    for (size_t sequence = 0; sequence < gathered.keys_of.size(); ++sequence) {
        for (const Span& whole : gathered.keys_of[sequence]) {
            for (const Span& span : k.keys_of[sequence]) {
                const int64_t first = whole.row + span.position;  // of the span in the gathered rows
                auto i = std::ranges::upper_bound(intervals, first, {}, &Interval::end);
                for (; i != intervals.end() && i->begin < first + span.rows; ++i) {
                    const int64_t begin = std::max(first, i->begin), end = std::min(first + span.rows, i->end);
                    hop.transfers.push_back(
                        {span.rank, span.row + begin - first, end - begin, i->buffer_row + begin - i->begin});
                }
            }
        }
    }
    return schedule;
}

}  // namespace foveal::parallel
