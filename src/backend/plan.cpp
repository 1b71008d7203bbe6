#include "backend/plan.hpp"

#include <sstream>

namespace foveal {
namespace {

std::string side_text(int64_t width) { return width == FOVEAL_UNLIMITED ? "unlimited" : std::to_string(width); }

// Where they lie, unless as q does.
void describe_keys(std::ostream& out, const ForwardProblem& p) {
    if (p.keys == KeyForm::paged)
        out << "keys       in " << p.pages << " pages of " << p.page_size << " rows, named by "
            << (p.lists_pages ? "page_indptr and page_indices" : "block_table") << '\n';
    else if (p.varlen != (p.keys == KeyForm::varlen))
        out << "keys       " << (p.varlen ? "dense\n" : "varlen\n");
}

// Of k, v and out, unless they are q's.
void describe_types(std::ostream& out, const ForwardProblem& p) {
    if (p.keys_dtype != p.dtype) out << "k and v    " << name_of(p.keys_dtype) << '\n';
    if (p.out_dtype != p.dtype) out << "out        " << name_of(p.out_dtype) << '\n';
}

void describe_mask(std::ostream& out, const ForwardProblem& p) {
    out << "mask       left " << side_text(p.window_left) << ", right " << side_text(p.window_right) << ", "
        << (p.has_query_offset               ? "query_offset"
            : p.alignment == FOVEAL_TOP_LEFT ? "top-left"
                                             : "bottom-right");
    if (p.chunk > 0) out << ", chunks of " << p.chunk;
    if (p.has_tree) out << ", tree mask";
    out << (p.has_mask ? ", boolean mask\n" : "\n");
}

void describe_scores(std::ostream& out, const ForwardProblem& p) {
    if (p.softcap == 0 && !p.has_alibi && !p.has_bias && !p.has_sinks && p.dropout_p == 0) return;
    out << "scores    ";
    if (p.softcap > 0) out << " softcap " << p.softcap;
    if (p.has_alibi) out << " alibi";
    if (p.has_bias) out << " bias " << name_of(p.bias_dtype);
    if (p.has_sinks) out << " sinks";
    if (p.dropout_p > 0) out << " dropout " << p.dropout_p;
    out << '\n';
}

}  // namespace

std::string describe(const ForwardProblem& p) {
    std::ostringstream out;
    out << "problem    " << (p.varlen ? "varlen" : "dense") << ' ' << name_of(p.dtype) << ", batch " << p.batch
        << ", rows " << p.rows_q << " x " << p.rows_k << (p.varlen ? " in total" : "") << ", heads " << p.heads_q
        << " / " << p.heads_k << ", d " << p.head_dim << ", d_v " << p.head_dim_v << ", scale " << p.scale << '\n';
    describe_types(out, p);
    describe_keys(out, p);
    describe_mask(out, p);
    describe_scores(out, p);
    return out.str();
}

std::string describe(const BackwardProblem& p) {
    std::ostringstream out;
    out << describe(p.forward) << "gradients ";
    const auto name = [&](const char* text, DType dtype) {
        out << ' ' << text;
        if (dtype != p.forward.dtype) out << ' ' << name_of(dtype);
    };
    if (p.wants_dq) name("dq", p.dq_dtype);
    if (p.wants_dk) name("dk", p.dk_dtype);
    if (p.wants_dv) name("dv", p.dv_dtype);
    if (p.wants_dsinks) out << " dsinks";
    if (p.wants_dbias) out << " dbias " << name_of(p.dbias_dtype);
    if (p.wants_dalibi) out << " dalibi_slopes";
    out << (p.has_dlse ? ", through dout and dlse\n" : ", through dout\n");
    return out.str();
}

}  // namespace foveal
