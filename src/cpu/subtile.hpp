// What a tile holds of its queries and shares among them, and where that lies in the thread's workspace.
#if defined(FOVEAL_CPU_SUBTILE_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SUBTILE_HPP
#undef FOVEAL_CPU_SUBTILE_HPP
#else
#define FOVEAL_CPU_SUBTILE_HPP
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/amx.hpp"
#include "cpu/microkernel.hpp"
#include "cpu/simd.hpp"
#include "cpu/softmax.hpp"
#include "cpu/tile.hpp"
#include "cpu/transpose.hpp"
#include "problem/dtype.hpp"
#include "problem/mask.hpp"
#include "problem/strides.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Distances within the workspace, in floats: a cache line, the largest vector, the largest register block.
inline constexpr int64_t kAlignment = 16;

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Rows of packed K and V and of transposed queries. The extra line keeps rows that a register block reads in step off
// the same cache set.
inline int64_t pitch_of(int64_t columns) { return round_up(columns, kAlignment) + kAlignment; }

// Of rows in words of two.
inline int64_t pairs_pitch_of(int64_t columns) { return pitch_of((columns + 1) / 2); }

// Of queries in words of two: what is behind d / 2, up to a product of AMX, is zero.
inline int64_t query_words(int64_t head_dim) { return round_up((head_dim + 1) / 2, kAmxWords); }

// Of the sums of p * v: whole register blocks, and whole results of AMX.
inline int64_t output_rows(int64_t head_dim_v) { return round_up(head_dim_v, std::max<int64_t>(kRows, kAmxRows)); }

inline int64_t queries_per_subtile() { return kMaxVectors * lanes(); }

inline size_t element_offset_bytes(DType dtype, int64_t elements) {
    return static_cast<size_t>(elements) * static_cast<size_t>(bytes_of(dtype));
}

inline const void* advance(const void* from, DType dtype, int64_t elements) {
    return static_cast<const std::byte*>(from) + element_offset_bytes(dtype, elements);
}

inline void* advance(void* from, DType dtype, int64_t elements) {
    return static_cast<std::byte*>(from) + element_offset_bytes(dtype, elements);
}

// Hands out the caller's workspace piece by piece, or counts how much is needed.
class Workspace {
   public:
    explicit Workspace(float* start) : start_(start) {}
    float* take(int64_t floats) {
        float* const piece = start_ == nullptr ? nullptr : start_ + used_;
        used_ += round_up(floats, kAlignment);
        return piece;
    }
    int32_t* take_i32(int64_t count) { return reinterpret_cast<int32_t*>(take(count)); }
    uint32_t* take_u32(int64_t count) { return reinterpret_cast<uint32_t*>(take(count)); }
    int64_t used() const { return used_; }

   private:
    float* start_;
    int64_t used_ = 0;
};

// Up to kMaxVectors vectors of queries and what is known of them so far.
struct Subtile {
    int64_t first_query;
    int64_t queries;  // those beyond, up to vectors * lanes(), are zeros and their results are dropped
    int vectors;
    Range keys;         // that any of them sees
    BlockRange blocks;  // of kBlockKeys
    float* q;           // [d, vectors * lanes()], times the scaling's query_factor
    uint32_t* q_pairs;  // the same in bf16, words of two
    bool has_q;         // are they there? both forms are made when first needed
    bool has_q_pairs;
    float* o;  // [output_rows(d_v), vectors * lanes()]: sum of p * v
    RunningSoftmax softmax;
    int32_t* key_begin;  // [vectors * lanes()]: the keys that each query sees
    int32_t* key_end;
    int32_t* position;                     // [vectors * lanes()]: each query's place among the keys, for ALiBi
    float* slope;                          // [vectors * lanes()]
    uint32_t *dropout_row, *dropout_head;  // [vectors * lanes()]: whose weights dropout's bits are
};

inline constexpr int64_t kValueTiles = kBlockKeys / kAmxKeys;

// What the subtiles of a tile share.
struct Shared {
    float* k;           // [kBlockKeys, d] with pitch_of(d)
    float* v;           // [kBlockKeys, d_v] with pitch_of(d_v)
    uint32_t* k_pairs;  // in bf16: [kBlockKeys, d / 2] with pairs_pitch_of(d), each word two neighbours of a row
    uint32_t* v_pairs;  // in bf16: [kBlockKeys / 2, d_v] with pitch_of(d_v), each word of two rows
    uint32_t* v_tiles;  // the same as amx_accumulate_values() reads it, kValueTiles * kAmxTile words for 16 channels
    float* scores;      // [kBlockKeys, queries_per_subtile()]
    float* rescale;     // [queries_per_subtile()]
    float* rows;        // [lanes(), max(d, d_v, kBlockKeys)] with pitch_of(it)
    float* two_rows;    // [2, max(d, d_v)]: rows from e4m3, in the type that is computed in
};

inline Shared take_shared(Workspace& workspace, int64_t head_dim, int64_t head_dim_v) {
    Shared shared;
    shared.k = workspace.take(kBlockKeys * pitch_of(head_dim));
    shared.v = workspace.take(kBlockKeys * pitch_of(head_dim_v));
    shared.k_pairs = workspace.take_u32(FOVEAL_TARGET_HAS_PAIRS ? kBlockKeys * pairs_pitch_of(head_dim) : 0);
    shared.v_pairs = workspace.take_u32(FOVEAL_TARGET_HAS_PAIRS ? kBlockKeys / 2 * pitch_of(head_dim_v) : 0);
    shared.v_tiles =
        workspace.take_u32(FOVEAL_TARGET_HAS_PAIRS ? output_rows(head_dim_v) / kAmxRows * kValueTiles * kAmxTile : 0);
    shared.scores = workspace.take(kBlockKeys * queries_per_subtile());
    shared.rescale = workspace.take(queries_per_subtile());
    shared.rows = workspace.take(lanes() * pitch_of(std::max({head_dim, head_dim_v, int64_t{kBlockKeys}})));
    shared.two_rows = workspace.take(2 * round_up(std::max(head_dim, head_dim_v), kAlignment));
    return shared;
}

inline Subtile take_subtile(Workspace& workspace, int64_t head_dim, int64_t head_dim_v) {
    Subtile subtile{};
    subtile.q = workspace.take(round_up(head_dim, kTransposeColumns) * queries_per_subtile());
    subtile.q_pairs = workspace.take_u32(FOVEAL_TARGET_HAS_PAIRS ? query_words(head_dim) * queries_per_subtile() : 0);
    subtile.o = workspace.take(output_rows(head_dim_v) * queries_per_subtile());
    subtile.softmax.max = workspace.take(queries_per_subtile());
    subtile.softmax.sum = workspace.take(queries_per_subtile());
    subtile.key_begin = workspace.take_i32(queries_per_subtile());
    subtile.key_end = workspace.take_i32(queries_per_subtile());
    subtile.position = workspace.take_i32(queries_per_subtile());
    subtile.slope = workspace.take(queries_per_subtile());
    subtile.dropout_row = workspace.take_u32(queries_per_subtile());
    subtile.dropout_head = workspace.take_u32(queries_per_subtile());
    return subtile;
}

// Walks the queries of a group in order.
struct Query {
    int32_t row;
    int64_t head;
    int64_t heads;
    Query(int64_t number, int64_t heads_in_group)
        : row(static_cast<int32_t>(number / heads_in_group)), head(number % heads_in_group), heads(heads_in_group) {}
    void next() {
        if (++head == heads) {
            head = 0;
            ++row;
        }
    }
    int64_t offset(const Strides& stride) const { return row * stride.row + head * stride.head; }
};

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
