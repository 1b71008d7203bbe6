// Built without contraction of a product and a sum into one operation (CMakeLists.txt): foveal.h rounds each for
// itself, so that both backends write the same bits.
#include "cpu/append.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/append.cpp"
#include <hwy/aligned_allocator.h>
#include <hwy/foreach_target.h>

#include "cpu/convert.hpp"
#include "cpu/ends.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"
#include "problem/mask.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

// Memory for one row as fp32, and for its angles.
struct Scratch {
    hwy::AlignedFreeUniquePtr<float[]> row, cos, sin;

    Scratch(int64_t head_dim, int64_t angles)
        : row(hwy::AllocateAligned<float>(whole_vectors(head_dim))),
          cos(hwy::AllocateAligned<float>(whole_vectors(angles))),
          sin(hwy::AllocateAligned<float>(whole_vectors(angles))) {
        if (!row || !cos || !sin) throw std::bad_alloc();
    }

   private:
    static size_t whole_vectors(int64_t n) { return static_cast<size_t>((n / lanes() + 1) * lanes()); }
};

const std::byte* at(const void* tensor, int64_t elements, DType dtype) {
    return static_cast<const std::byte*>(tensor) + elements * bytes_of(dtype);
}

// Pairs (row[i * step], row[i * step + distance]) turn by angle i.
void turn(float* row, int64_t pairs, int64_t step, int64_t distance, const float* cos, const float* sin) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float x = row[i * step], y = row[i * step + distance];
        row[i * step] = x * cos[i] - y * sin[i];
        row[i * step + distance] = y * cos[i] + x * sin[i];
    }
}

// NaN and infinities aside.
float largest_magnitude(const float* row, int64_t size) {
    float largest = 0;
    for (int64_t i = 0; i < size; ++i) {
        const float magnitude = std::fabs(row[i]);
        if (magnitude <= std::numeric_limits<float>::max()) largest = std::max(largest, magnitude);
    }
    return largest;
}

class RowWriter {
   public:
    RowWriter(const Append& append, const AppendedRows& rows)
        : append_(append),
          rows_(rows),
          scratch_(rows.head_dim, append.rotary.dim / 2),
          load_(row_loader(append.dtype)),
          load_angles_(row_loader(append.rotary.dtype)),
          store_(row_storer(rows.to_dtype)) {}

    // Row `row` of [b, rows] at `outer`.
    void write(int64_t outer, int64_t row) {
        const AppendPlace place = append_.places.of(outer, row);
        if (rows_.in_cache && place.page < 0) return;
        const Strides& to = rows_.to_stride;
        const int64_t target =
            rows_.in_cache ? place.page * to.batch + place.row * to.row : outer * to.batch + row * to.row;
        for_heads(outer, row, place, [&](int64_t head) {
            if (rows_.scale != nullptr || rows_.scales_rows) divide(scale_of(place, head));
            store_(scratch_.row.get(), rows_.head_dim,
                   const_cast<std::byte*>(at(rows_.to, target + head * to.head, rows_.to_dtype)));
        });
    }

    // largest: [heads], of the rows before; becomes that of this row too.
    void measure(int64_t outer, int64_t row, float* largest) {
        const AppendPlace place = append_.places.of(outer, row);
        if (place.page < 0) return;
        for_heads(outer, row, place, [&](int64_t head) {
            largest[head] = std::max(largest[head], largest_magnitude(scratch_.row.get(), rows_.head_dim));
        });
    }

   private:
    // Calls use(head) with the head's row, turned, in the scratch.
    template <class Use>
    void for_heads(int64_t outer, int64_t row, const AppendPlace& place, const Use& use) {
        if (rows_.turns) load_angles(place.position);
        const Strides& from = rows_.from_stride;
        for (int64_t head = 0; head < rows_.heads; ++head) {
            load_(at(rows_.from, outer * from.batch + row * from.row + head * from.head, append_.dtype), rows_.head_dim,
                  scratch_.row.get());
            if (rows_.turns) turn_row();
            use(head);
        }
    }

    void load_angles(int64_t position) {
        const Rotary& rotary = append_.rotary;
        load_angles_(at(rotary.cos, position * rotary.cos_stride, rotary.dtype), rotary.dim / 2, scratch_.cos.get());
        load_angles_(at(rotary.sin, position * rotary.sin_stride, rotary.dtype), rotary.dim / 2, scratch_.sin.get());
    }

