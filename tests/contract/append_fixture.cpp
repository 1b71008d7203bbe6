// Built without contraction, as the library's own append is: the contract rounds every operation for itself.
#include "tests/contract/append_fixture.hpp"

#include <algorithm>
#include <numeric>

namespace foveal_testing {
namespace {

constexpr int64_t kPositions = 400;

template <class T>
T pick(std::mt19937& random, std::initializer_list<T> values) {
    return *(values.begin() + random() % values.size());
}

float poison(foveal_dtype dtype) {
    if (dtype == FOVEAL_F32) return std::bit_cast<float>(kPoison32);
    if (dtype == FOVEAL_E4M3) return NAN;
    return dtype == FOVEAL_BF16 ? bf16_to_float(kPoison16) : f16_to_float(kPoison16);
}

}  // namespace

std::string AppendCase::text() const {
    std::ostringstream out;
    out << "append seed" << seed << ": dtype " << dtype << " cache " << cache_dtype << " angles " << angle_dtype
        << " target " << static_cast<int>(target) << " layout " << static_cast<int>(layout) << (ragged ? " ragged" : "")
        << (has_k ? " k" : "") << (has_v ? " v" : "") << (has_q ? " q" : "") << (in_place ? " in place" : "")
        << (interleaved ? " interleaved" : "") << " b" << batch << " rows" << rows << " page" << page_size << " pages"
        << pages << " hk" << heads_k << " hq" << heads_q << " d" << d << " dv" << d_v << " rot" << rot << " positions"
        << positions << (positions_are_i64 ? " i64" : "") << " scales" << scales;
    return out.str();
}

AppendCase draw_append_case(uint32_t seed) {
    std::mt19937 random(seed);
    AppendCase c;
    c.seed = seed;
    c.dtype = pick(random, {FOVEAL_BF16, FOVEAL_F16, FOVEAL_F32});
    c.cache_dtype = random() % 2 == 0 ? c.dtype : pick(random, {FOVEAL_BF16, FOVEAL_F16, FOVEAL_F32});
    c.angle_dtype = random() % 2 == 0 ? FOVEAL_F32 : c.dtype;
    c.target = pick(random, {AppendCase::Target::kSlots, AppendCase::Target::kPages, AppendCase::Target::kDenseCache});
    c.layout = pick(random, {AppendCase::Layout::kPacked, AppendCase::Layout::kHeadsFirst, AppendCase::Layout::kOdd});
    c.ragged = random() % 2 == 0;
    c.interleaved = random() % 2 == 0;
    c.batch = pick<int64_t>(random, {1, 2, 3, 7});
    c.rows = pick<int64_t>(random, {0, 1, 1, 2, 5, 13});
    c.page_size = c.target == AppendCase::Target::kDenseCache ? 120 : pick<int64_t>(random, {1, 7, 8, 16, 48, 64, 128});
    c.pages = c.target == AppendCase::Target::kDenseCache ? c.batch + 1
              : c.page_size == 1                          ? 800
              : c.page_size < 48                          ? 120
                                                          : 24;
    c.heads_k = pick<int64_t>(random, {1, 2, 3, 8});
    c.heads_q = c.heads_k * pick<int64_t>(random, {1, 2, 5});
    c.d = pick<int64_t>(random, {8, 20, 64, 128, 192});
    c.d_v = random() % 2 == 0 ? c.d : pick<int64_t>(random, {16, 30, 256});
    c.rot = random() % 4 == 0 ? 0 : random() % 2 == 0 ? c.d / 4 * 2 : c.d;
    c.has_q = c.rot > 0 && random() % 3 != 0;
    c.has_k = random() % 8 != 0 || (c.rot > 0 && !c.has_q);
    c.has_v = random() % 8 != 0 || (!c.has_k && !c.has_q);
    c.in_place = random() % 3 == 0;
    c.positions = !c.turns() ? 0 : c.target == AppendCase::Target::kSlots ? 1 : random() % 2;
    c.positions_are_i64 = random() % 2 == 0;
    c.table_is_u32 = random() % 2 == 0;
    c.scales = static_cast<int>(random() % 3);
    return c;
}

AppendData::AppendData(foveal_backend backend, const AppendCase& c)
    : backend_(backend), c_(c), random_(c.seed), all_rows_(c.batch * c.rows) {
    draw_lengths();
    draw_places();
    draw_angles();
    if (c.has_k) draw_rows(k_, c.heads_k, c.d, true, c.turns());
    if (c.has_v) draw_rows(v_, c.heads_k, c.d_v, true, false);
    if (c.has_q) draw_rows(q_, c.heads_q, c.d, false, c.turns());
}

StridedTensor AppendData::integers(foveal_dtype dtype, const Shape& shape, const std::vector<int64_t>& values) {
    StridedTensor tensor(backend_, dtype, shape);
    tensor.set({values.begin(), values.end()});
    return tensor;
}

Shape AppendData::row_shape(int64_t heads, int64_t d) const {
    return c_.ragged ? Shape{all_rows_, heads, d} : Shape{c_.batch, c_.rows, heads, d};
}

Shape AppendData::strides_of(const Shape& shape) const {
    if (c_.layout == AppendCase::Layout::kPacked) return packed_strides(shape);
    if (c_.layout == AppendCase::Layout::kOdd) return packed_strides(shape, 1);
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::swap(order[shape.size() - 3], order[shape.size() - 2]);
    return strides_in_order(shape, order, 8);
}

// Lengths of the cache before, ends of the sequences, and pages of their own for each.
void AppendData::draw_lengths() {
    const int64_t max_length = c_.target == AppendCase::Target::kDenseCache ? c_.page_size - all_rows_ : 20;
    for (int64_t i = 0; i < c_.batch; ++i)
        lengths_.push_back(max_length > 0 ? static_cast<int64_t>(random_() % static_cast<uint32_t>(max_length)) : 0);
    ends_ = {0};
    for (int64_t i = 1; i < c_.batch; ++i)
        ends_.push_back(c_.ragged ? static_cast<int64_t>(random_() % static_cast<uint32_t>(all_rows_ + 1))
                                  : i * c_.rows);
    ends_.push_back(all_rows_);
    std::sort(ends_.begin(), ends_.end());
    table_.resize(static_cast<size_t>(c_.batch * c_.max_pages()));
    std::iota(table_.begin(), table_.end(), 1);
    std::shuffle(table_.begin(), table_.end(), random_);
    if (c_.target == AppendCase::Target::kSlots) return;
    length_tensor_.emplace(integers(FOVEAL_I32, {c_.batch}, lengths_));
    if (c_.ragged) ends_tensor_.emplace(integers(FOVEAL_I32, {c_.batch + 1}, ends_));
    if (c_.target == AppendCase::Target::kPages)
        table_tensor_.emplace(integers(c_.table_is_u32 ? FOVEAL_U32 : FOVEAL_I32, {c_.batch, c_.max_pages()}, table_));
}

void AppendData::draw_places() {
    std::vector<int64_t> free_slots(static_cast<size_t>(c_.pages * c_.page_size)), slots, positions;
    std::iota(free_slots.begin(), free_slots.end(), 0);
    std::shuffle(free_slots.begin(), free_slots.end(), random_);
    for (int64_t i = 0; i < all_rows_; ++i) {
        const auto sequence = std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin() - 1;
        const int64_t key = lengths_[static_cast<size_t>(sequence)] + i - ends_[static_cast<size_t>(sequence)];
        ExpectedPlace place{sequence, key, key};
        if (c_.target == AppendCase::Target::kSlots) {
            slots.push_back(random_() % 5 == 0 ? -1 : free_slots[static_cast<size_t>(i)]);
            place = {slots.back() < 0 ? -1 : slots.back() / c_.page_size, slots.back() % c_.page_size, 0};
        } else if (c_.target == AppendCase::Target::kPages) {
            place.page = table_[static_cast<size_t>(sequence * c_.max_pages() + key / c_.page_size)];
            place.row = key % c_.page_size;
        }
        positions.push_back(static_cast<int64_t>(random_() % kPositions));
        if (c_.positions != 0) place.position = positions.back();
        places_.push_back(place);
    }
    const Shape numbers = c_.ragged ? Shape{all_rows_} : Shape{c_.batch, c_.rows};
    if (c_.target == AppendCase::Target::kSlots) slots_.emplace(integers(FOVEAL_I64, numbers, slots));
    if (c_.positions != 0)
        position_tensor_.emplace(integers(c_.positions_are_i64 ? FOVEAL_I64 : FOVEAL_I32, numbers, positions));
}

void AppendData::draw_angles() {
    if (!c_.turns()) return;
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kPositions * c_.rot / 2; ++i) {
        cos_.push_back(round_to(c_.angle_dtype, normal(random_)));
        sin_.push_back(round_to(c_.angle_dtype, normal(random_)));
    }
    const Shape shape{kPositions, c_.rot / 2};
    const int64_t padding = c_.layout == AppendCase::Layout::kOdd ? 1 : 0;
    cos_tensor_.emplace(backend_, c_.angle_dtype, shape, packed_strides(shape, padding));
    sin_tensor_.emplace(backend_, c_.angle_dtype, shape, packed_strides(shape, padding));
    cos_tensor_->set(cos_);
    sin_tensor_->set(sin_);
}

