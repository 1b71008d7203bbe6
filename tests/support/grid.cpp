#include "tests/support/grid.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>

namespace foveal_testing {
namespace {

using Text = std::string;

enum Axis {
    kType,
    kDim,
    kDimV,
    kForm,
    kHeads,
    kWindow,
    kWidth,
    kAlignment,
    kSoftcap,
    kAlibi,
    kSinks,
    kBias,
    kMask,
    kLse,
    kMemory,
    kLengths,
    kBatch,
    kAxes
};

struct Lengths {
    int64_t q, k;
};

// The lengths, then those around the edges of 64-, 128- and 192-row tiles and key blocks.
constexpr Lengths kAllLengths[] = {
    {1, 1},       {3, 513},     {64, 128},  {113, 203}, {128, 217}, {239, 1},   {799, 3},   {1023, 1024},
    {1024, 1023}, {4224, 4224}, {63, 63},   {64, 64},   {65, 65},   {127, 127}, {128, 128}, {129, 129},
    {191, 191},   {192, 192},   {193, 193}, {63, 65},   {65, 63},   {127, 129}, {129, 127}, {191, 193},
    {193, 191},   {64, 192},    {192, 64},  {1, 64},    {1, 129},   {1, 193},   {256, 256}, {300, 0}};

// A window's width or a chunk's length: around the same edges.
constexpr int64_t kWidths[] = {0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 193};

// What each axis can be, as tokens of a case where it is one; "" is the default, and the first.
using Values = std::array<std::vector<Text>, kAxes>;

Values values_of(bool gpu, bool of_gradients) {
    Values values;
    values[kType] = {"bf16", "f16"};
    values[kDim] = {"d64",  "d128", "d8",   "d32",  "d40",  "d72",  "d96",
                    "d104", "d160", "d192", "d224", "d256", "d320", "d512"};
    values[kDimV] = {"", "dv8", "dv40", "dv64", "dv128", "dv192", "dv256", "dv512"};
    values[kForm] = {"dense", "seqused", "varlen", "varlen seqused"};
    values[kHeads] = {"h1", "h3", "hq4 hk2", "hq6 hk2", "hq10 hk2", "hq16 hk2", "hq7 hk1"};
    values[kWindow] = {"full",        "causal", "left",         "right",           "left right",
                       "causal left", "chunk",  "causal chunk", "left right chunk"};
    for (const int64_t width : kWidths) values[kWidth].push_back(std::to_string(width));
    values[kAlignment] = {"", "topleft"};
    values[kSoftcap] = {"", "softcap30", "softcap2"};
    values[kAlibi] = {"", "alibi", "alibi_b"};
    // Sinks that outweigh the keys leave a few rows to decide the error norm, which is chance then.
    values[kSinks] = {"", "sinks", "sinks1"};
    values[kBias] = {"",
                     "bias=bh",
                     "bias=b1",
                     "bias=1h",
                     "bias_f32=11",
                     "bias_f32=bh",
                     "bias=11 bias_inf",
                     "bias_f32=bh bias_inf",
                     "bias=b11k",
                     "bias_f32=1hq1"};
    values[kMask] = {"", "mask=bh", "mask=b1", "mask=1h", "mask=11", "mask=b11k", "mask=11q1"};
    values[kLse] = {"", "lse"};
    values[kMemory] = {"", "pad", "bhsd", "pad bhsd", "qkv", "qkv pad"};
    for (const Lengths& lengths : kAllLengths)
        values[kLengths].push_back("sq" + std::to_string(lengths.q) + " sk" + std::to_string(lengths.k));
    values[kBatch] = {"b1", "b2", "b3"};
    if (gpu) return values;
    values[kType].push_back("f32");
    if (!of_gradients)
        values[kType].insert(values[kType].end(), {"e4m3 descale", "e4m3 out_f16", "bf16 kv_e4m3 descale",
                                                   "f16 kv_e4m3", "f32 kv_e4m3 descale1"});
    values[kDim].insert(values[kDim].end(), {"d5", "d7", "d33", "d129"});
    values[kDimV].insert(values[kDimV].end(), {"dv5", "dv33"});
    return values;
}

// One case: the index of its value on each axis; -1 where not yet chosen.
using Row = std::array<int, kAxes>;

int64_t number_in(const Text& token) { return std::atoll(token.c_str() + token.find_first_of("0123456789")); }

// What a case may cost: the forward's products, and the elements of a bias or a mask.
struct Budget {
    double flops, matrix_elements;
};

// Text around the values of a row.
class Rows {
   public:
    Rows(bool gpu, bool of_gradients, const Budget& budget) : budget_(budget), values_(values_of(gpu, of_gradients)) {}

    int count(int axis) const { return static_cast<int>(values_[static_cast<size_t>(axis)].size()); }