    void turn_row() {
        const int64_t pairs = append_.rotary.dim / 2;
        const bool interleaved = append_.rotary.interleaved;
        turn(scratch_.row.get(), pairs, interleaved ? 2 : 1, interleaved ? 1 : pairs, scratch_.cos.get(),
             scratch_.sin.get());
    }

    // That is given, or that of this row, which is written to its place.
    float scale_of(const AppendPlace& place, int64_t head) const {
        if (!rows_.scales_rows) return rows_.scale[head * rows_.scale_stride];
        const Strides& to = rows_.scale_out_stride;
        const float scale = e4m3_scale_of(largest_magnitude(scratch_.row.get(), rows_.head_dim));
        rows_.scale_out[place.page * to.batch + place.row * to.row + head * to.head] = scale;
        return scale;
    }

    void divide(float scale) {
        float* const row = scratch_.row.get();
        for (int64_t i = 0; i < rows_.head_dim; ++i) row[i] /= scale;
    }

    const Append& append_;
    const AppendedRows& rows_;
    Scratch scratch_;
    LoadRow load_, load_angles_;
    StoreRow store_;
};

// Rows [begin, end), numbered through.
void AppendRows(const Append& append, int64_t begin, int64_t end) {
    for (const AppendedRows& rows : append.rows) {
        if (!rows.present()) continue;
        RowWriter writer(append, rows);
        for (int64_t i = begin; i < end; ++i) writer.write(i / append.places.rows, i % append.places.rows);
    }
}

