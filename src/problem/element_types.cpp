#include "problem/element_types.hpp"

#include <string>

#include "problem/argument.hpp"
#include "problem/strides.hpp"

namespace foveal {
namespace {

// A tensor that may be in e4m3, and its descale.
struct Quantisable {
    Argument tensor, descale;
    bool of_keys;

    // Packed rows have none: [total_k, h_k] would look like [b, h_k].
    bool may_have_row_descales() const { return of_keys && tensor.tensor.rank == 4; }
};

void check_descale(const Quantisable& of, int64_t batch, int64_t heads_k) {
    const Argument& descale = of.descale;
    if (!descale.present()) return;
    if (of.tensor.dtype() != DType::e4m3)
        refuse(descale.text() + " is present, but " + of.tensor.text() + ".dtype is " + name_of(of.tensor.dtype()) +
               "; a descale belongs to e4m3");
    if (descale.tensor.rank == 3 && of.may_have_row_descales()) {
        for (int i = 0; i < 3; ++i) require_dim(descale, i, of.tensor.tensor.shape[i], of.tensor.dim(i).c_str());
    } else {
        require_rank(descale, 2, "a value for each sequence and K/V head ([b, h_k])");
        require_dim(descale, 0, batch, "the batch size");
        require_dim(descale, 1, heads_k, "the number of k heads");
    }
    require_dtype(descale, DType::f32, descale.name);
    check_strided(descale, LastStride::one_or_shared);
}

}  // namespace

void check_element_types(const foveal_forward_args& args) {
    const Argument q{"q", args.q}, k{"k", args.k}, v{"v", args.v}, out{"out", args.out};
    if (q.dtype() == DType::e4m3) {
        require_dtype(k, DType::e4m3, "q's dtype");
        require_dtype(v, DType::e4m3, "q's dtype");
        if (!is_float(out.dtype()))
            refuse("out.dtype is " + name_of(out.dtype()) + "; q's, e4m3, needs bf16, f16 or f32");
        return;
    }
    if (!is_float(q.dtype())) refuse("q.dtype is " + name_of(q.dtype()) + "; supported are f32, bf16, f16 and e4m3");
    if (k.dtype() != DType::e4m3) require_dtype(k, q.dtype(), "q's dtype (or e4m3)");
    require_dtype(v, k.dtype(), "k's dtype");
    if (out.dtype() != DType::f32) require_dtype(out, q.dtype(), "q's dtype (or f32)");
}

void require_bias_dtype(const Argument& bias, const foveal_forward_args& args) {
    if (bias.dtype() == DType::f32) return;
    if (dtype_of(args.q) != DType::e4m3) return require_dtype(bias, dtype_of(args.q), "q's dtype (or f32)");
    if (!is_float(bias.dtype()))
        refuse("bias.dtype is " + name_of(bias.dtype()) + "; q's, e4m3, needs bf16, f16 or f32");
}

void check_descales(const foveal_forward_args& args, int64_t batch, int64_t heads_k) {
    check_descale({{"q", args.q}, {"q_descale", args.q_descale}, false}, batch, heads_k);
    check_descale({{"k", args.k}, {"k_descale", args.k_descale}, true}, batch, heads_k);
    check_descale({{"v", args.v}, {"v_descale", args.v_descale}, true}, batch, heads_k);
}

void take_element_types(const foveal_forward_args& args, ForwardProblem& problem) {
    problem.dtype = dtype_of(args.q);
    problem.keys_dtype = dtype_of(args.k);
    problem.out_dtype = dtype_of(args.out);
    const auto descale = [](const foveal_tensor& t) {
        if (t.rank == 0) return Descale{};
        return t.rank == 3 ? Descale{true, true, row_value_strides_of(t)} : Descale{true, false, head_strides_of(t)};
    };
    problem.q_descale = descale(args.q_descale);
    problem.k_descale = descale(args.k_descale);
    problem.v_descale = descale(args.v_descale);
}

}  // namespace foveal
