#include "backend/plan.hpp"

#include <sstream>

namespace foveal {
namespace {

std::string side_text(int64_t width) { return width == FOVEAL_UNLIMITED ? "unlimited" : std::to_string(width); }

void describe_mask(std::ostream& out, const ForwardProblem& p) {
    out << "mask       left " << side_text(p.window_left) << ", right " << side_text(p.window_right) << ", "
        << (p.alignment == FOVEAL_TOP_LEFT ? "top-left" : "bottom-right");
    if (p.chunk > 0) out << ", chunks of " << p.chunk;
    out << (p.has_mask ? ", boolean mask\n" : "\n");
}

void describe_scores(std::ostream& out, const ForwardProblem& p) {
    if (p.softcap == 0 && !p.has_alibi && !p.has_bias && !p.has_sinks) return;
    out << "scores    ";
    if (p.softcap > 0) out << " softcap " << p.softcap;
    if (p.has_alibi) out << " alibi";
    if (p.has_bias) out << " bias " << name_of(p.bias_dtype);
    if (p.has_sinks) out << " sinks";
    out << '\n';
}

}  // namespace

std::string describe(const ForwardProblem& p) {
    std::ostringstream out;
    out << "problem    " << (p.varlen ? "varlen" : "dense") << ' ' << name_of(p.dtype) << ", batch " << p.batch
        << ", rows " << p.rows_q << " x " << p.rows_k << (p.varlen ? " in total" : "") << ", heads " << p.heads_q
        << " / " << p.heads_k << ", d " << p.head_dim << ", d_v " << p.head_dim_v << ", scale " << p.scale << '\n';
    describe_mask(out, p);
    describe_scores(out, p);
    return out.str();
}

}  // namespace foveal