// The largest magnitudes of rows [begin, end) of one of k and v, head by head.
void MeasureRows(const Append& append, const AppendedRows& rows, int64_t begin, int64_t end, float* largest) {
    RowWriter writer(append, rows);
    for (int64_t i = begin; i < end; ++i) writer.measure(i / append.places.rows, i % append.places.rows, largest);
}

}  // namespace
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foveal::cpu {
namespace {

HWY_EXPORT(AppendRows);
HWY_EXPORT(MeasureRows);

// Elements below which waking another thread costs more than it helps, as in merge.cpp.
constexpr int64_t kSerialElements = 1 << 17;
// ... and how many a thread takes at once.
constexpr int64_t kElementsATime = 1 << 16;

[[noreturn]] void refuse(const std::string& entry, int64_t value, const std::string& why) {
    throw Error(FOVEAL_INVALID_ARGUMENT, entry + " is " + std::to_string(value) + "; " + why);
}

std::string below(int64_t end) { return "it must be 0 to " + std::to_string(end - 1); }

// What lies behind cache_lengths must have pages for the new rows.
void check_sequences(const Append& append) {
    const AppendPlaces& places = append.places;
    if (places.cache_lengths == nullptr) return;
    const bool in_cache = append.rows[0].present() || append.rows[1].present();
    for (int64_t i = 0; i < places.batch; ++i) {
        const int64_t length = places.cache_lengths[i], rows = places.cu_seqlens == nullptr
                                                                   ? places.rows
                                                                   : places.cu_seqlens[i + 1] - places.cu_seqlens[i];
        const std::string name = "cache_lengths[" + std::to_string(i) + "]";
        if (length < 0) refuse(name, length, "a length is not negative");
        const int64_t room = append.max_pages < kMaxSequenceLength / places.page_size
                                 ? append.max_pages * places.page_size
                                 : kMaxSequenceLength;
        if (!in_cache || rows == 0) continue;
        if (length + rows > room)
            refuse(name, length,
                   "with " + std::to_string(rows) + " new rows the sequence has no room in " +
                       std::to_string(append.max_pages) + " pages of " + std::to_string(places.page_size) + " rows");
        if (places.block_table == nullptr) continue;
        for (int64_t page = length / places.page_size; page <= (length + rows - 1) / places.page_size; ++page) {
            const int64_t entry = places.block_table[i * places.table_stride + page];
            if (entry >= append.pages)
                refuse("block_table[" + std::to_string(i) + ", " + std::to_string(page) + "]", entry,
                       below(append.pages));
        }
    }
}

// x / 0 would make NaN of a zero, and the range of e4m3 is for the scale to be chosen.
void check_scales(const Append& append) {
    for (size_t n = 0; n < 2; ++n) {
        const AppendedRows& rows = append.rows[n];
        if (!rows.present() || rows.scale == nullptr || rows.to_dtype != DType::e4m3) continue;
        const int64_t scales = rows.scale_stride == 0 ? std::min<int64_t>(rows.heads, 1) : rows.heads;
        for (int64_t i = 0; i < scales; ++i) {
            const float scale = rows.scale[i * rows.scale_stride];
            if (!(scale > 0) || std::isinf(scale))
                throw Error(FOVEAL_INVALID_ARGUMENT, std::string(n == 0 ? "k_scale[" : "v_scale[") + std::to_string(i) +
                                                         "] is " + std::to_string(scale) +
                                                         "; beside a cache of e4m3 a scale is positive and finite");
        }
    }
}

void check_rows(const Append& append) {
    const AppendPlaces& places = append.places;
    const bool turns = append.rotary.dim > 0, has_q = append.rows[2].present();
    if (places.slot_mapping == nullptr && !turns) return;
    for (int64_t i = 0; i < append.all_rows(); ++i) {
        const int64_t outer = i / places.rows, row = i % places.rows;
        const AppendPlace place = places.of(outer, row);
        const std::string entry = "[" + std::to_string(i) + "]";
        if (places.slot_mapping != nullptr && place.page >= append.pages)
            refuse("slot_mapping" + entry, places.slot_mapping[outer * places.slot_batch_stride + row],
                   below(append.pages * places.page_size));
        const bool is_used = has_q || place.page >= 0;
        if (turns && is_used && (place.position < 0 || place.position >= append.rotary.positions))
            refuse((places.positions != nullptr ? "positions" : "the position of row ") + entry, place.position,
                   below(append.rotary.positions) + ", as cos.shape[0] is " + std::to_string(append.rotary.positions));
    }
}

// The rows, some at a time.
class Chunks {
   public:
    explicit Chunks(const Append& append) : rows_(append.all_rows()) {
        int64_t row_elements = 0;
        for (const AppendedRows& rows : append.rows) row_elements += rows.heads * rows.head_dim;
        if (rows_ == 0 || row_elements == 0) return;
        rows_a_time_ = std::max<int64_t>(kElementsATime / row_elements, 1);
        count_ = (rows_ + rows_a_time_ - 1) / rows_a_time_;
        const bool serial = static_cast<double>(rows_) * static_cast<double>(row_elements) < kSerialElements;
        const int threads = thread_count_for(serial);
        threads_ = serial ? 1 : threads;
    }

    int64_t count() const { return count_; }
    // Calls run(chunk, its first row, its end), of several threads.
    template <class Run>
    void for_each(const Run& run) const {
        parallel_for(count_, threads_,
                     [&](int64_t i) { run(i, i * rows_a_time_, std::min((i + 1) * rows_a_time_, rows_)); });
    }

   private:
    int64_t rows_, rows_a_time_ = 1, count_ = 0;
    int threads_ = 1;
};

// A scale for all rows of a head is known when all have been looked at.
void work_out_scale(const Append& append, const Chunks& chunks, AppendedRows& rows) {
    if (rows.scale_out == nullptr || rows.scales_rows) return;
    const auto heads = static_cast<size_t>(rows.heads);
    std::vector<float> largest(static_cast<size_t>(chunks.count()) * heads);  // [chunks, heads]
    if (rows.present())
        chunks.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
            HWY_DYNAMIC_DISPATCH(MeasureRows)
            (append, rows, begin, end, largest.data() + static_cast<size_t>(chunk) * heads);
        });
    rows.scale = rows.scale_out;
    rows.scale_stride = rows.scale_out_stride.head;
    for (size_t head = 0; head < heads; ++head) {
        float of_all = 0;
        for (size_t i = head; i < largest.size(); i += heads) of_all = std::max(of_all, largest[i]);
        rows.scale_out[static_cast<int64_t>(head) * rows.scale_stride] = e4m3_scale_of(of_all);
    }
}

}  // namespace

void append(const Append& append) {
    const AppendPlaces& places = append.places;
    if (append.all_rows() > 0) {
        check_ends(places.cu_seqlens, places.batch, places.rows, "cu_seqlens", "the number of new rows");
        check_sequences(append);
        check_rows(append);
        check_scales(append);
    }
    const Chunks chunks(append);
    Append scaled = append;
    for (size_t n = 0; n < 2; ++n) work_out_scale(append, chunks, scaled.rows[n]);
    chunks.for_each([&](int64_t, int64_t begin, int64_t end) { HWY_DYNAMIC_DISPATCH(AppendRows)(scaled, begin, end); });
}

}  // namespace foveal::cpu
#endif
