"""Who is compared: each entry makes, from a case and its tensors, a call and a way to look at the call's result.

Names: foveal (or the names given with --library), and the peers cudnn, fa2 and, where d > 256, efficient (all through
PyTorch's SDPA), torch_cpu, torch_varlen, fa3 (the wheel fa3-fwd), flashinfer and its two decoders, flashinfer_fa2 and
flashinfer_xqa. Keys in pages lie in memory once more, without pages, for torch_cpu. two_calls is foveal's too: keys
that all sequences share read once, and merged, whose 16-bit parts are rounded once more than the result of one call. A
peer that cannot do a case, or is not there, raises; the caller says so. Each names the fields of a case that it handles
beyond shape and type (Case.require): whatever else a case asks for is refused, and never timed as a plain one.
"""

import inspect

import foveal
import torch
from cases import NotMeasured, ends_of
from reference import KEY_FORMS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

WINDOW = ("window_left", "window_right")


def foveal_build(path, case, q, k, v):
    """libfoveal.so at `path`; "": the package's own."""
    case.require((*WINDOW, "softcap", "varlen", "bhsd", *KEY_FORMS), "compare.py's call of foveal")
    out = torch.full((*q.shape[:-1], v.shape[-1]), float("nan"), dtype=q.dtype, device=q.device)
    options = {"causal": case.causal, "window": case.window, "softcap": case.softcap, **key_form(case, q.device)}
    attention, arguments = foveal.attention, (q, k, v)
    ends_q, ends_k = case.offsets(q.device)
    if case.varlen or case.keys == "varlen":
        ends_k = ends_k if case.keys == "varlen" else None  # else pages, or dense keys
        attention, arguments = foveal.attention_varlen, (q, k, v, ends_q, ends_k)
        if not case.varlen:
            arguments = (q.flatten(0, 1), k, v, ends_q, ends_k)
            out = out.flatten(0, 1)
    options["out"] = out
    if bytes_ := _workspace_bytes(case, path, arguments, options):
        options["workspace"] = foveal.Workspace(bytes_, like=q)
    if out.shape[:-1] != q.shape[:-1]:
        return _as(q, through(path, lambda: attention(*arguments, **options)))
    return through(path, lambda: attention(*arguments, **options))


def _as(q, call):
    return lambda: (lambda out: out.view(*q.shape[:-1], out.shape[-1]))(call())


def key_form(case, device):
    """Which keys a sequence has, where their form does not say it."""
    options = {}
    if case.keys == "pages" or case.fields["used_k"] or (case.varlen and case.keys == "dense"):
        options["seqused_k"] = torch.tensor(case.used_k, dtype=torch.int32, device=device)
    if case.keys == "pages" and case.fields["csr"]:
        options["page_indptr"] = ends_of(map(len, case.pages), device)
        options["page_indices"] = torch.tensor(sum(case.pages, []), dtype=torch.int32, device=device)
    elif case.keys == "pages":
        options["block_table"] = case.block_table(device)
    return options


def _workspace_bytes(case, path, arguments, options):
    """What makes the call fast, as its plan says; other builds than the package's own are asked the same."""
    ends = {} if len(arguments) == 3 else {"cu_seqlens_q": arguments[3], "cu_seqlens_k": arguments[4]}
    rest = {name: value for name, value in options.items() if name != "out"}
    backend = "sm90" if arguments[0].is_cuda else "cpu"
    plan = through(path, lambda: foveal.plan(*arguments[:3], **ends, **rest, backend=backend))()
    return plan.workspace_bytes


def through(path, call):
    """The call with the build at `path`; "": the package's own."""
    if not path:
        return call

    def through():
        before = foveal.use_library(path)
        try:
            return call()
        finally:
            foveal.use_library(before)

    return through


