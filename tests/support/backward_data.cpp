#include "tests/support/backward_data.hpp"

#include <cmath>
#include <random>
#include <stdexcept>

#include "tests/support/device_data.hpp"

namespace foveal_testing {
namespace {

Shape shape_of(const foveal_tensor& view) { return {view.shape, view.shape + view.rank}; }

Shape strides_of(const foveal_tensor& view) { return {view.stride, view.stride + view.rank}; }

}  // namespace

GradientTensor::GradientTensor(const Case& c, TensorId like, foveal_backend backend, foveal_dtype dtype)
    : shape_(shape_of(layout_of(c, like).view)), tensor_(backend, dtype, shape_, strides_of(layout_of(c, like).view)) {}

int64_t RowPlace::of_q(const Case& c, int64_t channels, int64_t sequence, int64_t head, int64_t row) {
    const int64_t before = c.varlen ? c.first_row_q(sequence) : sequence * c.rows_q;
    return ((before + row) * c.heads_q + head) * channels;
}

int64_t RowPlace::of_k(const Case& c, int64_t channels, int64_t sequence, int64_t head, int64_t row) {
    const int64_t before = c.varlen_k ? c.first_row_k(sequence) : sequence * c.rows_k;
    return ((before + row) * c.heads_k + head) * channels;
}

int64_t RowPlace::of_lse(const Case& c, int64_t sequence, int64_t head, int64_t row) {
    return c.varlen ? head * c.rows_q + c.first_row_q(sequence) + row : (sequence * c.heads_q + head) * c.rows_q + row;
}

BackwardData::BackwardData(const BackwardCase& c, foveal_backend backend)
    : dout(c.forward, TensorId::kOut, backend, c.forward.dtype),
      dq(c.forward, TensorId::kQ, backend, c.forward.dtype),
      dk(c.forward, TensorId::kK, backend, c.forward.dtype),
      dv(c.forward, TensorId::kV, backend, c.forward.dtype),
      case_(c),
      backend_(backend),
      forward_(make_case_data(c.forward, backend)) {
    if (c.dlse) dlse.emplace(c.forward, TensorId::kLse, backend, FOVEAL_F32);
    if (c.forward.sink_logit) dsinks.emplace(c.forward, TensorId::kSinks, backend, FOVEAL_F32);
    if (c.forward.bias) dbias.emplace(c.forward, TensorId::kBias, backend, c.dbias_dtype());
    if (c.forward.alibi != Alibi::kNone) dalibi.emplace(c.forward, TensorId::kAlibi, backend, FOVEAL_F32);
    draw();
}

// Normal values in the used rows; NaN in the others, which nobody may read.
void BackwardData::draw() {
    const Case& c = case_.forward;
    std::vector<float> douts(static_cast<size_t>(elements_of(dout.shape())), NAN);
    std::vector<float> dlses(dlse ? static_cast<size_t>(elements_of(dlse->shape())) : 0, NAN);
    for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
        for (int64_t head = 0; head < c.heads_q; ++head) {
            // A sequence's own, whatever else is in the batch.
            std::seed_seq seeds{static_cast<uint64_t>(c.seed), static_cast<uint64_t>(sequence),
                                static_cast<uint64_t>(head)};
            std::mt19937 random(seeds);
            std::normal_distribution<float> normal;
            for (int64_t row = 0; row < c.used_q(sequence); ++row) {
                const int64_t at = RowPlace::of_q(c, c.head_dim_v, sequence, head, row);
                for (int64_t n = 0; n < c.head_dim_v; ++n) douts[static_cast<size_t>(at + n)] = normal(random);
                if (dlse) dlses[static_cast<size_t>(RowPlace::of_lse(c, sequence, head, row))] = normal(random);
            }
        }
    }
    dout.set(douts);
    if (dlse) dlse->set(dlses);
}

foveal_status BackwardData::run_forward() {
    const foveal_status status = foveal_forward(&forward_->args(), nullptr);
    forward_->synchronize();
    return status;
}

foveal_backward_args BackwardData::args() {
    foveal::Gradients gradients;
    gradients.dq = dq.view();
    gradients.dk = dk.view();
    gradients.dv = dv.view();
    if (dlse) gradients.dlse = dlse->view();
    if (dsinks) gradients.dsinks = dsinks->view();
    if (dbias) gradients.dbias = dbias->view();
    if (dalibi) gradients.dalibi_slopes = dalibi->view();
    foveal_backward_args args = foveal::backward_args(forward_->args(), dout.view(), gradients);
    const size_t bytes = foveal::Plan(args, -1).workspace_bytes();
    if (!workspace_ && bytes > 0) workspace_.emplace(backend_, std::vector<std::byte>(bytes));
    if (bytes > 0) args.workspace = workspace_->data();
    args.workspace_bytes = bytes;
    return args;
}

foveal_status BackwardData::run() {
    const foveal_backward_args all = args();
    const foveal_status status = foveal_backward(&all, nullptr);
    forward_->synchronize();
    return status;
}

foveal_backward_args backward_shape_args(const BackwardCase& c, foveal_backend backend, foveal_forward_args& forward) {
    forward = shape_args(c.forward, backend);
    foveal_backward_args args;
    foveal_backward_args_init(&args);
    const auto like = [](foveal_tensor tensor, foveal_dtype dtype) {
        tensor.dtype = dtype;
        return tensor;
    };
    args.forward = &forward;
    args.dout = forward.out;
    args.dq = forward.q;
    args.dk = forward.k;
    args.dv = forward.v;
    if (c.dlse) args.dlse = forward.lse;
    args.dsinks = forward.sinks;
    if (c.forward.bias) args.dbias = like(forward.bias, c.dbias_dtype());
    args.dalibi_slopes = forward.alibi_slopes;
    return args;
}

}  // namespace foveal_testing
