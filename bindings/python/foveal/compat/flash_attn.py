"""flash_attn_func and flash_attn_varlen_func with the signatures of FlashAttention-3, computed by foveal.

Arguments that change the result are honoured or raise foveal.UnsupportedError by name. Accepted are those that only
steer FlashAttention's scheduling (pack_gqa; deterministic, which foveal always is) and max_seqlen_*: foveal needs none.
"""

from foveal import UnsupportedError
from foveal.torch import attention, attention_varlen

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]


def _refuse(num_splits, sm_margin, **tensors):
    for name, value in tensors.items():
        if value is not None:
            raise UnsupportedError(f"{name} is {value!r}; foveal supports None")
    if num_splits not in (0, 1):
        raise UnsupportedError(f"num_splits is {num_splits}; foveal supports 0 and 1")
    if sm_margin != 0:
        raise UnsupportedError(f"sm_margin is {sm_margin}; foveal supports 0")


def _options(softmax_scale, causal, window_size, attention_chunk, softcap):
    left, right = (None if side is None or side < 0 else side for side in window_size)
    return {
        "scale": softmax_scale,
        "causal": bool(causal),
        "window": (left, 0 if causal else right),  # FlashAttention: causal wins over the right side
        "softcap": float(softcap),
        "chunk": attention_chunk,
    }


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """q [b, s_q, h_q, d], k [b, s_k, h_k, d], v [b, s_k, h_k, d_v] -> out [b, s_q, h_q, d_v].

    return_attn_probs: (out, lse), lse float32 [b, h_q, s_q]. window_size: keys left and right of the position, -1: no
    limit. Raises foveal.UnsupportedError for qv, *_descale, num_splits > 1 and sm_margin; else as foveal.attention.
    """
    _refuse(num_splits, sm_margin, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
    return attention(q, k, v, return_lse=bool(return_attn_probs), **options)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """q [total_q, h_q, d], k [total_k, h_k, d], v [total_k, h_k, d_v] -> out [total_q, h_q, d_v].

    cu_seqlens_q, cu_seqlens_k: int32 [b + 1]. max_seqlen_q and max_seqlen_k are not needed and not looked at.
    return_attn_probs: (out, lse), lse float32 [h_q, total_q]. Raises as flash_attn_func.
    """
    _refuse(num_splits, sm_margin, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
    return attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        return_lse=bool(return_attn_probs),
        **options,
    )
