// Where an appended row goes, and at which position its rotary embedding stands (contract 1.12): the only place that
// knows. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "problem/lengths.hpp"

namespace foveal {

// Of a row: page -1: it is not written to the cache.
struct AppendPlace {
    int64_t page;
    int64_t row;       // of the page
    int64_t position;  // -1: there are no positions
};

// New rows are numbered through: dense [b, rows], ragged [1, total_new].
struct AppendPlaces {
    int64_t rows;   // of a sequence, dense; of all, ragged
    int32_t batch;  // sequences
    int32_t page_size;

    const int64_t* slot_mapping;  // [b, rows] or [total_new]; null: behind cache_lengths
    int64_t slot_batch_stride;
    const int32_t* cache_lengths;  // [b] or null
    const int32_t* cu_seqlens;     // [b + 1] or null: dense
    const uint32_t* block_table;   // [b, max_pages], or null: a sequence is a page
    int64_t table_stride;
    const void* positions;  // [b, rows] or [total_new], or null
    int64_t position_batch_stride;
    bool positions_are_i64;

    // Row `row` of [b, rows] at `outer`; ragged: outer is 0.
    FOVEAL_HOST_DEVICE AppendPlace of(int64_t outer, int64_t row) const {
        AppendPlace place = slot_mapping != nullptr ? in_slot(outer, row) : behind(outer, row);
        if (positions != nullptr) {
            const int64_t i = outer * position_batch_stride + row;
            place.position = positions_are_i64 ? static_cast<const int64_t*>(positions)[i]
                                               : static_cast<const int32_t*>(positions)[i];
        }
        return place;
    }

   private:
    FOVEAL_HOST_DEVICE AppendPlace in_slot(int64_t outer, int64_t row) const {
        const int64_t slot = slot_mapping[outer * slot_batch_stride + row];
        if (slot < 0) return {-1, 0, -1};
        if (slot <= INT32_MAX) {  // a division of 32 bits takes a third of the time
            const auto small = static_cast<uint32_t>(slot);
            return {small / static_cast<uint32_t>(page_size), small % static_cast<uint32_t>(page_size), -1};
        }
        return {slot / page_size, slot % page_size, -1};
    }

    FOVEAL_HOST_DEVICE AppendPlace behind(int64_t outer, int64_t row) const {
        if (cache_lengths == nullptr) return {-1, 0, -1};  // q alone
        const int32_t sequence =
            cu_seqlens != nullptr ? sequence_of(cu_seqlens, batch, row) : static_cast<int32_t>(outer);
        const int64_t number = cu_seqlens != nullptr ? row - cu_seqlens[sequence] : row;
        const int64_t key = cache_lengths[sequence] + number;
        if (block_table == nullptr) return {sequence, key, key};
        const auto small = static_cast<uint32_t>(key);  // a sequence has less than 2^31 keys
        const uint32_t page = small / static_cast<uint32_t>(page_size);
        return {block_table[sequence * table_stride + page], small % static_cast<uint32_t>(page_size), key};
    }
};

}  // namespace foveal
