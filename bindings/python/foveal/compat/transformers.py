"""attn_implementation="foveal" for Hugging Face transformers (5.x).

    import foveal.compat.transformers
    foveal.compat.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="foveal", dtype=torch.bfloat16)

Masks are those that transformers makes for "sdpa": boolean, or none where the layer is plainly causal. There is none
either where a window slides over a batch without padding. Sliding windows, soft caps and attention sinks go to the
kernel. What foveal cannot honour raises foveal.UnsupportedError: dropout, output_attentions, and gradients.
"""

import torch
from foveal import UnsupportedError
from foveal.torch import attention, attention_varlen
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = ["attention_forward", "register"]


def register(name="foveal"):
    """Makes attn_implementation=`name` known to transformers."""
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask_for)


def attention_mask_for(q_length, kv_length, attention_mask=None, local_size=None, allow_is_causal_skip=True, **rest):
    """[b, 1, q_length, kv_length] boolean, or None where causality and the sliding window say all."""
    config = rest.get("config")
    slides = local_size is not None and getattr(config, "sliding_window", None) == local_size
    chunks = getattr(config, "attention_chunk_size", None) == local_size
    may_skip = slides and not chunks and allow_is_causal_skip and q_length == kv_length
    if may_skip and not torch.compiler.is_compiling() and (attention_mask is None or bool(attention_mask.all())):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        **rest,
    )


def _is_causal(module, is_causal, attention_mask, rows):
    # A mask says all. One query without a mask sees all keys: it is the last row.
    if attention_mask is not None or rows == 1:
        return False
    return getattr(module, "is_causal", True) if is_causal is None else is_causal


def _slides(module):
    types, layer = getattr(getattr(module, "config", None), "layer_types", None), getattr(module, "layer_idx", None)
    return types is not None and layer is not None and types[layer] == "sliding_attention"


def _mask_and_bias(attention_mask, position_bias, rows, keys):
    """[b or 1, h or 1, rows, keys] each: boolean, and additive."""
    mask, bias = None, position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        mask = attention_mask[..., :keys]
    elif attention_mask is not None:
        bias = attention_mask[..., :keys] if bias is None else bias + attention_mask[..., :keys]
    shaped = []
    for scores in (mask, bias):
        if scores is not None:
            scores = scores.expand(-1, -1, rows, -1)
            if scores.stride(2) == 0 or scores.stride(3) != 1:  # foveal shares batches and heads, not rows
                scores = scores.contiguous()
        shaped.append(scores)
    return shaped


def attention_forward(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    is_causal=None,
    position_bias=None,
    **kwargs,
):
    """query [b, h_q, s_q, d], key and value [b, h_k, s_k, ·] -> (out [b, s_q, h_q, d_v], None).

    sliding_window: a query sees itself and sliding_window - 1 keys before. softcap: bound of the scores.
    s_aux: sinks [h_q].
    """
    if dropout:
        raise UnsupportedError(f"dropout is {dropout}; foveal supports 0")
    if kwargs.get("output_attentions"):
        raise UnsupportedError("output_attentions is True; foveal never has the weights")
    rows, keys = query.shape[2], key.shape[2]
    causal = _is_causal(module, is_causal, attention_mask, rows)
    mask, bias = _mask_and_bias(attention_mask, position_bias, rows, keys)
    options = {
        "scale": scaling,
        "causal": causal,
        "softcap": softcap or 0.0,
        "sinks": None if s_aux is None else s_aux.to(torch.float32),
    }
    if sliding_window is not None and causal:  # elsewhere it is in the mask, or longer than the keys there are
        options["window"] = (sliding_window - 1, 0)
    elif causal and _slides(module) and keys > module.config.sliding_window:
        raise UnsupportedError("sliding_window is not handed to the attention function by this model's sliding layer")
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    lengths = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if lengths[0] is not None and attention_mask is None and position_bias is None:  # packed sequences
        out = attention_varlen(q[0], k[0], v[0], *(n.to(torch.int32) for n in lengths), **options)
        return out.unsqueeze(0), None
    # Without a mask, more keys than rows are the unused tail of a static cache: the first row sees the first key.
    return attention(q, k, v, align="top_left", mask=mask, bias=bias, **options), None