def two_calls(case, q, k, v):
    """Keys that all sequences share by one call over all queries, each sequence's own by another, and a merge."""
    case.require(("window_right", *KEY_FORMS), "foveal's two calls and a merge")
    if not case.common or case.varlen:
        raise NotMeasured("no keys are shared")
    batch, rows, heads = q.shape[:3]
    common, pages = case.common // case.page_size, case.block_table(q.device)
    lengths = {"seqused_k": torch.tensor([case.common], dtype=torch.int32, device=q.device)}
    first = {**lengths, "block_table": pages[:1, :common].contiguous(), "return_lse": True}
    own = torch.tensor([used - case.common for used in case.used_k], dtype=torch.int32, device=q.device)
    second = {
        "seqused_k": own,
        "block_table": pages[:, common:].contiguous(),
        "causal": case.causal,
        "return_lse": True,
    }
    together = q.reshape(1, batch * rows, heads, -1)

    def call():
        out, lse = foveal.attention(together, k, v, **first)
        lse = lse.view(heads, batch, rows).transpose(0, 1)  # [b, h, s]
        out_own, lse_own = foveal.attention(q, k, v, **second)
        return foveal.merge([out.view(out_own.shape), out_own], [lse, lse_own])[0]

    return call


def _sdpa_arguments(case, q, k, v):
    case.require(("window_right", "bhsd", *KEY_FORMS), "PyTorch's SDPA")
    if case.varlen:
        raise NotMeasured("PyTorch's SDPA has no packed queries")
    if case.window[1] not in (None, 0):
        raise NotMeasured("PyTorch's SDPA has no windows")
    causal = case.causal and not case.decodes
    if causal and not case.square:
        raise NotMeasured("PyTorch's SDPA aligns its causal mask to the first key")
    views = [x.transpose(1, 2) for x in (q, *case.dense_keys(k, v))]
    return views, {"is_causal": causal, "enable_gqa": case.heads_q != case.heads_k}


def sdpa(backend, case, q, k, v, **more):
    """PyTorch's, by one of its backends. more: of its own arguments."""
    views, options = _sdpa_arguments(case, q, k, v)

    def call():
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*views, **options, **more).transpose(1, 2)

    return call


def _has_no_pages(case, who):
    if case.keys == "pages":
        raise NotMeasured(f"{who} has no pages")


def cudnn(case, q, k, v):
    _has_no_pages(case, "cuDNN, through PyTorch,")
    return sdpa(SDPBackend.CUDNN_ATTENTION, case, q, k, v)


def efficient(case, q, k, v):
    _has_no_pages(case, "PyTorch's memory-efficient kernel")
    if case.head_dim <= 256 or case.heads_q != case.heads_k:
        raise NotMeasured("the others are faster, or it knows no grouped heads")
    return sdpa(SDPBackend.EFFICIENT_ATTENTION, case, q, k, v)


def fa2(case, q, k, v):
    case.require((*WINDOW, "varlen"), "PyTorch's FlashAttention-2")
    windowed = case.window[0] is not None or case.window[1] not in (None, 0)
    if not case.varlen and not windowed and (case.square or case.decodes or not case.causal):
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
    case.require((*WINDOW, "softcap", "varlen", *KEY_FORMS), "flashinfer")
    if case.window[1] not in (None, 0):
        raise NotMeasured("flashinfer has no window to the right")
    try:
        import flashinfer as library
    except ImportError as error:
        raise NotMeasured("flashinfer is not installed") from error
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    options = {"q_data_type": q.dtype, "kv_data_type": k.dtype, "logits_soft_cap": float(case.softcap) or None}
    options |= {"causal": case.causal, "window_left": -1 if case.window[0] is None else case.window[0]}
    packed = q if case.varlen else q.flatten(0, 1)
    ends_q, ends_k = case.offsets(q.device)
    if case.keys == "pages":
        wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        heads = case.heads_q, case.heads_k, case.head_dim, case.page_size
        wrapper.plan(ends_q, *_flashinfer_pages(case, q.device), *heads, **options)
        return lambda: wrapper.run(packed, (k, v)).view(*q.shape[:-1], v.shape[-1])
    if case.used_k != case.lengths_k:
        raise NotMeasured("flashinfer has no shortened keys but in pages")
    wrapper = library.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    heads = case.heads_q, case.heads_k, case.head_dim
    wrapper.plan(ends_q, ends_k, *heads, head_dim_vo=case.head_dim_v, **options)
    keys = [x if case.keys == "varlen" else x.flatten(0, 1) for x in (k, v)]
    return lambda: wrapper.run(packed, *keys).view(*q.shape[:-1], v.shape[-1])


