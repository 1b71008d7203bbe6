#include "problem/append.hpp"

#include <string>
#include <utility>

#include "problem/argument.hpp"
#include "problem/mask.hpp"
#include "problem/overlap.hpp"

namespace foveal {
namespace {

// The tensor arguments that are read, and those that are written.
struct Member {
    const char* name;
    foveal_tensor foveal_append_args::*tensor;
};
constexpr Member kRead[] = {{"k", &foveal_append_args::k},
                            {"v", &foveal_append_args::v},
                            {"q", &foveal_append_args::q},
                            {"slot_mapping", &foveal_append_args::slot_mapping},
                            {"cache_lengths", &foveal_append_args::cache_lengths},
                            {"cu_seqlens", &foveal_append_args::cu_seqlens},
                            {"block_table", &foveal_append_args::block_table},
                            {"cos", &foveal_append_args::cos},
                            {"sin", &foveal_append_args::sin},
                            {"positions", &foveal_append_args::positions},
                            {"k_scale", &foveal_append_args::k_scale},
                            {"v_scale", &foveal_append_args::v_scale}};
constexpr Member kWritten[] = {{"k_cache", &foveal_append_args::k_cache},
                               {"v_cache", &foveal_append_args::v_cache},
                               {"q_out", &foveal_append_args::q_out},
                               {"k_scale_out", &foveal_append_args::k_scale_out},
                               {"v_scale_out", &foveal_append_args::v_scale_out}};

// New rows and where they go: k and k_cache, v and v_cache, q and q_out.
struct Stream {
    Argument from, to;
};

std::array<Stream, 3> streams_of(const foveal_append_args& args) {
    return {Stream{{"k", args.k}, {"k_cache", args.k_cache}}, Stream{{"v", args.v}, {"v_cache", args.v_cache}},
            Stream{{"q", args.q}, {"q_out", args.q_out}}};
}

void check_options(const foveal_append_args& args) {
    require_known_backend(args.backend);
    if (args.rotary_layout != FOVEAL_ROTARY_HALF_SPLIT && args.rotary_layout != FOVEAL_ROTARY_INTERLEAVED)
        refuse("rotary_layout is " + std::to_string(args.rotary_layout) +
               "; known are 0 (half-split) and 1 (interleaved)");
    if (args.reserved != 0) refuse("reserved is " + std::to_string(args.reserved) + "; it must be 0");
}

void require_both(const Argument& a, const Argument& b) {
    if (a.present() != b.present())
        refuse((a.present() ? a : b).text() + " is present but " + (a.present() ? b : a).text() +
               " is absent; there are both or neither");
}

void require_float(const Argument& a) {
    if (!is_float(a.dtype()))
        refuse(a.text() + ".dtype is " + name_of(a.dtype()) + "; supported are f32, bf16 and f16");
}

void check_size(const Argument& a, int i) {
    if (a.tensor.shape[i] > kMaxSequenceLength)
        refuse(a.dim(i) + " is " + std::to_string(a.tensor.shape[i]) + "; at most " +
               std::to_string(kMaxSequenceLength) + " are supported");
}

// The new rows of k, v and q agree in everything but their heads and their channels.
void check_new_rows(const Argument& a, const Argument& first) {
    if (a.tensor.rank != 4) require_rank(a, 3, "new rows ([total_new, heads, d], or rank 4: [b, s_new, heads, d])");
    const std::string first_name = first.text();
    require_rank(a, first.tensor.rank, (first_name + "'s rank").c_str());
    require_float(a);
    for (int i = 0; i + 2 < a.tensor.rank; ++i) check_size(a, i);
    require_dtype(a, first.dtype(), (first_name + "'s dtype").c_str());
    for (int i = 0; i + 2 < a.tensor.rank; ++i) require_dim(a, i, first.tensor.shape[i], first.dim(i).c_str());
    check_strided(a);
}

void check_cache(const Argument& cache, const Argument& rows) {
    require_rank(cache, 4, "a cache ([pages, page_size, heads, d])");
    if (!is_float(cache.dtype()) && cache.dtype() != DType::e4m3)
        refuse(cache.text() + ".dtype is " + name_of(cache.dtype()) + "; supported are f32, bf16, f16 and e4m3");
    const int head = rows.tensor.rank - 2;
    require_dim(cache, 2, rows.tensor.shape[head], rows.dim(head).c_str());
    require_dim(cache, 3, rows.tensor.shape[head + 1], rows.dim(head + 1).c_str());
    check_size(cache, 1);
    if (cache.tensor.shape[1] < 1) refuse(cache.dim(1) + " is 0; a page has at least one row");
    check_strided(cache);
    require_no_overlap(cache);
}

void check_q_out(const Argument& out, const Argument& q) {
    require_rank(out, q.tensor.rank, "q's rank");
    require_dtype(out, q.dtype(), "q's dtype");
    for (int i = 0; i < q.tensor.rank; ++i) require_dim(out, i, q.tensor.shape[i], q.dim(i).c_str());
    check_strided(out);
    require_no_overlap(out);
}

// Returns the first of k, v and q that is present.
Argument check_rows(const foveal_append_args& args) {
    const std::array<Stream, 3> streams = streams_of(args);
    const Stream* first = nullptr;
    for (const Stream& stream : streams) {
        require_both(stream.from, stream.to);
        if (!stream.from.present()) continue;
        if (first == nullptr) first = &stream;
        check_new_rows(stream.from, first->from);
    }
    if (first == nullptr) refuse("k, v and q are absent; there is nothing to append");
    const auto& [k, v, q] = streams;
    if (k.from.present()) check_cache(k.to, k.from);
    if (v.from.present()) check_cache(v.to, v.from);
    if (q.from.present()) check_q_out(q.to, q.from);
    if (k.from.present() && v.from.present()) {
        require_dim(v.to, 0, args.k_cache.shape[0], "k_cache.shape[0]");
        require_dim(v.to, 1, args.k_cache.shape[1], "k_cache.shape[1]");
        require_dim(v.to, 2, args.k_cache.shape[2], "k_cache.shape[2]");
        require_dtype(v.to, k.to.dtype(), "k_cache's dtype");
    }
    return first->from;
}

// A number for each new row: [b, s_new] or [total_new].
void check_row_numbers(const Argument& a, const Argument& first) {
    require_rank(
        a, first.tensor.rank - 2,
        first.tensor.rank == 4 ? "a number for each row of [b, s_new]" : "a number for each row of [total_new]");
    for (int i = 0; i < a.tensor.rank; ++i) require_dim(a, i, first.tensor.shape[i], first.dim(i).c_str());
    check_strided(a);
}

void check_vector(const Argument& a, int64_t entries, const std::string& same_as) {
    require_rank(a, 1, "a vector of lengths");
    require_dtype(a, DType::i32, a.name);
    require_dim(a, 0, entries, same_as.c_str());
    check_strided(a);
}

void check_lengths(const foveal_append_args& args, const Argument& first) {
    const Argument lengths{"cache_lengths", args.cache_lengths}, ends{"cu_seqlens", args.cu_seqlens},
        table{"block_table", args.block_table};
    const bool ragged = first.tensor.rank == 3;
    if (ragged && !ends.present())
        refuse(
            "cache_lengths is present and the new rows are [total_new, heads, d]; cu_seqlens, which says whose they "
            "are, is absent");
    if (!ragged && ends.present())
        refuse("cu_seqlens is present; it needs new rows of rank 3, and " + first.text() + ".rank is 4");
    require_rank(lengths, 1, "a vector of lengths");
    const int64_t batch = ragged ? args.cache_lengths.shape[0] : first.tensor.shape[0];
    check_vector(lengths, batch, first.dim(0));
    if (ragged) check_vector(ends, batch + 1, "cache_lengths.shape[0] + 1");
    if (!table.present()) {
        for (const Argument& cache : {Argument{"k_cache", args.k_cache}, Argument{"v_cache", args.v_cache}})
            if (cache.present() && cache.tensor.shape[0] < batch)
                refuse(cache.dim(0) + " is " + std::to_string(cache.tensor.shape[0]) +
                       "; without block_table each of the " + std::to_string(batch) + " sequences is a page");
        return;
    }
    require_rank(table, 2, "the sequences' pages");
    if (table.dtype() != DType::u32) require_dtype(table, DType::i32, "block_table (or u32)");
    require_dim(table, 0, batch, "the batch size");
    check_strided(table);
}

// Where rows of k and v go.
void check_places(const foveal_append_args& args, const Argument& first, bool in_cache) {
    const Argument slots{"slot_mapping", args.slot_mapping}, lengths{"cache_lengths", args.cache_lengths};
    if (slots.present() && lengths.present())
        refuse("slot_mapping and cache_lengths are present; rows go to one place");
    if (in_cache && !slots.present() && !lengths.present())
        refuse("slot_mapping and cache_lengths are absent; one of them says where the rows go");
    if (slots.present()) {
        require_dtype(slots, DType::i64, "slot_mapping");
        check_row_numbers(slots, first);
    }
    if (lengths.present()) return check_lengths(args, first);
    for (const Argument& a : {Argument{"cu_seqlens", args.cu_seqlens}, Argument{"block_table", args.block_table}})
        if (a.present()) refuse(a.text() + " is present; it belongs to cache_lengths, which is absent");
}

void check_rotary(const foveal_append_args& args, const Argument& first) {
    const Argument cos{"cos", args.cos}, sin{"sin", args.sin}, positions{"positions", args.positions};
    require_both(cos, sin);
    if (!cos.present()) {
        if (positions.present()) refuse("positions is present, but cos and sin are absent");
        if (args.q.rank != 0) refuse("q is present, but cos and sin are absent: it would only be copied");
        return;
    }
    if (args.k.rank == 0 && args.q.rank == 0) refuse("cos is present, but k and q, which it would turn, are absent");
    for (const Argument& a : {cos, sin}) {
        require_rank(a, 2, "angles ([positions, rot/2])");
        if (a.dtype() != DType::f32) require_dtype(a, first.dtype(), (first.text() + "'s dtype (or f32)").c_str());
        check_strided(a);
    }
    require_dtype(sin, cos.dtype(), "cos's dtype");
    for (int i = 0; i < 2; ++i) require_dim(sin, i, args.cos.shape[i], cos.dim(i).c_str());
    for (const Argument& a : {Argument{"k", args.k}, Argument{"q", args.q}}) {
        const int last = a.tensor.rank - 1;
        if (a.present() && args.cos.shape[1] > a.tensor.shape[last] / 2)
            refuse("cos.shape[1] is " + std::to_string(args.cos.shape[1]) + "; it is at most half of " + a.dim(last) +
                   ", " + std::to_string(a.tensor.shape[last]));
    }
    if (!positions.present()) {
        if (args.cache_lengths.rank == 0)
            refuse("positions is absent, and without cache_lengths a row's position is not known");
        return;
    }
    if (positions.dtype() != DType::i64) require_dtype(positions, DType::i32, "positions (or i64)");
    check_row_numbers(positions, first);
}

void check_scale(const Argument& scale, const Argument& rows) {
    if (!scale.present()) return;
    if (!rows.present()) refuse(scale.text() + " is present, but " + rows.text() + " is absent");
    require_rank(scale, 1, "a scale ([1] or [h_k])");
    require_dtype(scale, DType::f32, scale.name);
    const int head = rows.tensor.rank - 2;
    if (scale.tensor.shape[0] != 1)
        require_dim(scale, 0, rows.tensor.shape[head], (rows.dim(head) + " (or 1)").c_str());
    check_strided(scale);
}

// A scale that is worked out.
void check_scale_out(const Argument& out, const Argument& given, const Stream& stream) {
    if (!out.present()) return;
    if (!stream.from.present()) refuse(out.text() + " is present, but " + stream.from.text() + " is absent");
    if (given.present()) refuse(given.text() + " and " + out.text() + " are present; a scale is given or worked out");
    const Argument& cache = stream.to;
    if (cache.dtype() != DType::e4m3)
        refuse(out.text() + " is present, but " + cache.text() + ".dtype is " + name_of(cache.dtype()) +
               "; scales are worked out for e4m3");
    require_dtype(out, DType::f32, out.name);
    if (out.tensor.rank == 1) {
        require_dim(out, 0, cache.tensor.shape[2], cache.dim(2).c_str());
    } else {
        require_rank(out, 3, "scales that are worked out ([pages, page_size, h_k], or rank 1: [h_k])");
        for (int i = 0; i < 3; ++i) require_dim(out, i, cache.tensor.shape[i], cache.dim(i).c_str());
    }
    check_strided(out);
    require_no_overlap(out);
}

void check_overlaps(const foveal_append_args& args) {
    for (const Member& written : kWritten) {
        if ((args.*written.tensor).rank == 0) continue;
        const Placed out{{written.name, args.*written.tensor}};
        for (const Member& other : kWritten)
            if (other.tensor != written.tensor && (args.*other.tensor).rank != 0)
                require_apart(out, Placed{{other.name, args.*other.tensor}});
        for (const Member& read : kRead) {
            if ((args.*read.tensor).rank == 0) continue;
            const Placed in{{read.name, args.*read.tensor}};
            const bool in_place = written.tensor == &foveal_append_args::q_out && read.tensor == &foveal_append_args::q;
            in_place ? require_apart_or_same(out, in) : require_apart(out, in);
        }
    }
}

AppendedRows rows_of(const Stream& stream) {
    AppendedRows rows;
    if (!stream.from.present()) return rows;
    rows.from = data_of(stream.from);
    rows.to = const_cast<void*>(data_of(stream.to));
    rows.from_stride = strides_of(stream.from.tensor);
    rows.to_stride = strides_of(stream.to.tensor);
    rows.to_dtype = stream.to.dtype();
    rows.heads = stream.from.tensor.shape[stream.from.tensor.rank - 2];
    rows.head_dim = stream.from.tensor.shape[stream.from.tensor.rank - 1];
    return rows;
}

void take_scale(const Argument& scale, AppendedRows& rows) {
    rows.scale = static_cast<const float*>(data_of(scale));
    if (scale.present()) rows.scale_stride = stride_or_zero(scale.tensor, 0);
}

void take_scale_out(const Argument& out, AppendedRows& rows) {
    if (!out.present()) return;
    rows.scale_out = static_cast<float*>(const_cast<void*>(data_of(out)));
    rows.scales_rows = out.tensor.rank == 3;
    rows.scale_out_stride = rows.scales_rows ? row_value_strides_of(out.tensor) : head_strides_of(out.tensor);
}

Rotary rotary_of(const foveal_append_args& args) {
    Rotary rotary;
    if (args.cos.rank == 0) return rotary;
    rotary.cos = data_of({"cos", args.cos});
    rotary.sin = data_of({"sin", args.sin});
    rotary.cos_stride = stride_or_zero(args.cos, 0);
    rotary.sin_stride = stride_or_zero(args.sin, 0);
    rotary.dtype = dtype_of(args.cos);
    rotary.positions = args.cos.shape[0];
    rotary.dim = 2 * args.cos.shape[1];
    rotary.interleaved = args.rotary_layout == FOVEAL_ROTARY_INTERLEAVED;
    return rotary;
}

AppendPlaces places_of(const foveal_append_args& args, const Argument& first) {
    const bool ragged = first.tensor.rank == 3;
    AppendPlaces places{};
    places.rows = first.tensor.shape[ragged ? 0 : 1];
    places.page_size = 1;  // of q alone, which has no cache
    places.slot_mapping = static_cast<const int64_t*>(data_of({"slot_mapping", args.slot_mapping}));
    places.cache_lengths = static_cast<const int32_t*>(data_of({"cache_lengths", args.cache_lengths}));
    places.cu_seqlens = static_cast<const int32_t*>(data_of({"cu_seqlens", args.cu_seqlens}));
    places.block_table = static_cast<const uint32_t*>(data_of({"block_table", args.block_table}));
    places.positions = data_of({"positions", args.positions});
    places.positions_are_i64 = dtype_of(args.positions) == DType::i64;
    if (args.cache_lengths.rank != 0) places.batch = static_cast<int32_t>(args.cache_lengths.shape[0]);
    if (args.block_table.rank != 0) places.table_stride = stride_or_zero(args.block_table, 0);
    if (args.slot_mapping.rank == 2) places.slot_batch_stride = stride_or_zero(args.slot_mapping, 0);
    if (args.positions.rank == 2) places.position_batch_stride = stride_or_zero(args.positions, 0);
    return places;
}

}  // namespace

Append validate(const foveal_append_args& args) {
    for (const Member& member : kRead) require_known_rank({member.name, args.*member.tensor});
    for (const Member& member : kWritten) require_known_rank({member.name, args.*member.tensor});
    check_options(args);
    const Argument first = check_rows(args);
    const bool in_cache = args.k.rank != 0 || args.v.rank != 0;
    check_places(args, first, in_cache);
    check_rotary(args, first);
    const std::array<Stream, 3> streams = streams_of(args);
    const Argument k_scale{"k_scale", args.k_scale}, v_scale{"v_scale", args.v_scale};
    check_scale(k_scale, streams[0].from);
    check_scale(v_scale, streams[1].from);
    const Argument k_scale_out{"k_scale_out", args.k_scale_out}, v_scale_out{"v_scale_out", args.v_scale_out};
    check_scale_out(k_scale_out, k_scale, streams[0]);
    check_scale_out(v_scale_out, v_scale, streams[1]);

    Append append;
    append.dtype = first.dtype();
    append.outer = first.tensor.rank == 4 ? first.tensor.shape[0] : 1;
    append.places = places_of(args, first);
    if (in_cache) {
        const foveal_tensor& cache = args.k.rank != 0 ? args.k_cache : args.v_cache;
        append.pages = cache.shape[0];
        append.places.page_size = static_cast<int32_t>(cache.shape[1]);
        append.max_pages = args.block_table.rank != 0 ? args.block_table.shape[1] : 1;
    }
    append.rotary = rotary_of(args);
    for (size_t i = 0; i < streams.size(); ++i) append.rows[i] = rows_of(streams[i]);
    auto& [k, v, q] = append.rows;
    // Positions of q alone follow from the lengths, for which the table need not have room.
    if (!k.present() && !v.present()) append.places.block_table = nullptr;
    take_scale(k_scale, k);
    take_scale(v_scale, v);
    take_scale_out(k_scale_out, k);
    take_scale_out(v_scale_out, v);
    k.turns = q.turns = append.rotary.dim > 0;  // without angles, cos and sin may be null
    q.in_cache = false;
    check_overlaps(args);
    return append;
}

}  // namespace foveal
