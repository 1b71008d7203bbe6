// src/problem/mask.hpp against contract 1.3 by brute force: every small shape, window and tiling.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "problem/mask.hpp"
#include "sm90/scores/mask.hpp"

namespace foveal {
namespace {

constexpr int32_t kWidths[] = {0, 1, 2, 5, kUnlimitedWidth};
constexpr int32_t kChunks[] = {0, 1, 3, 4, 20, kUnlimitedWidth};
constexpr int32_t kMaxLengthQ = 9;
constexpr int32_t kMaxLengthK = 13;

// The contract's own words, in 64 bits.
bool is_visible(Window window, int64_t len_q, int64_t len_k, int64_t i, int64_t j) {
    const int64_t off = window.top_left ? 0 : len_k - len_q;
    const bool left_ok = window.left == kUnlimitedWidth || i + off - window.left <= j;
    const bool right_ok = window.right == kUnlimitedWidth || j <= i + off + window.right;
    // Floored: a position before the first key lies in a chunk of its own kind.
    const int64_t chunk = window.chunk;
    const bool chunk_ok = chunk == 0 || (i + off >= 0 && (i + off) / chunk == j / chunk);
    return 0 <= j && j < len_k && left_ok && right_ok && chunk_ok;
}

struct Shape {
    Window window;
    int32_t len_q, len_k;

