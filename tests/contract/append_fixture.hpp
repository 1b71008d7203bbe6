// An append drawn at random, its tensors on either backend, and what the caches and q_out must hold afterwards.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {

struct AppendCase {
    enum class Target { kSlots, kPages, kDenseCache };
    enum class Layout { kPacked, kHeadsFirst, kOdd };

    foveal_dtype dtype = FOVEAL_BF16, cache_dtype = FOVEAL_BF16, angle_dtype = FOVEAL_F32;
    Target target = Target::kSlots;
    Layout layout = Layout::kPacked;
    bool ragged = true, has_q = true, has_k = true, has_v = true, interleaved = false, in_place = false;
    bool positions_are_i64 = false, table_is_u32 = false;
    int64_t batch = 3, rows = 5, page_size = 16, pages = 23, heads_k = 2, heads_q = 4, d = 64, d_v = 64, rot = 64;
    int positions = 1;  // 0: the row's number as a key
    int scales = 0;     // 1: one for all heads; 2: one a head; 3: one a head, worked out; 4: of each row, worked out
    uint32_t seed = 1;

    bool turns() const { return rot > 0; }
    bool works_out_scales() const { return scales >= 3; }
    int64_t max_pages() const { return batch > 0 ? (pages - 1) / batch : 1; }  // of a sequence
    std::string text() const;
};

AppendCase draw_append_case(uint32_t seed);

// A row's place as the contract says it; page -1: not written.
struct ExpectedPlace {
    int64_t page, row, position;
};

class AppendData {
   public:
    AppendData(foveal_backend backend, const AppendCase& c);

    foveal::AppendOptions options();
    // Empty if the caches and q_out hold, byte for byte, what they must.
    std::string differences();

   private:
    struct Rows {
        std::vector<float> values;  // [all rows][heads][d]
        std::optional<StridedTensor> from, to;
        std::vector<float> expected;  // of `to`, row-major; poison where nothing is written
        std::vector<float> scale;     // of each row: [pages][page_size][heads], poison where nothing is written
        std::optional<StridedTensor> scale_tensor;
    };

    void draw_places();
    void draw_lengths();
    void draw_angles();
    void draw_rows(Rows& rows, int64_t heads, int64_t d, bool in_cache, bool turns);
    std::vector<float> turned(const Rows& rows, int64_t row, int64_t head, int64_t d, bool turns) const;
    std::vector<float> changed(const Rows& rows, int64_t row, int64_t head, int64_t d, bool turns) const;
    void draw_scales(Rows& rows, int64_t heads, int64_t d, bool turns);
    size_t scale_index(int64_t row, int64_t head, int64_t heads) const;
    Shape row_shape(int64_t heads, int64_t d) const;
    Shape strides_of(const Shape& shape) const;
    StridedTensor integers(foveal_dtype dtype, const Shape& shape, const std::vector<int64_t>& values);

    foveal_backend backend_;
    AppendCase c_;
    std::mt19937 random_;
    int64_t all_rows_;
    std::vector<ExpectedPlace> places_;  // [all rows]
    std::vector<float> cos_, sin_;       // [positions][rot / 2]
    std::vector<int64_t> ends_, lengths_, table_;
    Rows k_, v_, q_;
    std::optional<StridedTensor> slots_, length_tensor_, ends_tensor_, table_tensor_, cos_tensor_, sin_tensor_,
        position_tensor_;
};

// An append that is right until `spoil` has changed it is refused on the CPU, having written nothing; the message holds
// all the words.
void expect_refused(const AppendCase& c, const std::vector<std::string>& words,
                    const std::function<void(foveal::AppendOptions&)>& spoil);

}  // namespace foveal_testing
