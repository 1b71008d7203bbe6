#include "sm90/scores/options.hpp"

#include <algorithm>

#include "sm90/scores/matrix_vectors.hpp"

namespace foveal::sm90 {
namespace {

ScoreMatrix score_matrix(const ScoreStrides& strides, DType dtype, int64_t columns) {
    return {nullptr,
            strides.batch,
            strides.row,
            strides.head,
            static_cast<int32_t>(strides.key),
            has_whole_vectors(strides, columns, static_cast<size_t>(bytes_of(dtype)))};
}

}  // namespace

ScoreOptions score_options_of(const ForwardProblem& p) {
    ScoreOptions options{};
    options.scale = p.scale;
    if (p.softcap > 0) {
        options.softcap = p.softcap;
        // Its products with other finite numbers are none that would be NaN.
        constexpr double kLargestArgument = 1e38;
        const double argument = static_cast<double>(p.scale) / p.softcap;
        options.cap_argument = static_cast<float>(std::clamp(argument, -kLargestArgument, kLargestArgument));
        options.cap = softcap_polynomial(p.scale, p.softcap);
        if (p.softcap > kLargestFastSoftcap) options.inverse_softcap = 1 / p.softcap;
    }
    options.alibi_batch_stride = p.alibi.batch;
    options.only_alibi = p.has_alibi && p.softcap <= 0 && !p.has_bias && !p.has_mask && !p.has_tree;
    // Under ALiBi the nearest keys weigh most: a row that meets them first rarely outgrows its reference.
    options.last_keys_first = p.has_alibi && p.window().right < kUnlimitedWidth;
    options.bias = score_matrix(p.bias, p.bias_dtype, p.rows_k);
    options.bias_is_f32 = p.bias_dtype == DType::f32;
    options.mask = score_matrix(p.mask, DType::boolean, p.rows_k);
    options.may_be_wide = p.has_bias || p.has_alibi || p.softcap > 0x1p100F;
    options.alibi_head_stride = static_cast<int32_t>(p.alibi.head);
    options.sinks_head_stride = static_cast<int32_t>(p.sinks.head);
    options.seqused_q_stride = p.seqused_q_stride;
    options.seqused_k_stride = p.seqused_k_stride;
    return options;
}

}  // namespace foveal::sm90
