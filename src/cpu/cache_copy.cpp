#include "cpu/cache_copy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/ends.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

// Bytes below which waking another thread costs more than it helps: about 20 us of one core ...
constexpr int64_t kSerialBytes = 1 << 18;
// ... and how many a thread takes at once.
constexpr int64_t kBytesATime = 1 << 17;

std::string entry_of(const char* name, int64_t i, int64_t j) {
    return std::string(name) + "[" + std::to_string(i) + ", " + std::to_string(j) + "]";
}

[[noreturn]] void refuse(const std::string& entry, int64_t value, const std::string& why) {
    throw Error(FOVEAL_INVALID_ARGUMENT, entry + " is " + std::to_string(value) + "; " + why);
}

// Pages that are written are written once, and not read for another.
void check_pairs(const CacheCopy& copy) {
    const CopyPlaces& places = copy.places;
    const int64_t pairs = copy.rows / places.table.page_size;
    std::vector<int64_t> written;
    for (int64_t i = 0; i < pairs; ++i) {
        const int64_t from = places.page_of(i, 0), to = places.page_of(i, 1);
        for (const int64_t page : {from, to})
            if (page >= copy.pages)
                refuse(entry_of("pairs", i, page == from ? 0 : 1), page,
                       "the caches have " + std::to_string(copy.pages) + " pages");
        if (from >= 0 && to >= 0) written.push_back(to);
    }
    std::sort(written.begin(), written.end());
    for (int64_t i = 0; i < pairs; ++i) {
        const int64_t from = places.page_of(i, 0), to = places.page_of(i, 1);
        if (from < 0 || to < 0) continue;
        const auto [first, end] = std::equal_range(written.begin(), written.end(), to);
        if (end - first > 1) refuse(entry_of("pairs", i, 1), to, "another pair writes this page too");
        if (from != to && std::binary_search(written.begin(), written.end(), from))
            refuse(entry_of("pairs", i, 0), from, "another pair writes this page");
    }
}

void check_indptr(const CacheCopy& copy) {
    const int32_t* const ends = copy.places.table.indptr;
    if (ends == nullptr) return;
    if (ends[0] != 0) refuse_entry("page_indptr", 0, ends[0], "it must be 0");
    for (int64_t i = 1; i <= copy.places.batch; ++i)
        if (ends[i] < ends[i - 1] || ends[i] > copy.entries)
            refuse_entry("page_indptr", i, ends[i], range_of(ends[i - 1], copy.entries));
}

void check_pages(const CacheCopy& copy, int32_t sequence, int64_t keys) {
    const PageTable& table = copy.places.table;
    const int64_t first = table.indptr != nullptr ? table.indptr[sequence] : 0;
    const int64_t entries = table.indptr != nullptr ? table.indptr[sequence + 1] - first : copy.entries;
    const int64_t needed = (keys + table.page_size - 1) / table.page_size;
    if (needed > entries)
        refuse("sequence " + std::to_string(sequence) + " of cu_seqlens_k", keys,
               "so many rows have no room in its " + std::to_string(entries) + " pages of " +
                   std::to_string(table.page_size) + " rows");
    for (int64_t n = 0; n < needed; ++n) {
        const uint32_t page = table.of(sequence)[n];
        if (page < copy.pages) continue;
        const std::string entry = table.indptr != nullptr ? "page_indices[" + std::to_string(first + n) + "]"
                                                          : entry_of("block_table", sequence, n);
        refuse(entry, static_cast<int32_t>(page), "the caches have " + std::to_string(copy.pages) + " pages");
    }
}

void check_sequences(const CacheCopy& copy) {
    const Lengths& lengths = copy.places.lengths;
    check_ends(lengths.cu_seqlens, copy.places.batch, copy.rows, "cu_seqlens_k", "the number of rows");
    check_indptr(copy);
    for (int32_t i = 0; i < copy.places.batch; ++i) {
        const int32_t length = lengths.cu_seqlens[i + 1] - lengths.cu_seqlens[i];
        if (lengths.seqused != nullptr) {
            const int32_t used = lengths.seqused[i * lengths.seqused_stride];
            if (used < 0 || used > length) refuse_entry("seqused_k", i, used, range_of(0, length));
        }
        check_pages(copy, i, lengths.of_varlen(i).length);
    }
}

void copy_row(const CopiedRows& rows, const RowCopy& place, int64_t element_bytes) {
    if (!rows.present()) return;
    const Strides &from = rows.from_stride, &to = rows.to_stride;
    const auto* source = static_cast<const std::byte*>(rows.from) +
                         (place.from_page * from.batch + place.from_row * from.row) * element_bytes;
    auto* target =
        static_cast<std::byte*>(rows.to) + (place.to_page * to.batch + place.to_row * to.row) * element_bytes;
    if (source == target) return;  // a page to itself
    const auto head_bytes = static_cast<size_t>(rows.head_dim * element_bytes);
    if (from.head == rows.head_dim && to.head == rows.head_dim) {
        std::memcpy(target, source, head_bytes * static_cast<size_t>(rows.heads));
        return;
    }
    for (int64_t head = 0; head < rows.heads; ++head)
        std::memcpy(target + head * to.head * element_bytes, source + head * from.head * element_bytes, head_bytes);
}

}  // namespace

void copy_cache(const CacheCopy& copy) {
    copy.gathers ? check_sequences(copy) : check_pairs(copy);
    const int64_t element_bytes = bytes_of(copy.dtype);
    int64_t row_bytes = 0;
    for (const CopiedRows& rows : copy.streams)
        if (rows.present()) row_bytes += rows.heads * rows.head_dim * element_bytes;
    if (copy.rows == 0 || row_bytes == 0) return;
    const int64_t rows_a_time = std::max<int64_t>(kBytesATime / row_bytes, 1);
    const bool serial = static_cast<double>(copy.rows) * static_cast<double>(row_bytes) < kSerialBytes;
    const int threads = thread_count_for(serial);
    parallel_for((copy.rows + rows_a_time - 1) / rows_a_time, serial ? 1 : threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * rows_a_time, copy.rows);
        for (int64_t i = task * rows_a_time; i < end; ++i) {
            const RowCopy place = copy.places.of(i);
            if (place.from_page < 0) continue;
            for (const CopiedRows& rows : copy.streams) copy_row(rows, place, element_bytes);
        }
    });
}

}  // namespace foveal::cpu
