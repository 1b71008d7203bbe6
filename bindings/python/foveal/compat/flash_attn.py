"""flash_attn_func and flash_attn_varlen_func with the signatures of FlashAttention-3, computed by foveal.

Arguments that change the result are honoured or raise foveal.UnsupportedError by name. Those that only steer
FlashAttention's scheduling (pack_gqa, deterministic: foveal always is) are accepted, max_seqlen_* too: foveal needs none.
"""

from foveal import UnsupportedError
from foveal.torch import attention, attention_varlen

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]


def _refuse(**arguments):
    """arguments: name = (value, the values that mean nothing is asked for)."""
    for name, (value, neutral) in arguments.items():
        if not any(value is n or (n is not None and value == n) for n in neutral):
            raise UnsupportedError(f"{name} is {value!r}; foveal supports {' or '.join(map(repr, neutral))}")


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
    limit. Raises foveal.UnsupportedError for qv, *_descale, num_splits > 1 and sm_margin, otherwise as foveal.attention.
    """
    _refuse(qv=(qv, [None]), q_descale=(q_descale, [None]), k_descale=(k_descale, [None]), v_descale=(v_descale, [None]))
    _refuse(num_splits=(num_splits, [0, 1]), sm_margin=(sm_margin, [0]))
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
    _refuse(qv=(qv, [None]), q_descale=(q_descale, [None]), k_descale=(k_descale, [None]), v_descale=(v_descale, [None]))
    _refuse(num_splits=(num_splits, [0, 1]), sm_margin=(sm_margin, [0]))
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