std::vector<float> AppendData::turned(const Rows& rows, int64_t row, int64_t head, int64_t d, bool turns) const {
    const int64_t heads = static_cast<int64_t>(rows.values.size()) / (all_rows_ * d);
    const auto* from = rows.values.data() + (row * heads + head) * d;
    std::vector<float> x(from, from + d);
    const int64_t pairs = c_.rot / 2, position = places_[static_cast<size_t>(row)].position;
    for (int64_t i = 0; turns && i < pairs; ++i) {
        float &a = x[static_cast<size_t>(c_.interleaved ? 2 * i : i)],
              &b = x[static_cast<size_t>(c_.interleaved ? 2 * i + 1 : i + pairs)];
        const float cos = cos_[static_cast<size_t>(position * pairs + i)],
                    sin = sin_[static_cast<size_t>(position * pairs + i)];
        const float first = a * cos - b * sin;
        b = b * cos + a * sin;
        a = first;
    }
    return x;
}

size_t AppendData::scale_index(int64_t row, int64_t head, int64_t heads) const {
    if (c_.scales == 1) return 0;
    const ExpectedPlace& place = places_[static_cast<size_t>(row)];
    return static_cast<size_t>(c_.scales == 4 ? (place.page * c_.page_size + place.row) * heads + head : head);
}