    std::string text() const {
        return "left " + std::to_string(window.left) + " right " + std::to_string(window.right) + " top_left " +
               std::to_string(window.top_left) + " chunk " + std::to_string(window.chunk) + " len_q " +
               std::to_string(len_q) + " len_k " + std::to_string(len_k);
    }
    bool sees(int32_t i, int32_t j) const { return is_visible(window, len_q, len_k, i, j); }
};

std::vector<Shape> small_shapes() {
    std::vector<Shape> shapes;
    for (const bool top_left : {false, true}) {
        for (const int32_t left : kWidths) {
            for (const int32_t right : kWidths) {
                for (const int32_t chunk : kChunks) {
                    for (int32_t len_q = 1; len_q <= kMaxLengthQ; ++len_q) {
                        for (int32_t len_k = 0; len_k <= kMaxLengthK; ++len_k) {
                            shapes.push_back({{left, right, top_left, chunk}, len_q, len_k});
                        }
                    }
                }
            }
        }
    }
    return shapes;
}

TEST(Mask, VisibleKeysAreThoseOfTheContract) {
    for (const Shape& shape : small_shapes()) {
        const Band band = band_of(shape.window, shape.len_q, shape.len_k);
        for (int32_t i = 0; i < shape.len_q; ++i) {
            const Range keys = visible_keys(band, i);
            for (int32_t j = 0; j < shape.len_k; ++j) {
                ASSERT_EQ(keys.contains(j), shape.sees(i, j)) << shape.text() << " i " << i << " j " << j;
            }
            ASSERT_TRUE(keys.size() == 0 || (keys.begin >= 0 && keys.end <= shape.len_k)) << shape.text() << " i " << i;
        }
    }
}

TEST(Mask, SeenKeysAreThoseThatSomeRowSees) {
    for (const Shape& shape : small_shapes()) {
        const Range keys = seen_keys(band_of(shape.window, shape.len_q, shape.len_k), shape.len_q);
        for (int32_t j = 0; j < shape.len_k; ++j) {
            bool seen = false;
            for (int32_t i = 0; i < shape.len_q; ++i) seen |= shape.sees(i, j);
            ASSERT_EQ(keys.contains(j), seen) << shape.text() << " j " << j;
        }
    }
}

// What a tile of rows sees of a block of keys.
enum class Sight { kNothing, kSome, kEverything };

Sight sight_of(const Shape& shape, Range rows, int32_t block_index, int32_t block) {
    int32_t pairs = 0;
    for (int32_t i = rows.begin; i < rows.end; ++i) {
        for (int32_t j = block_index * block; j < (block_index + 1) * block; ++j) pairs += shape.sees(i, j);
    }
    return pairs == 0 ? Sight::kNothing : pairs == rows.size() * block ? Sight::kEverything : Sight::kSome;
}

void expect_exact_blocks(const Shape& shape, Range rows, int32_t block) {
    const Band band = band_of(shape.window, shape.len_q, shape.len_k);
    const BlockRange range = kv_range(band, rows, block);
    const std::string text = shape.text() + " rows " + std::to_string(rows.begin) + ".." + std::to_string(rows.end) +
                             " block " + std::to_string(block);
    ASSERT_LE(range.visit.begin, range.unmasked.begin) << text;
    ASSERT_LE(range.unmasked.begin, range.unmasked.end) << text;
    ASSERT_LE(range.unmasked.end, range.visit.end) << text;
    const int32_t blocks = (shape.len_k + block - 1) / block;
    for (int32_t n = 0; n < blocks + 2; ++n) {
        const Sight sight = sight_of(shape, rows, n, block);
        ASSERT_EQ(range.visit.contains(n), sight != Sight::kNothing) << text << " block index " << n;
        ASSERT_EQ(range.unmasked.contains(n), sight == Sight::kEverything) << text << " block index " << n;
    }
}

TEST(Mask, TilesVisitExactlyTheBlocksThatTheySee) {
    for (const Shape& shape : small_shapes()) {
        for (const int32_t block : {1, 2, 3, 4, 8}) {
            for (const int32_t tile : {1, 2, 3, 8}) {
                for (int32_t begin = 0; begin < shape.len_q; begin += tile) {
                    expect_exact_blocks(shape, {begin, min_i32(begin + tile, shape.len_q)}, block);
                    if (HasFatalFailure()) return;
                }
            }
        }
    }
}

// The real tiles, at lengths around their edges.
void expect_exact_tiles(const Shape& shape) {
    for (const int32_t tile : {64, 128, 192}) {
        for (int32_t begin = 0; begin < shape.len_q; begin += tile) {
            for (const int32_t block : {64, 128}) {
                expect_exact_blocks(shape, {begin, min_i32(begin + tile, shape.len_q)}, block);
            }
        }
    }
}

TEST(Mask, TilesOfTheKernels) {
    for (const bool top_left : {false, true}) {
        for (const auto& [right, chunk] : {std::pair{0, 0}, {kUnlimitedWidth, 0}, {0, 64}, {kUnlimitedWidth, 100}}) {
            for (const int32_t len_q : {1, 63, 64, 65, 127, 128, 129, 200, 257}) {
                for (const int32_t len_k : {0, 1, 63, 64, 65, 127, 128, 129, 300}) {
                    expect_exact_tiles({{kUnlimitedWidth, right, top_left, chunk}, len_q, len_k});
                    if (HasFatalFailure()) return;
                }
            }
        }
    }
}

// No 32-bit sum overflows at the largest lengths and widths that validate() lets through.
void expect_exact_corners(const Shape& shape) {
    const Band band = band_of(shape.window, shape.len_q, shape.len_k);
    for (const int32_t i : {0, shape.len_q / 2, shape.len_q - 1}) {
        for (const int32_t j : {0, shape.len_k / 2, shape.len_k - 1}) {
            ASSERT_EQ(visible_keys(band, i).contains(j), shape.sees(i, j)) << shape.text() << " i " << i << " j " << j;
        }
    }
}

TEST(Mask, LargestLengthsAndWidths) {
    constexpr int32_t kLongest = kMaxSequenceLength;
    for (const bool top_left : {false, true}) {
        for (const int32_t left : {0, kUnlimitedWidth - 1, kUnlimitedWidth}) {
            for (const int32_t right : {0, kUnlimitedWidth - 1, kUnlimitedWidth}) {
                for (const int32_t chunk : {0, 1, kLongest / 2, kUnlimitedWidth}) {
                    for (const auto& [len_q, len_k] : {std::pair{kLongest, kLongest}, {1, kLongest}, {kLongest, 1}}) {
                        expect_exact_corners({{left, right, top_left, chunk}, len_q, len_k});
                    }
                }
            }
        }
    }
}

// The bit mask of a thread against the same words, for the columns that the thread's accumulators hold.
void expect_exact_positions(const Shape& shape, int32_t row, int32_t first_key, int32_t block) {
    const Band band = band_of(shape.window, shape.len_q, shape.len_k);
    for (int32_t lane = 0; lane < 32; ++lane) {
        const uint32_t visible = sm90::visible_positions(band, row, first_key, lane);
        for (int32_t position = 0; position < block / 4; ++position) {
            const int32_t column = 8 * (position / 2) + 2 * (lane % 4) + position % 2;
            ASSERT_EQ((visible >> position & 1) != 0, shape.sees(row, first_key + column))
                << shape.text() << " row " << row << " first_key " << first_key << " lane " << lane << " position "
                << position;
        }
    }
}

void expect_exact_threads(const Shape& shape) {
    for (int32_t row = 0; row < shape.len_q; row += 1 + shape.len_q / 40) {
        for (const int32_t block : {64, 128}) {
            for (int32_t first = 0; first < shape.len_k; first += block) {
                expect_exact_positions(shape, row, first, block);
            }
        }
    }
}

TEST(Mask, PositionsOfAThread) {
    for (const bool top_left : {false, true}) {
        for (const int32_t left : {0, 3, 70, kUnlimitedWidth}) {
            for (const int32_t right : {0, 5, 64, kUnlimitedWidth}) {
                for (const int32_t chunk : {0, 50}) {
                    for (const auto& [len_q, len_k] : {std::pair{1, 1}, {1, 300}, {130, 257}, {257, 130}, {200, 64}}) {
                        expect_exact_threads({{left, right, top_left, chunk}, len_q, len_k});
                        if (HasFatalFailure()) return;
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace foveal
