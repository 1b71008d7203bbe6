"""FlashAttention's functions, of FlashAttention-2 and FlashAttention-3, computed by foveal.

The two agree on names and meanings but not on positions: behind v (in varlen: behind max_seqlen_k) FlashAttention-2
takes dropout_p, softmax_scale, causal, and FlashAttention-3 softmax_scale, causal (seqused_q, seqused_k). So what
follows is taken by keyword only.
return_attn_probs=True gives (out, lse), as FlashAttention-3 does.

Arguments that change the result are honoured or raise foveal.UnsupportedError by name: supported is None for qv. Which
weights dropout_p drops, PyTorch's generator of q's device decides (torch.manual_seed); they are others than
FlashAttention's. Accepted are those that only steer FlashAttention's scheduling (pack_gqa;
deterministic, which foveal always is) and max_seqlen*: foveal needs none. There are
gradients of q, k, v and alibi_slopes, through out and through lse, and of a cache that is only read; none of keys in
pages (page_table, cache_batch_idx), and none of appending: what requires one there raises.
"""

from collections.abc import Sequence
from typing import Any

import torch
from foveal import InvalidArgument, UnsupportedError
from foveal.torch import append, attention, attention_varlen

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]


def _refuse_positional(positional, last, following="softmax_scale, causal"):
    if positional:
        raise TypeError(
            f"{len(positional)} positional argument(s) after {last}, the first {positional[0]!r}: FlashAttention-2 "
            f"means dropout_p, softmax_scale, causal there, FlashAttention-3 {following}; pass them by keyword"
        )


def _refuse(num_splits, sm_margin, **absent):
    for name, value in absent.items():
        if value is not None:
            raise UnsupportedError(f"{name} is {value!r}; foveal supports None")
    if num_splits not in (0, 1):
        raise UnsupportedError(f"num_splits is {num_splits}; foveal supports 0 and 1")
    if sm_margin != 0:
        raise UnsupportedError(f"sm_margin is {sm_margin}; foveal supports 0")


def _is_integer(value):
    return hasattr(type(value), "__index__") and not isinstance(value, bool)


def _window(window_size, causal):
    if window_size is None:
        window_size = (None, None)
    pair = isinstance(window_size, (tuple, list)) and len(window_size) == 2
    if not pair or not all(side is None or _is_integer(side) for side in window_size):
        raise TypeError(
            f"window_size is {window_size!r}; it must be a pair (left, right) of integers, -1 or None for no limit, "
            "or None"
        )
    left, right = (None if side is None or side < 0 else side for side in window_size)
    return left, 0 if causal else right  # FlashAttention: causal wins over the right side


def _flag(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return value


def _options(
    softmax_scale, causal, window_size, attention_chunk, softcap, alibi_slopes, return_attn_probs, dropout_p=0.0
):
    if dropout_p != 0 and return_attn_probs:
        raise UnsupportedError(
            f"return_attn_probs is True and dropout_p is {dropout_p!r}, for which FlashAttention-2 returns S_dmask; "
            "foveal never has the weights: foveal.dropout_mask() has the mask of foveal.attention(dropout_state=...)"
        )
    return {
        "dropout_p": dropout_p,
        "scale": softmax_scale,
        "causal": _flag("causal", causal),
        "window": _window(window_size, causal),
        "softcap": softcap,
        "chunk": attention_chunk,
        "alibi_slopes": alibi_slopes,
        "return_lse": _flag("return_attn_probs", return_attn_probs),
    }


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *positional: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int | None] | None = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """q [b, s_q, h_q, d], k [b, s_k, h_k, d], v [b, s_k, h_k, d_v] -> out [b, s_q, h_q, d_v].

    return_attn_probs: (out, lse), lse float32 [b, h_q, s_q]. window_size: keys left and right of the position, -1 or
    None: no limit. alibi_slopes: float32 [h_q] or [b, h_q]. Raises TypeError for positional arguments after v,
    foveal.UnsupportedError for qv, num_splits > 1, sm_margin, and return_attn_probs beside dropout_p; else as
    foveal.attention. *_descale: float32 [b, h_k], of q, k and v in float8_e4m3fn.
    """
    _refuse_positional(positional, "v")
    _refuse(num_splits, sm_margin, qv=qv)
    options = _options(
        softmax_scale, causal, window_size, attention_chunk, softcap, alibi_slopes, return_attn_probs, dropout_p
    )
    options |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    return attention(q, k, v, **options)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *positional: Any,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int | None] | None = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> Any:
    """q [total_q, h_q, d], k [total_k, h_k, d], v [total_k, h_k, d_v] -> out [total_q, h_q, d_v].

    cu_seqlens_q, cu_seqlens_k: int32 [b + 1]. max_seqlen_q and max_seqlen_k are not needed and not looked at.
    return_attn_probs: (out, lse), lse float32 [h_q, total_q]. block_table: int32 [b, max_pages], k and v are pages,
    [pages, page_size, h_k, d], and cu_seqlens_k gives their lengths, as seqused_k does where it is given. Raises as
    flash_attn_func.
    """
    _refuse_positional(positional, "max_seqlen_k", "seqused_q, seqused_k")
    _refuse(num_splits, sm_margin, qv=qv)
    options = _options(
        softmax_scale, causal, window_size, attention_chunk, softcap, alibi_slopes, return_attn_probs, dropout_p
    )
    options |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    if block_table is not None:
        used = cu_seqlens_k.diff() if seqused_k is None else seqused_k
        options |= {"seqused_q": seqused_q, "seqused_k": used, "block_table": block_table}
        return attention_varlen(q, k, v, cu_seqlens_q, None, **options)
    return attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q=seqused_q, seqused_k=seqused_k, **options)