std::vector<float> AppendData::changed(const Rows& rows, int64_t row, int64_t head, int64_t d, bool turns) const {
    std::vector<float> x = turned(rows, row, head, d, turns);
    const int64_t heads = static_cast<int64_t>(rows.values.size()) / (all_rows_ * d);
    if (!rows.scale.empty())
        for (float& element : x) element /= rows.scale[scale_index(row, head, heads)];
    return x;
}

void AppendData::draw_scales(Rows& rows, int64_t heads, int64_t d, bool turns) {
    if (c_.scales == 0) return;
    const Shape shape = c_.scales == 1   ? Shape{1}
                        : c_.scales == 4 ? Shape{c_.pages, c_.page_size, heads}
                                         : Shape{heads};
    for (int64_t i = 0; i < elements_of(shape); ++i) rows.scale.push_back(0.5f + 0.3f * float(i));
    rows.scale_tensor.emplace(backend_, FOVEAL_F32, shape, packed_strides(shape, c_.scales == 4 ? 3 : 0));
    if (!c_.works_out_scales()) return rows.scale_tensor->set(rows.scale);
    // The largest magnitudes first, and of what is not written nothing.
    std::fill(rows.scale.begin(), rows.scale.end(), c_.scales == 4 ? poison(FOVEAL_F32) : 0.0f);
    for (int64_t row = 0; row < all_rows_; ++row) {
        if (places_[static_cast<size_t>(row)].page < 0) continue;
        for (int64_t head = 0; head < heads; ++head) {
            float& largest = rows.scale[scale_index(row, head, heads)];
            if (c_.scales == 4) largest = 0;
            for (const float x : turned(rows, row, head, d, turns)) largest = std::max(largest, std::fabs(x));
            if (c_.scales == 4) largest = largest > 0 ? largest / 448 : 1;
        }
    }
    if (c_.scales == 3)
        for (float& scale : rows.scale) scale = scale > 0 ? scale / 448 : 1;
}

