#include "sm90/forward/e4m3/support.hpp"

#include <algorithm>
#include <string>

#include "sm90/forward/e4m3/tiles.hpp"
#include "sm90/forward/support.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kWidest = 128;  // head dimension

[[noreturn]] void refuse(const std::string& message) {
    throw Error(FOVEAL_UNSUPPORTED, message + " beside e4m3 q, which the cpu backend supports and sm90 does not yet");
}

void check_options(const ForwardProblem& p) {
    if (p.drops_weights()) refuse("dropout_p is " + std::to_string(p.dropout_p));
    if (p.keys == KeyForm::paged) refuse("block_table (or page_indices) is present");
    if (p.varlen != (p.keys == KeyForm::varlen)) refuse("q and the keys are of different forms");
    if (p.has_query_offset) refuse("query_offset is present");
    if (p.has_tree) refuse("tree_mask is present");
    if (p.softcap > 0) refuse("softcap is " + std::to_string(p.softcap));
    if (p.has_alibi) refuse("alibi_slopes is present");
    if (p.has_bias) refuse("bias is present");
    if (p.has_mask) refuse("mask is present");
    if (p.out_dtype != DType::bf16 && p.out_dtype != DType::f16) refuse("out.dtype is " + name_of(p.out_dtype));
    if (p.k_descale.of_rows || p.v_descale.of_rows)
        refuse(std::string(p.k_descale.of_rows ? "k" : "v") + "_descale has a value for each row");
}

}  // namespace

int32_t e4m3_head_dim(const ForwardProblem& p) { return std::max(p.head_dim, p.head_dim_v) <= 64 ? 64 : 128; }

void check_e4m3_supported(const ForwardProblem& p) {
    require_scale(p, "the sm90 backend");
    check_options(p);
    check_head_dim("q", p.head_dim, kWidest);
    check_head_dim("v", p.head_dim_v, kWidest);
    check_strides("q", p.q, bytes_of(p.dtype));
    check_strides("k", p.k, bytes_of(p.dtype));
    check_strides("v", p.v, bytes_of(p.dtype));
    check_strides("out", p.out, bytes_of(p.out_dtype));
    check_tile_count(p, E4m3Config{p.out_dtype, e4m3_head_dim(p), p.wants_lse}.walk());
}

}  // namespace foveal::sm90