def _flashinfer_pages(case, device):
    """indptr, indices and the rows of each sequence's last page."""
    last = [(used - 1) % case.page_size + 1 for used in case.used_k]
    indices = torch.tensor(sum(case.pages, []), dtype=torch.int32, device=device)
    return ends_of(map(len, case.pages), device), indices, torch.tensor(last, dtype=torch.int32, device=device)


def _flashinfer_decoding(case):
    case.require(("window_right", "softcap", *KEY_FORMS), "flashinfer's decoders")
    if case.keys != "pages" or not case.decodes or case.varlen:
        raise NotMeasured("flashinfer's decoders are for one query a sequence and pages")
    try:
        import flashinfer as library
    except ImportError as error:
        raise NotMeasured("flashinfer is not installed") from error
    return library


def flashinfer_fa2(case, q, k, v):
    library = _flashinfer_decoding(case)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True, backend="fa2")
    heads = case.heads_q, case.heads_k, case.head_dim, case.page_size
    cap = float(case.softcap) or None
    pages = _flashinfer_pages(case, q.device)
    wrapper.plan(*pages, *heads, logits_soft_cap=cap, q_data_type=q.dtype, kv_data_type=k.dtype)
    return lambda: wrapper.run(q[:, 0], (k, v))[:, None]


def flashinfer_xqa(case, q, k, v):
    library = _flashinfer_decoding(case)
    if case.softcap:
        raise NotMeasured("flashinfer's XQA has no softcap")
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=q.device)
    keys = tuple(x.transpose(1, 2).contiguous() for x in (k, v))  # heads before rows, which it is fastest on
    table, lengths = case.block_table(q.device), torch.tensor(case.used_k, dtype=torch.int32, device=q.device)
    options = {"bmm1_scale": case.head_dim**-0.5, "bmm2_scale": 1.0, "kv_layout": "HND", "backend": "xqa"}
    decode = library.decode.trtllm_batch_decode_with_kv_cache
    return lambda: decode(q[:, 0], keys, workspace, table, lengths, max(case.used_k), **options)[:, None]


def torch_varlen(case, q, k, v):
    """PyTorch's varlen_attn on pages, where it takes a block table (2.12 and later)."""
    case.require(("window_right", "varlen", *KEY_FORMS), "PyTorch's varlen_attn")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise NotMeasured("this PyTorch has no varlen_attn") from error
    if case.keys != "pages" or "block_table" not in inspect.signature(varlen_attn).parameters:
        raise NotMeasured("keys without pages, or a varlen_attn without a block table")
    packed = q if case.varlen else q.flatten(0, 1)
    ends_q, ends_k = case.offsets(q.device)[0], ends_of(case.used_k, q.device)
    used = torch.tensor(case.used_k, dtype=torch.int32, device=q.device)
    options = {
        "window_size": (-1, 0 if case.causal else -1),
        "seqused_k": used,
        "block_table": case.block_table(q.device),
    }
    most = max(case.lengths_q), max(case.used_k)
    call = lambda: varlen_attn(packed, k, v, ends_q, ends_k, *most, **options)  # noqa: E731
    return _as(q, call)


PEERS = {
    "cuda": {"cudnn": cudnn, "fa2": fa2, "efficient": efficient, "fa3": fa3, "flashinfer": flashinfer,
             "flashinfer_fa2": flashinfer_fa2, "flashinfer_xqa": flashinfer_xqa, "torch_varlen": torch_varlen,
             "two_calls": two_calls},
    "cpu": {"torch_cpu": torch_cpu, "two_calls": two_calls},
}  # fmt: skip
