#include "problem/cache_copy.hpp"

#include <limits>
#include <string>
#include <vector>

#include "problem/argument.hpp"
#include "problem/key_form.hpp"
#include "problem/mask.hpp"
#include "problem/overlap.hpp"

namespace foveal {
namespace {

void check_cache(const Argument& cache) {
    require_rank(cache, 4, "a cache ([pages, page_size, heads, d])");
    if (!is_float(cache.dtype()) && cache.dtype() != DType::e4m3)
        refuse(cache.text() + ".dtype is " + name_of(cache.dtype()) + "; supported are f32, bf16, f16 and e4m3");
    if (cache.tensor.shape[0] > std::numeric_limits<int32_t>::max())
        refuse(cache.dim(0) + " is " + std::to_string(cache.tensor.shape[0]) +
               "; at most 2147483647 pages are supported");
    if (cache.tensor.shape[1] < 1) refuse(cache.dim(1) + " is 0; a page has at least one row");
    if (cache.tensor.shape[1] > kMaxSequenceLength)
        refuse(cache.dim(1) + " is " + std::to_string(cache.tensor.shape[1]) + "; a page has at most " +
               std::to_string(kMaxSequenceLength) + " rows");
    check_strided(cache);
    if (cache.tensor.shape[2] > 0 && cache.tensor.shape[3] > kMaxSequenceLength / cache.tensor.shape[2])
        refuse(cache.text() + "'s rows have " + std::to_string(cache.tensor.shape[2]) + " heads of " +
               std::to_string(cache.tensor.shape[3]) + " elements; at most " + std::to_string(kMaxSequenceLength) +
               " elements a row are supported");
}

// Returns the first of the two that is present.
Argument check_caches(const foveal_tensor& k_cache, const foveal_tensor& v_cache, const char* doing) {
    const Argument k{"k_cache", k_cache}, v{"v_cache", v_cache};
    if (!k.present() && !v.present())
        refuse(std::string("k_cache and v_cache are absent; there is nothing to ") + doing);
    for (const Argument& cache : {k, v})
        if (cache.present()) check_cache(cache);
    if (k.present() && v.present()) {
        require_dtype(v, k.dtype(), "k_cache's dtype");
        for (int i = 0; i < 3; ++i) require_dim(v, i, k_cache.shape[i], k.dim(i).c_str());
    }
    return k.present() ? k : v;
}

void require_all_apart(const std::vector<Argument>& written, const std::vector<Argument>& read) {
    for (size_t i = 0; i < written.size(); ++i) {
        if (!written[i].present()) continue;
        require_no_overlap(written[i]);
        const Placed out{written[i]};
        for (size_t j = i + 1; j < written.size(); ++j)
            if (written[j].present()) require_apart(out, Placed{written[j]});
        for (const Argument& in : read)
            if (in.present()) require_apart(out, Placed{in});
    }
}

CopiedRows rows_of(const Argument& from, const Argument& to) {
    CopiedRows rows;
    if (!from.present()) return rows;
    rows.from = data_of(from);
    rows.to = const_cast<void*>(data_of(to));
    rows.from_stride = strides_of(from.tensor);
    rows.to_stride = strides_of(to.tensor);
    rows.heads = from.tensor.shape[2];
    rows.head_dim = from.tensor.shape[3];
    return rows;
}

CacheCopy copy_of(const Argument& cache) {
    CacheCopy copy;
    copy.dtype = cache.dtype();
    copy.pages = cache.tensor.shape[0];
    copy.places.table.page_size = static_cast<int32_t>(cache.tensor.shape[1]);
    return copy;
}

void check_pairs(const Argument& pairs) {
    if (!pairs.present()) refuse("pairs is absent; it says which pages are copied where");
    require_rank(pairs, 2, "pairs of pages ([n, 2])");
    if (pairs.dtype() != DType::i64) require_dtype(pairs, DType::i32, "pairs (or i64)");
    require_dim(pairs, 1, 2, "src and dst");
    if (pairs.tensor.shape[0] > kMaxSequenceLength)
        refuse(pairs.dim(0) + " is " + std::to_string(pairs.tensor.shape[0]) + "; at most " +
               std::to_string(kMaxSequenceLength) + " are supported");
    check_strided(pairs);
}

// Sequences of the result, and which of its rows are written.
void check_lengths(const Argument& ends, const Argument& used) {
    if (!ends.present()) refuse("cu_seqlens_k is absent; it says which rows are whose");
    require_rank(ends, 1, "the sequences' first rows ([b + 1])");
    require_dtype(ends, DType::i32, ends.name);
    check_strided(ends);
    if (ends.tensor.shape[0] < 1) refuse(ends.dim(0) + " is 0; it has an entry more than there are sequences");
    if (ends.tensor.shape[0] > kMaxSequenceLength)
        refuse(ends.dim(0) + " is " + std::to_string(ends.tensor.shape[0]) + "; at most " +
               std::to_string(kMaxSequenceLength) + " are supported");
    if (!used.present()) return;
    require_rank(used, 1, "a vector of lengths");
    require_dtype(used, DType::i32, used.name);
    require_dim(used, 0, ends.tensor.shape[0] - 1, "cu_seqlens_k.shape[0] - 1");
    check_strided(used, LastStride::one_or_shared);
}

// A result of gather beside its cache; the first result says how many rows there are.
void check_result(const Argument& result, const Argument& cache, const Argument& first) {
    if (result.present() != cache.present())
        refuse((result.present() ? result : cache).text() + " is present but " +
               (result.present() ? cache : result).text() + " is absent; there are both or neither");
    if (!result.present()) return;
    require_rank(result, 3, "rows without pages ([total_k, heads, d])");
    require_dtype(result, cache.dtype(), (cache.text() + "'s dtype").c_str());
    require_dim(result, 0, first.tensor.shape[0], first.dim(0).c_str());
    if (result.tensor.shape[0] > kMaxSequenceLength)
        refuse(result.dim(0) + " is " + std::to_string(result.tensor.shape[0]) + "; at most " +
               std::to_string(kMaxSequenceLength) + " are supported");
    for (int i = 1; i < 3; ++i) require_dim(result, i, cache.tensor.shape[i + 1], cache.dim(i + 1).c_str());
    check_strided(result);
}

CopyPlaces places_of(const foveal_gather_args& args, const CacheCopy& copy) {
    CopyPlaces places = copy.places;
    places.batch = static_cast<int32_t>(args.cu_seqlens_k.shape[0] - 1);
    places.lengths.rows = static_cast<int32_t>(copy.rows);
    places.lengths.cu_seqlens = static_cast<const int32_t*>(data_of({"cu_seqlens_k", args.cu_seqlens_k}));
    places.lengths.seqused = static_cast<const int32_t*>(data_of({"seqused_k", args.seqused_k}));
    if (args.seqused_k.rank != 0) places.lengths.seqused_stride = static_cast<int32_t>(unit_stride_of(args.seqused_k));
    places.table.indptr = static_cast<const int32_t*>(data_of({"page_indptr", args.page_indptr}));
    const bool lists = args.page_indices.rank != 0;
    const Argument entries =
        lists ? Argument{"page_indices", args.page_indices} : Argument{"block_table", args.block_table};
    places.table.entries = static_cast<const uint32_t*>(data_of(entries));
    if (!lists) places.table.stride = stride_or_zero(args.block_table, 0);
    return places;
}

}  // namespace

CacheCopy validate(const foveal_copy_pages_args& args) {
    const Argument k{"k_cache", args.k_cache}, v{"v_cache", args.v_cache}, pairs{"pairs", args.pairs};
    for (const Argument& a : {k, v, pairs}) require_known_rank(a);
    require_known_backend(args.backend);
    CacheCopy copy = copy_of(check_caches(args.k_cache, args.v_cache, "copy"));
    check_pairs(pairs);
    copy.rows = args.pairs.shape[0] * copy.places.table.page_size;
    copy.places.pairs = data_of(pairs);
    copy.places.pairs_are_i64 = pairs.dtype() == DType::i64;
    copy.places.pair_stride = stride_or_zero(args.pairs, 0);
    copy.streams = {rows_of(k, k), rows_of(v, v)};
    require_all_apart({k, v}, {pairs});
    return copy;
}

CacheCopy validate(const foveal_gather_args& args) {
    const Argument k_cache{"k_cache", args.k_cache}, v_cache{"v_cache", args.v_cache}, k{"k", args.k}, v{"v", args.v},
        ends{"cu_seqlens_k", args.cu_seqlens_k}, used{"seqused_k", args.seqused_k},
        table{"block_table", args.block_table}, indptr{"page_indptr", args.page_indptr},
        indices{"page_indices", args.page_indices};
    for (const Argument& a : {k_cache, v_cache, k, v, ends, used, table, indptr, indices}) require_known_rank(a);
    require_known_backend(args.backend);
    const Argument cache = check_caches(args.k_cache, args.v_cache, "gather");
    const Argument& first = k_cache.present() ? k : v;
    check_result(k, k_cache, first);
    check_result(v, v_cache, first);
    check_lengths(ends, used);
    const TableArguments pages{args.block_table, args.page_indptr, args.page_indices};
    if (!has_table(pages)) refuse("block_table and page_indices are absent; one of them names the sequences' pages");
    check_table(pages, args.cu_seqlens_k.shape[0] - 1);

    CacheCopy copy = copy_of(cache);
    copy.gathers = true;
    copy.rows = first.tensor.shape[0];
    if (copy.rows > 0 && args.cu_seqlens_k.shape[0] == 1)
        refuse(ends.dim(0) + " is 1: there are no sequences, but " + first.dim(0) + " is " + std::to_string(copy.rows));
    copy.entries = table.present() ? args.block_table.shape[1] : args.page_indices.shape[0];
    copy.places = places_of(args, copy);
    copy.streams = {rows_of(k_cache, k), rows_of(v_cache, v)};
    require_all_apart({k, v}, {k_cache, v_cache, ends, used, table, indptr, indices});
    return copy;
}

}  // namespace foveal