    // Can the chosen values go together, as far as they are chosen?
    bool possible(const Row& row) const {
        const bool varlen = chosen(row, kForm) && row[kForm] >= 2;
        if (varlen && (row[kBias] > 0 || row[kMask] > 0)) return false;
        const bool packed = chosen(row, kMemory) && value(row, kMemory).substr(0, 3) == "qkv";
        if (packed && row[kDimV] > 0) return false;
        if (packed && chosen(row, kType) && value(row, kType).find("kv_e4m3") != Text::npos) return false;
        if (packed && chosen(row, kLengths) && lengths_of(row).q != lengths_of(row).k) return false;
        if (chosen(row, kWindow) && row[kWindow] < 2 && row[kWidth] > 0) return false;  // full, causal: no width
        if (chosen(row, kWindow) && value(row, kWindow).find("chunk") != Text::npos && row[kWidth] == 0) return false;
        return affordable(row);
    }

    Text text_of(const Row& row) const {
        Text text = shape_text(row);
        for (const int axis : {kHeads, kDim, kDimV, kType}) text += " " + value(row, axis);
        text += " " + window_text(row);
        for (const int axis : {kAlignment, kSoftcap, kAlibi, kSinks, kBias, kMask, kLse, kMemory}) {
            if (!value(row, axis).empty()) text += " " + value(row, axis);
        }
        return text;
    }

   private:
    static bool chosen(const Row& row, int axis) { return row[static_cast<size_t>(axis)] >= 0; }

    const Text& value(const Row& row, int axis) const {
        return values_[static_cast<size_t>(axis)][static_cast<size_t>(row[static_cast<size_t>(axis)])];
    }

    Lengths lengths_of(const Row& row) const { return kAllLengths[row[kLengths]]; }

    // The number in a chosen value, else the least that there is.
    int64_t number_or(const Row& row, int axis, int64_t least) const {
        return chosen(row, axis) && !value(row, axis).empty() ? number_in(value(row, axis)) : least;
    }

    // Memory of the scores' matrices and time, both at most; what is not chosen costs as little as it can.
    bool affordable(const Row& row) const {
        if (!chosen(row, kLengths)) return true;
        const auto pairs = static_cast<double>(lengths_of(row).q * lengths_of(row).k);
        const auto batch = static_cast<double>(number_or(row, kBatch, 1));
        const auto heads = static_cast<double>(number_or(row, kHeads, 1));
        const int64_t dim = number_or(row, kDim, 1);
        const int64_t dim_v = row[kDimV] > 0 ? number_or(row, kDimV, 1) : dim;
        const auto flops = 2 * static_cast<double>(dim + dim_v) * pairs * batch * heads;
        if (flops > budget_.flops) return false;
        for (const int axis : {kBias, kMask}) {
            if (row[static_cast<size_t>(axis)] <= 0) continue;
            const Text& token = value(row, axis);
            const double elements = pairs * (token.find("=b") != Text::npos ? batch : 1) *
                                    (token.find("=bh") != Text::npos || token.find("=1h") != Text::npos ? heads : 1);
            if (elements > budget_.matrix_elements) return false;
        }
        return true;
    }

    static Text list(const char* name, const std::vector<int64_t>& numbers) {
        Text text;
        for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
        return " " + Text(name) + "=" + text;
    }

    Text shape_text(const Row& row) const {
        const Lengths lengths = lengths_of(row);
        const auto sequences = static_cast<size_t>(number_in(value(row, kBatch)));
        std::vector<int64_t> q(sequences, lengths.q), k(sequences, lengths.k);
        Text text = value(row, kBatch) + " " + value(row, kLengths);
        if (row[kForm] >= 2) {
            // One sequence of these lengths, then a short one and one that is empty on one side.
            const std::array<int64_t, 3> short_q = {0, 5, 37}, short_k = {0, 70, 0};
            for (size_t i = 1; i < sequences; ++i) q[i] = short_q[i], k[i] = short_k[i];
            if (value(row, kMemory).substr(0, 3) == "qkv") k = q;
            text = "varlen" + list("qlens", q) + list("klens", k);
        }
        if (row[kForm] % 2 == 0) return text;
        // Two thirds of a sequence, all, nothing.
        for (size_t i = 0; i < sequences; ++i) {
            q[i] = i == 1 ? q[i] : i == 2 ? 0 : (2 * q[i] + 2) / 3;
            k[i] = i == 1 ? k[i] : i == 2 ? 0 : (2 * k[i] + 2) / 3;
        }
        if (sequences == 3) q[2] = lengths.q < 5 ? q[2] : 3;  // rows that see no key
        return text + list("used_q", q) + list("used_k", k);
    }

    Text window_text(const Row& row) const {
        const Text width = value(row, kWidth), window = value(row, kWindow);
        if (window == "left") return "left" + width;
        if (window == "right") return "right" + width;
        if (window == "left right") return "left" + width + " right" + std::to_string(number_in(width) / 3);
        if (window == "causal left") return "causal left" + width;
        if (window == "chunk") return "chunk" + width;
        if (window == "causal chunk") return "causal chunk" + width;
        if (window == "left right chunk") return "left40 right9 chunk" + width;
        return window;
    }

    Budget budget_;
    Values values_;
};

// Rows that cover all pairs, one after the other: each begins with a pair that is still missing and then takes, axis by
// axis in random order, the value that covers the most others.
class Covering {
   public:
    Covering(const Rows& rows, uint32_t seed) : rows_(rows), random_(seed) {
        for (int a = 0; a < kAxes; ++a) {
            for (int b = 0; b < a; ++b) {
                for (int i = 0; i < rows.count(a); ++i) {
                    for (int j = 0; j < rows.count(b); ++j) missing_.insert({a, i, b, j});
                }
            }
        }
    }

