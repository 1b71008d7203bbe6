"""What models of transformers hand to an attention function: arguments without effect here, others, and tensors."""

import torch
from foveal import UnsupportedError
from transformers.utils.import_utils import is_tracing

# What models hand to any attention function and what changes nothing here: the mask, or the layer before the attention,
# has taken it into account, or it concerns another part of the model. max_length_* and deterministic: FlashAttention's.
_WITHOUT_EFFECT = {
    "position_ids", "position_embeddings", "cache_position", "use_cache", "past_key_values", "return_dict",
    "output_hidden_states", "output_router_logits", "num_items_in_batch", "max_length_q", "max_length_k",
    "deterministic",
}  # fmt: skip


def refuse(unknown, is_packed):
    """Raises for what a layer hands over and foveal does not honour."""
    if unknown.get("output_attentions"):
        raise UnsupportedError("output_attentions is True; foveal never has the weights")
    for name, value in unknown.items():
        is_told = name in _WITHOUT_EFFECT or (name == "seq_idx" and is_packed)  # seq_idx: the same as cu_seq_lens
        if not is_told and value is not None and value is not False:
            text = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise UnsupportedError(f"{name} is {text}; foveal's attention function supports only None")


def addressable(tensor, alignment_bytes=16):
    """The tensor, or a copy of it where foveal refuses its strides: see foveal.compat.transformers."""
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    fits = 0 not in strides and (tensor.shape[-1] <= 1 or tensor.stride(-1) == 1)
    if tensor.is_cuda and fits:
        distances = [stride * tensor.element_size() for stride in strides if stride != 1]
        if not is_tracing(tensor):
            distances.append(tensor.data_ptr())
        fits = all(distance % alignment_bytes == 0 for distance in distances)
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)