void AppendData::draw_rows(Rows& rows, int64_t heads, int64_t d, bool in_cache, bool turns) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < all_rows_ * heads * d; ++i) rows.values.push_back(round_to(c_.dtype, normal(random_)));
    const int64_t offset = c_.layout == AppendCase::Layout::kOdd ? 17 : 16;
    const Shape shape = row_shape(heads, d);
    rows.from.emplace(backend_, c_.dtype, shape, strides_of(shape), offset);
    rows.from->set(rows.values);
    if (in_cache) draw_scales(rows, heads, d, turns);
    const Shape to = in_cache ? Shape{c_.pages, c_.page_size, heads, d} : shape;
    const foveal_dtype dtype = in_cache ? c_.cache_dtype : c_.dtype;
    rows.to.emplace(backend_, dtype, to, strides_of(to), offset);
    rows.expected.assign(static_cast<size_t>(elements_of(to)), poison(dtype));
    for (int64_t i = 0; i < all_rows_; ++i) {
        const ExpectedPlace& place = places_[static_cast<size_t>(i)];
        if (in_cache && place.page < 0) continue;
        const int64_t row = in_cache ? place.page * c_.page_size + place.row : i;
        for (int64_t head = 0; head < heads; ++head) {
            const std::vector<float> x = changed(rows, i, head, d, turns);
            std::copy(x.begin(), x.end(), rows.expected.begin() + (row * heads + head) * d);
        }
    }
}

foveal::AppendOptions AppendData::options() {
    foveal::AppendOptions options;
    const auto view = [](std::optional<StridedTensor>& tensor) { return tensor ? tensor->view() : foveal::Tensor(); };
    options.k = view(k_.from), options.k_cache = view(k_.to);
    options.v = view(v_.from), options.v_cache = view(v_.to);
    (c_.works_out_scales() ? options.k_scale_out : options.k_scale) = view(k_.scale_tensor);
    (c_.works_out_scales() ? options.v_scale_out : options.v_scale) = view(v_.scale_tensor);
    options.q = view(q_.from), options.q_out = view(c_.in_place ? q_.from : q_.to);
    options.slot_mapping = view(slots_);
    options.cache_lengths = view(length_tensor_);
    options.cu_seqlens = view(ends_tensor_);
    options.block_table = view(table_tensor_);
    options.cos = view(cos_tensor_), options.sin = view(sin_tensor_);
    options.positions = view(position_tensor_);
    options.rotary_layout = c_.interleaved ? foveal::RotaryLayout::interleaved : foveal::RotaryLayout::half_split;
    options.backend = static_cast<foveal::Backend>(backend_);
    return options;
}

std::string AppendData::differences() {
    std::ostringstream found;
    const auto compare = [&](const char* name, const std::vector<float>& expected,
                             std::optional<StridedTensor>& written) {
        if (!written) return;
        StridedTensor& got = *written;
        const std::vector<std::byte> bytes = got.bytes();
        got.set(expected);  // rounds as the contract says, around it poison
        if (got.bytes() != bytes) found << name << " does not hold what it must; ";
    };
    compare("k_cache", k_.expected, k_.to);
    compare("v_cache", v_.expected, v_.to);
    compare("q_out", q_.expected, c_.in_place ? q_.from : q_.to);
    compare("k's scales", k_.scale, k_.scale_tensor);
    compare("v's scales", v_.scale, v_.scale_tensor);
    return found.str();
}

void expect_refused(const AppendCase& c, const std::vector<std::string>& words,
                    const std::function<void(foveal::AppendOptions&)>& spoil) {
    AppendData data(FOVEAL_BACKEND_CPU, c);
    foveal::append(data.options());
    ASSERT_EQ(data.differences(), "");  // sets what it must hold: an append that writes now is seen
    foveal::AppendOptions options = data.options();
    spoil(options);
    try {
        foveal::append(options);
        ADD_FAILURE() << "accepted: " << words[0];
    } catch (const foveal::Error& error) {
        EXPECT_EQ(error.status(), FOVEAL_INVALID_ARGUMENT) << error.what();
        for (const std::string& word : words)
            EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what() << " lacks " << word;
    }
    EXPECT_EQ(data.differences(), "") << words[0];
}

}  // namespace foveal_testing