def _unpack(packed, name, parts, rank):
    """Views of `parts` tensors that lie in one, [..., parts, h, d] of `rank` dimensions."""
    if packed.ndim != rank or packed.shape[-3] != parts:
        lead = "total" if rank == 4 else "b, s"
        raise InvalidArgument(f"{name} has shape {tuple(packed.shape)}; it must be [{lead}, {parts}, heads, d]")
    return packed.unbind(-3)


def _unpack_qkv(qkv, num_heads_q, rank):
    if num_heads_q is None:
        return _unpack(qkv, "qkv", 3, rank)
    heads = qkv.shape[-2] - num_heads_q
    if qkv.ndim != rank - 1 or heads <= 0 or heads % 2 != 0:
        lead = "total" if rank == 4 else "b, s"
        raise InvalidArgument(
            f"qkv has shape {tuple(qkv.shape)}; with num_heads_q {num_heads_q} it must be "
            f"[{lead}, num_heads_q + 2 h_k, d]"
        )
    return qkv.split([num_heads_q, heads // 2, heads // 2], dim=-2)


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    *positional: Any,
    num_heads_q: int | None = None,
    **options: Any,
) -> Any:
    """flash_attn_func of q, k and v in one tensor: qkv [b, s, 3, h, d], or [b, s, num_heads_q + 2 h_k, d].

    The other arguments are flash_attn_func's, by keyword.
    """
    _refuse_positional(positional, "qkv")
    return flash_attn_func(*_unpack_qkv(qkv, num_heads_q, 5), **options)


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    *positional: Any,
    **options: Any,
) -> Any:
    """flash_attn_func of q [b, s_q, h_q, d] and kv [b, s_k, 2, h_k, d]; the other arguments are its own, by keyword."""
    _refuse_positional(positional, "kv")
    return flash_attn_func(q, *_unpack(kv, "kv", 2, 5), **options)


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int | None = None,
    *positional: Any,
    num_heads_q: int | None = None,
    **options: Any,
) -> Any:
    """flash_attn_varlen_func of q, k and v in one tensor: qkv [total, 3, h, d], or [total, num_heads_q + 2 h_k, d].

    The other arguments are flash_attn_varlen_func's, by keyword.
    """
    _refuse_positional(positional, "max_seqlen")
    return flash_attn_varlen_func(*_unpack_qkv(qkv, num_heads_q, 4), cu_seqlens, cu_seqlens, **options)


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *positional: Any,
    **options: Any,
) -> Any:
    """flash_attn_varlen_func of q [total_q, h_q, d] and kv [total_k, 2, h_k, d]; the others by keyword."""
    _refuse_positional(positional, "max_seqlen_k")
    return flash_attn_varlen_func(q, *_unpack(kv, "kv", 2, 4), cu_seqlens_q, cu_seqlens_k, **options)


def _cache_lengths(cache_seqlens, k_cache, page_table, batch, device):
    if cache_seqlens is None:
        if page_table is not None:
            raise InvalidArgument("cache_seqlens is None beside page_table; pages do not say how many keys there are")
        cache_seqlens = k_cache.shape[1]
    if isinstance(cache_seqlens, torch.Tensor):  # which has __index__ too
        return cache_seqlens
    if not _is_integer(cache_seqlens):
        raise TypeError(f"cache_seqlens is {cache_seqlens!r}; it must be a tensor, int32 [b], an integer or None")
    return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=device)


