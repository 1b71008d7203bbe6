// The rows that bench/decode.cu measures.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace foveal_bench {

struct DecodeRow {
    std::string name;
    std::vector<int32_t> lengths;  // of each sequence
    int32_t heads_q = 32, heads_k = 8, head_dim = 128, queries = 1, page_size = 64;

    int64_t keys() const {
        int64_t all = 0;
        for (const int32_t length : lengths) all += length;
        return all;
    }
    // Of K and V.
    double bytes() const { return 4.0 * static_cast<double>(keys()) * heads_k * head_dim; }
};

inline DecodeRow equal(const std::string& name, int32_t batch, int32_t length) {
    return {name, std::vector<int32_t>(static_cast<size_t>(batch), length)};
}

// Lengths whose logarithms are evenly spread, in a shuffled order.
inline DecodeRow mixed(const std::string& name, int32_t batch, double least, double most) {
    DecodeRow row{name, {}};
    for (int32_t i = 0; i < batch; ++i) {
        const int32_t place = (i * 37 + 11) % batch;
        row.lengths.push_back(static_cast<int32_t>(least * std::pow(most / least, (place + 0.5) / batch)));
    }
    return row;
}

inline std::vector<DecodeRow> decode_rows() {
    std::vector<DecodeRow> rows;
    const auto add = [&rows](DecodeRow row, auto change) {
        change(row);
        rows.push_back(std::move(row));
    };
    constexpr int32_t kKeys = 1024;
    const struct {
        int32_t batch;
        std::vector<int32_t> thousands;
    } table[] = {{1, {1, 4, 16, 128}}, {8, {1, 4, 16, 64}}, {32, {1, 4, 16}}, {128, {1, 4, 16}}};
    for (const auto& line : table)
        for (const int32_t thousand : line.thousands)
            rows.push_back(equal("b" + std::to_string(line.batch) + " " + std::to_string(thousand) + "k", line.batch,
                                 thousand * kKeys));
    rows.push_back(mixed("mix64 128...32768", 64, 128, 32768));
    rows.push_back(mixed("mix256 64...8192", 256, 64, 8192));
    rows.push_back(equal("b48 6000", 48, 6000));
    rows.push_back(equal("b200 700", 200, 700));
    const DecodeRow b32 = equal("b32 16k", 32, 16 * kKeys);
    for (const int32_t ratio : {1, 8, 16})
        add(b32, [ratio](DecodeRow& row) { row.name += " ratio " + std::to_string(ratio), row.heads_q = ratio * 8; });
    for (const int32_t queries : {2, 4, 16})
        add(b32, [queries](DecodeRow& row) { row.name += " q_len " + std::to_string(queries), row.queries = queries; });
    add(b32, [](DecodeRow& row) { row.name += " d64", row.head_dim = 64; });
    add(b32, [](DecodeRow& row) { row.name += " d256 16/2", row.head_dim = 256, row.heads_q = 16, row.heads_k = 2; });
    add(b32, [](DecodeRow& row) { row.name += " d512 8/1", row.head_dim = 512, row.heads_q = 8, row.heads_k = 1; });
    for (const int32_t size : {16, 8, 1})
        add(b32, [size](DecodeRow& row) { row.name += " page " + std::to_string(size), row.page_size = size; });
    for (const int32_t size : {16, 1})
        add(equal("b1 1k", 1, kKeys),
            [size](DecodeRow& row) { row.name += " page " + std::to_string(size), row.page_size = size; });
    return rows;
}

}  // namespace foveal_bench
