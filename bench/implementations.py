"""Who is compared: each entry makes, from a case and its tensors, a call and a way to look at the call's result.

Names: foveal (or the names given with --library), and the peers cudnn, fa2 and, where d > 256, efficient (all through
PyTorch's SDPA), torch_cpu, fa3 (the wheel fa3-fwd), flashinfer. A peer that cannot do a case, or is not there, raises;
the caller says so. Each names the fields of a case that it handles beyond shape and type (Case.require): whatever else
a case asks for is refused, and never timed as a plain one.
"""

import foveal
import torch
from cases import NotMeasured
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

WINDOW = ("window_left", "window_right")


def foveal_build(path, case, q, k, v):
    """libfoveal.so at `path`; "": the package's own."""
    case.require((*WINDOW, "softcap", "varlen", "bhsd"), "compare.py's call of foveal")
    out = torch.full((*q.shape[:-1], v.shape[-1]), float("nan"), dtype=q.dtype, device=q.device)
    options = {"causal": case.causal, "window": case.window, "softcap": case.softcap, "out": out}
    attention, arguments = foveal.attention, (q, k, v)
    if case.varlen:
        attention, arguments = foveal.attention_varlen, (q, k, v, *case.offsets(q.device))
    if not path:
        return lambda: attention(*arguments, **options)

    def call():
        before = foveal.use_library(path)
        try:
            return attention(*arguments, **options)
        finally:
            foveal.use_library(before)

    return call


def _sdpa_arguments(case, q, k, v):
    case.require(("window_right", "bhsd"), "PyTorch's SDPA")
    if case.window[1] not in (None, 0):
        raise NotMeasured("PyTorch's SDPA has no windows")
    if case.causal and not case.square:
        raise NotMeasured("PyTorch's SDPA aligns its causal mask to the first key")
    views = [x.transpose(1, 2) for x in (q, k, v)]
    return views, {"is_causal": case.causal, "enable_gqa": case.heads_q != case.heads_k}


def sdpa(backend, case, q, k, v, **more):
    """PyTorch's, by one of its backends. more: of its own arguments."""
    views, options = _sdpa_arguments(case, q, k, v)

    def call():
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*views, **options, **more).transpose(1, 2)

    return call


def cudnn(case, q, k, v):
    return sdpa(SDPBackend.CUDNN_ATTENTION, case, q, k, v)


def efficient(case, q, k, v):
    if case.head_dim <= 256 or case.heads_q != case.heads_k:
        raise NotMeasured("the others are faster, or it knows no grouped heads")
    return sdpa(SDPBackend.EFFICIENT_ATTENTION, case, q, k, v)


def fa2(case, q, k, v):
    case.require((*WINDOW, "varlen"), "PyTorch's FlashAttention-2")
    windowed = case.window[0] is not None or case.window[1] not in (None, 0)
    if not case.varlen and not windowed and (case.square or not case.causal):
        return sdpa(SDPBackend.FLASH_ATTENTION, case, q, k, v)
    if case.head_dim != case.head_dim_v:
        raise NotMeasured("FlashAttention-2 needs d = d_v")
    lengths = *case.offsets(q.device), max(case.lengths_q), max(case.lengths_k)
    packed = [x if case.varlen else x.flatten(0, 1) for x in (q, k, v)]
    window = {"window_size_left": case.window[0], "window_size_right": case.window[1]}
    options = window if windowed else {}

    def call():
        out = torch.ops.aten._flash_attention_forward(*packed, *lengths, 0.0, case.causal, False, **options)[0]
        return out.view(*q.shape[:-1], v.shape[-1])

    return call


def torch_cpu(case, q, k, v):
    views, options = _sdpa_arguments(case, q, k, v)
    return lambda: scaled_dot_product_attention(*views, **options).transpose(1, 2)


def fa3(case, q, k, v):
    case.require((*WINDOW, "softcap", "varlen"), "fa3-fwd")
    try:
        import fa3_fwd_interface
    except ImportError as error:
        raise NotMeasured("fa3-fwd is not installed") from error
    if case.dtype != torch.bfloat16:
        raise NotMeasured("fa3-fwd knows bf16 only")
    window = tuple(-1 if side is None else side for side in case.window)
    options = {"causal": case.causal} | ({"window_size": window} if window not in ((-1, -1), (-1, 0)) else {})
    options |= {"softcap": float(case.softcap)} if case.softcap else {}
    first = lambda result: result[0] if isinstance(result, tuple) else result  # noqa: E731
    if not case.varlen:
        return lambda: first(fa3_fwd_interface.flash_attn_func(q, k, v, **options))
    lengths = *case.offsets(q.device), max(case.lengths_q), max(case.lengths_k)
    return lambda: first(fa3_fwd_interface.flash_attn_varlen_func(q, k, v, *lengths, **options))


def flashinfer(case, q, k, v):
    case.require((*WINDOW, "softcap", "varlen"), "flashinfer")
    if case.window[1] not in (None, 0):
        raise NotMeasured("flashinfer has no window to the right")
    try:
        import flashinfer as library
    except ImportError as error:
        raise NotMeasured("flashinfer is not installed") from error
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = library.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        *case.offsets(q.device), case.heads_q, case.heads_k, case.head_dim, head_dim_vo=case.head_dim_v,
        causal=case.causal, window_left=-1 if case.window[0] is None else case.window[0],
        logits_soft_cap=float(case.softcap) or None, q_data_type=q.dtype, kv_data_type=k.dtype,
    )  # fmt: skip
    packed = [x if case.varlen else x.flatten(0, 1) for x in (q, k, v)]
    return lambda: wrapper.run(*packed).view(*q.shape[:-1], v.shape[-1])


PEERS = {
    "cuda": {"cudnn": cudnn, "fa2": fa2, "efficient": efficient, "fa3": fa3, "flashinfer": flashinfer},
    "cpu": {"torch_cpu": torch_cpu},
}