def _positions(first, q, cu_seqlens_q, advances):
    """Of q's rows, for the rotary embedding: they ascend from each sequence's first one, or all stand there."""
    if cu_seqlens_q is None:
        return first[:, None] + torch.arange(q.shape[1], device=q.device)[None] * int(advances)
    row = torch.arange(q.shape[0], device=q.device)
    sequence = torch.searchsorted(cu_seqlens_q[1:], row, right=True)
    return first[sequence] + (row - cu_seqlens_q[sequence]) * int(advances)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    *positional: Any,
    qv: None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: None = None,
    page_table: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k_new: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int | None] | None = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Any = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Appends k and v to a cache, if they are given, and attends to it; as FlashAttention-3 names and means it.

    q: [b, s_q, h_q, d], or [total_q, h_q, d] with cu_seqlens_q. k_cache, v_cache: [b_cache, s_cache, h_k, d] and
    [b_cache, s_cache, h_k, d_v], with cache_batch_idx int32 [b] where sequence i's row is not row i; or pages, [pages,
    page_size, h_k, d], with page_table int32 [b, max_pages]. They are written where k and v are given: [b, s_new, h_k,
    d], or ragged with cu_seqlens_k_new. cache_seqlens: int32 [b], what the cache holds before; an integer: all alike;
    None: s_cache. rotary_cos, rotary_sin: [positions, rot/2], of the new k and of q, from cache_seqlens on (or
    rotary_seqlens); without causal and window all rows of q stand at the first new position.
    *_descale: as flash_attn_func. return_softmax_lse: (out, lse). Raises TypeError for positional arguments after v,
    foveal.UnsupportedError for qv, cache_leftpad, num_splits > 1, sm_margin, and *_descale beside new k and v;
    scheduler_metadata is not needed and not looked at.
    """
    _refuse_positional(positional, "v", "qv, rotary_cos")
    _refuse(num_splits, sm_margin, qv=qv, cache_leftpad=cache_leftpad)
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap, None, False)
    options["return_lse"] = _flag("return_softmax_lse", return_softmax_lse)
    options |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    if k is not None and (k_descale is not None or v_descale is not None):
        raise UnsupportedError(
            "k_descale or v_descale is given beside new k and v, which FlashAttention takes as quantised already; "
            "foveal.append() converts rows to the cache's type, with k_scale and v_scale"
        )
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    if page_table is not None and cache_batch_idx is not None:
        raise InvalidArgument("page_table and cache_batch_idx are given; a cache has rows or pages")
    lengths = _cache_lengths(cache_seqlens, k_cache, page_table, batch, q.device)
    pages = page_table if cache_batch_idx is None else cache_batch_idx[:, None]
    turns = rotary_cos is not None or rotary_sin is not None
    if (k is None) != (v is None):
        raise InvalidArgument("one of k and v is None; there are new rows of both or of neither")
    if k is None and turns:
        raise InvalidArgument(
            "rotary_cos or rotary_sin is given without new k and v; the cache's rows have been turned"
        )
    if k is not None and v is not None:
        rotary: dict[str, Any] = {"cos": rotary_cos, "sin": rotary_sin, "interleaved": rotary_interleaved}
        first = lengths if rotary_seqlens is None else rotary_seqlens
        of_k = (
            {} if not turns or rotary_seqlens is None else {"positions": _positions(first, k, cu_seqlens_k_new, True)}
        )
        where = {"cache_lengths": lengths, "cu_seqlens": cu_seqlens_k_new, "block_table": pages}
        append(k, v, k_cache, v_cache, **where, **(rotary if turns else {}), **of_k)
        if turns:
            advances = causal or any(side is not None for side in options["window"])
            q = append(None, None, None, None, q=q, **rotary, positions=_positions(first, q, cu_seqlens_q, advances))
        lengths = lengths + (k.shape[1] if cu_seqlens_k_new is None else cu_seqlens_k_new.diff())
    options |= {"seqused_k": lengths, "block_table": pages}
    if pages is None and k_cache.shape[0] != batch:
        k_cache, v_cache = k_cache[:batch], v_cache[:batch]
    if cu_seqlens_q is None:
        return attention(q, k_cache, v_cache, **options)
    return attention_varlen(q, k_cache, v_cache, cu_seqlens_q, None, **options)