    std::optional<Row> next() {
        while (!missing_.empty()) {
            const Pair pair = *std::next(missing_.begin(), static_cast<int64_t>(random_() % missing_.size()));
            for (int attempt = 0; attempt < kAttempts; ++attempt) {
                const std::optional<Row> row = grow(pair);
                if (!row) continue;
                cover(*row);
                return row;
            }
            missing_.erase(pair);  // the two do not go together
        }
        return std::nullopt;
    }

   private:
    using Pair = std::array<int, 4>;  // axis, value, a lower axis, its value
    static constexpr int kAttempts = 5;

    std::optional<Row> grow(const Pair& pair) {
        Row row;
        row.fill(-1);
        row[static_cast<size_t>(pair[0])] = pair[1];
        row[static_cast<size_t>(pair[2])] = pair[3];
        if (!rows_.possible(row)) return std::nullopt;
        std::vector<int> order;
        for (int axis = 0; axis < kAxes; ++axis) {
            if (row[static_cast<size_t>(axis)] >= 0) continue;
            order.insert(order.begin() + static_cast<std::ptrdiff_t>(random_() % (order.size() + 1)), axis);
        }
        for (const int axis : order) {
            row[static_cast<size_t>(axis)] = best_value(row, axis);
            if (row[static_cast<size_t>(axis)] < 0) return std::nullopt;
        }
        return row;
    }

    int best_value(Row row, int axis) {
        int best = -1, most = -1;
        const int count = rows_.count(axis), first = static_cast<int>(random_() % static_cast<uint32_t>(count));
        for (int n = 0; n < count; ++n) {
            const int value = (first + n) % count;
            row[static_cast<size_t>(axis)] = value;
            if (!rows_.possible(row)) continue;
            int gain = 0;
            for (int other = 0; other < kAxes; ++other) gain += missing_.count(pair_of(row, axis, other)) > 0;
            if (gain > most) best = value, most = gain;
        }
        return best;
    }

    static Pair pair_of(const Row& row, int a, int b) {
        return {std::max(a, b), row[static_cast<size_t>(std::max(a, b))], std::min(a, b),
                row[static_cast<size_t>(std::min(a, b))]};
    }

    void cover(const Row& row) {
        for (int a = 0; a < kAxes; ++a) {
            for (int b = 0; b < a; ++b) missing_.erase(pair_of(row, a, b));
        }
    }

    const Rows& rows_;
    std::mt19937 random_;
    std::set<Pair> missing_;
};

std::vector<Case> covering_cases(const Rows& rows, size_t enough) {
    std::vector<Case> cases;
    std::set<Text> seen;
    for (uint32_t seed = 1; cases.size() < enough; ++seed) {
        Covering covering(rows, seed);
        while (const std::optional<Row> row = covering.next()) {
            const Case c = parse_case(rows.text_of(*row));
            if (seen.insert(to_text(c)).second) cases.push_back(c);
        }
    }
    return cases;
}

// Behind the cases every third of them once more, with dropout: beside each pair of the other options it would cost as
// much again as all of them. Of a few keys it would leave a few rows to decide the largest error and the norm, which
// are chance then.
std::vector<Case> and_dropout(std::vector<Case> cases) {
    constexpr size_t kEvery = 3;
    constexpr int64_t kFewKeys = 8;
    constexpr float kProbabilities[] = {0.1F, 0.5F, 0.25F, 0.75F};
    const size_t count = cases.size();
    for (size_t n = 0; n < count; n += kEvery) {
        if (cases[n].rows_k < kFewKeys) continue;
        cases.push_back(cases[n]);
        cases.back().dropout = kProbabilities[n / kEvery % std::size(kProbabilities)];
    }
    return cases;
}

}  // namespace

std::vector<Case> grid(foveal_backend backend) {
    const bool gpu = backend == FOVEAL_BACKEND_SM90;
    if (gpu) return and_dropout(covering_cases(Rows(gpu, false, Budget{4e11, 5e7}), 5000));
    return and_dropout(covering_cases(Rows(gpu, false, Budget{1e9, 2e7}), 1500));
}

std::vector<BackwardCase> backward_grid(foveal_backend backend) {
    const bool gpu = backend == FOVEAL_BACKEND_SM90;
    std::vector<BackwardCase> cases;
    std::vector<Case> covering =
        covering_cases(Rows(gpu, true, gpu ? Budget{4e9, 2e6} : Budget{5e7, 1e6}), gpu ? 4000 : 900);
    for (Case& c : and_dropout(std::move(covering))) {
        // Where the grid asks for the log-sum-exp, a gradient comes in through it.
        const bool dlse = c.lse;
        c.lse = true;
        const bool dbias_f32 = c.bias && cases.size() % 2 == 0;
        cases.push_back({std::move(c), dlse, dbias_f32});
    }
    return cases;
}

}  // namespace foveal_testing
