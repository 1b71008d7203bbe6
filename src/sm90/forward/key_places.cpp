#include "sm90/forward/key_places.hpp"

#include <numeric>

namespace foveal::sm90 {

int32_t box_rows_of(const ForwardProblem& p, int32_t block) {
    if (p.keys_dtype == DType::e4m3) return 0;
    if (p.keys != KeyForm::paged) return block;
    const int32_t rows = std::gcd(p.page_size, block);
    return rows >= kLeastBoxRows ? rows : 0;
}

KeyPlaces key_places_of(const ForwardProblem& p, int32_t block) {
    const auto gathered = [](const Strides& strides, int64_t columns) {
        return GatheredRows{nullptr, strides.batch, strides.row, strides.head, static_cast<int32_t>(columns)};
    };
    KeyPlaces places{};
    places.in_pages = p.keys == KeyForm::paged;
    places.dense = p.keys == KeyForm::dense;
    places.box_rows = box_rows_of(p, block);
    if (places.box_rows > 0) places.boxes = block / places.box_rows;
    if (places.in_pages) places.by_page_size = Divisor(p.page_size);
    places.k = gathered(p.k, p.head_dim);
    places.v = gathered(p.v, p.head_dim_v);
    places.query_offset_stride = p.query_offset_stride;
    places.tree = {nullptr, p.tree.batch, p.tree.row, static_cast<int32_t>(p.tree_words)};
    return places;
}

}  // namespace foveal::sm90
