#include "problem/merge.hpp"

#include <string>

#include "problem/argument.hpp"
#include "problem/overlap.hpp"

namespace foveal {
namespace {

void check_options(const foveal_merge_args& args) {
    require_known_backend(args.backend);
    if (args.parts < 1 || args.parts > FOVEAL_MAX_MERGE_PARTS)
        refuse("parts is " + std::to_string(args.parts) + "; it must be 1 to " +
               std::to_string(FOVEAL_MAX_MERGE_PARTS) + " (more are merged in several calls)");
    if (args.reserved != 0) refuse("reserved is " + std::to_string(args.reserved) + "; it must be 0");
    if (args.outs == nullptr) refuse("outs is NULL; it has one tensor a part");
    if (args.lses == nullptr) refuse("lses is NULL; it has one tensor a part");
}

// [b, s, h, d] or [total, h, d], shaped like outs[0].
void check_out(const Argument& a, const foveal_tensor& first) {
    require_known_rank(a);
    require_rank(a, first.rank, "outs[0]'s rank");
    constexpr const char* kSameAs[] = {"outs[0].shape[0]", "outs[0].shape[1]", "outs[0].shape[2]", "outs[0].shape[3]"};
    for (int i = 0; i < first.rank; ++i) require_dim(a, i, first.shape[i], kSameAs[i]);
    check_strided(a);
}

// [b, h, s] or [h, total], of the rows of outs[0].
void check_lse(const Argument& a, const foveal_tensor& first) {
    require_known_rank(a);
    require_rank(a, first.rank - 1, first.rank == 4 ? "rank 4 of outs[0]" : "rank 3 of outs[0]");
    require_dtype(a, DType::f32, "the log-sum-exp");
    const int row = first.rank - 3;
    if (row == 1) require_dim(a, 0, first.shape[0], "outs[0].shape[0]");
    require_dim(a, row, first.shape[row + 1], "the number of heads of outs[0]");
    require_dim(a, row + 1, first.shape[row], "the number of rows of outs[0]");
    check_strided(a);
}

void check_first(const foveal_tensor& first) {
    const Argument a{"outs", first, 0};
    require_known_rank(a);
    if (first.rank != 4) require_rank(a, 3, "a partial result ([total_q, h_q, d_v], or rank 4: [b, s_q, h_q, d_v])");
    if (!is_float(a.dtype())) refuse("outs[0].dtype is " + name_of(a.dtype()) + "; supported are f32, bf16 and f16");
}

void check_parts(const foveal_merge_args& args) {
    const foveal_tensor& first = args.outs[0];
    check_first(first);
    for (int32_t n = 0; n < args.parts; ++n) {
        const Argument out{"outs", args.outs[n], n}, lse{"lses", args.lses[n], n};
        check_out(out, first);
        require_dtype(out, dtype_of(first), "outs[0]'s dtype");
        check_lse(lse, first);
    }
}

void check_merged(const foveal_merge_args& args) {
    const foveal_tensor& first = args.outs[0];
    const Argument out{"out", args.out}, lse{"lse", args.lse};
    check_out(out, first);
    // From f32 to any, rounded once; from 16 bits to f32, or as they are.
    if (out.dtype() != DType::f32 && (dtype_of(first) != DType::f32 || !is_float(out.dtype())))
        require_dtype(out, dtype_of(first), "outs[0]'s dtype (or f32)");
    require_no_overlap(out);
    require_known_rank(lse);
    if (!lse.present()) return;
    check_lse(lse, first);
    require_no_overlap(lse);
}

void check_overlaps(const foveal_merge_args& args) {
    const Placed out{{"out", args.out}}, lse{{"lse", args.lse}};
    require_apart(out, lse);
    for (int32_t n = 0; n < args.parts; ++n) {
        const Placed part_out{{"outs", args.outs[n], n}}, part_lse{{"lses", args.lses[n], n}};
        require_apart_or_same(out, part_out);
        require_apart(out, part_lse);
        require_apart(lse, part_out);
        require_apart_or_same(lse, part_lse);
    }
}

MergePart part_of(const Argument& out, const Argument& lse) {
    MergePart part;
    part.out = const_cast<void*>(data_of(out));
    part.lse = static_cast<float*>(const_cast<void*>(data_of(lse)));
    part.out_stride = strides_of(out.tensor);
    if (lse.present()) part.lse_stride = lse_strides_of(lse.tensor);
    return part;
}

}  // namespace

Merge validate(const foveal_merge_args& args) {
    check_options(args);
    check_parts(args);
    check_merged(args);

    Merge merge;
    const foveal_tensor& first = args.outs[0];
    const int row = first.rank - 3;
    merge.dtype = dtype_of(first);
    merge.out_dtype = dtype_of(args.out);
    merge.batch = row == 1 ? first.shape[0] : 1;
    merge.rows = first.shape[row];
    merge.heads = first.shape[row + 1];
    merge.head_dim = first.shape[row + 2];
    merge.parts = args.parts;
    for (int32_t n = 0; n < args.parts; ++n)
        merge.part[static_cast<size_t>(n)] = part_of({"outs", args.outs[n], n}, {"lses", args.lses[n], n});
    merge.merged = part_of({"out", args.out}, {"lse", args.lse});
    check_overlaps(args);
    return merge;
}

}  // namespace foveal
