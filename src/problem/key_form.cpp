#include "problem/key_form.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "problem/argument.hpp"
#include "problem/mask.hpp"

namespace foveal {
namespace {

void require_page_numbers(const Argument& a) {
    if (a.dtype() != DType::i32 && a.dtype() != DType::u32)
        refuse(a.text() + ".dtype is " + name_of(a.dtype()) + "; page numbers are i32 or u32");
}

TableArguments table_of(const foveal_forward_args& args) {
    return {args.block_table, args.page_indptr, args.page_indices};
}

}  // namespace

bool has_table(const TableArguments& args) {
    const Argument table{"block_table", args.block_table}, indptr{"page_indptr", args.page_indptr},
        indices{"page_indices", args.page_indices};
    if (indptr.present() != indices.present())
        refuse((indptr.present() ? indptr : indices).text() + " is present but " +
               (indptr.present() ? indices : indptr).text() + " is absent; a list of pages is both");
    if (table.present() && indices.present())
        refuse("block_table and page_indices are present; the pages of k and v are named by one of them");
    return table.present() || indices.present();
}

void check_table(const TableArguments& args, int64_t batch) {
    const Argument table{"block_table", args.block_table}, indptr{"page_indptr", args.page_indptr},
        indices{"page_indices", args.page_indices};
    if (table.present()) {
        require_rank(table, 2, "a table of pages ([b, max_pages])");
        require_page_numbers(table);
        require_dim(table, 0, batch, "the batch size");
        return check_strided(table);
    }
    require_rank(indptr, 1, "the sequences' first entries ([b + 1])");
    require_dtype(indptr, DType::i32, indptr.name);
    check_strided(indptr);
    require_dim(indptr, 0, batch + 1, "the batch size plus 1");
    require_rank(indices, 1, "a list of pages");
    require_page_numbers(indices);
    check_strided(indices);
    if (indices.tensor.shape[0] > std::numeric_limits<int32_t>::max())
        refuse(indices.dim(0) + " is " + std::to_string(indices.tensor.shape[0]) +
               "; page_indptr counts no more than 2147483647");
}

KeyForm key_form_of(const foveal_forward_args& args) {
    const bool varlen_q = args.cu_seqlens_q.rank != 0, varlen_k = args.cu_seqlens_k.rank != 0;
    if (has_table(table_of(args))) {
        const std::string which = args.block_table.rank != 0 ? "block_table" : "page_indices";
        if (varlen_k) refuse("cu_seqlens_k is present beside " + which + "; keys in pages are not packed");
        if (args.seqused_k.rank == 0)
            refuse("seqused_k is absent beside " + which + "; it says how many keys of its pages a sequence has");
        return KeyForm::paged;
    }
    if (varlen_k) return KeyForm::varlen;
    if (varlen_q && args.seqused_k.rank == 0)
        refuse(
            "cu_seqlens_q is present but cu_seqlens_k is absent; k and v beside a varlen q are varlen too, or dense or "
            "paged with seqused_k");
    return KeyForm::dense;
}

const char* layout_of_keys(const foveal_forward_args& args, KeyForm form) {
    if (form == KeyForm::varlen) return "varlen (cu_seqlens_k is present)";
    if (form == KeyForm::dense) return "dense (cu_seqlens_k is absent)";
    return args.block_table.rank != 0 ? "pages (block_table is present)" : "pages (page_indices is present)";
}

void check_pages(const foveal_forward_args& args, int64_t batch) {
    const Argument k{"k", args.k};
    check_table(table_of(args), batch);
    if (k.tensor.shape[0] > std::numeric_limits<int32_t>::max())
        refuse(k.dim(0) + " is " + std::to_string(k.tensor.shape[0]) + "; at most 2147483647 pages are supported");
    if (k.tensor.shape[1] < 1) refuse(k.dim(1) + " is 0; a page has at least one row");
    if (k.tensor.shape[1] > kMaxSequenceLength)
        refuse(k.dim(1) + " is " + std::to_string(k.tensor.shape[1]) + "; a page has at most " +
               std::to_string(kMaxSequenceLength) + " rows");
}

int64_t most_keys_in_pages(const foveal_forward_args& args) {
    const int64_t page_size = args.k.shape[1];
    const int64_t entries = args.block_table.rank != 0 ? args.block_table.shape[1] : args.page_indices.shape[0];
    int64_t most = entries < kMaxSequenceLength / page_size ? entries * page_size : kMaxSequenceLength;
    for (const foveal_tensor* matrix : {&args.bias, &args.mask})
        if (matrix->rank != 0 && matrix->shape[matrix->rank - 1] != 1)
            most = std::min(most, matrix->shape[matrix->rank - 1]);
    return most;
}

}  // namespace foveal
