"""attn_implementation="paged|foveal": transformers' continuous batching, generate_batch(), on its own paged cache."""

from typing import Any

import torch
from foveal import InvalidArgument, UnsupportedError
from foveal.compat._transformers_arguments import addressable, refuse
from foveal.torch import append, attention_varlen

# What continuous batching hands over besides, and what it means only to others: to FlashAttention, to the model's head.
_OF_CONTINUOUS_BATCHING = {"max_seqlen_q", "max_seqlen_k", "logits_indices", "logits_processor_args", "logits_to_keep"}


def _layer_of(cache, module, sliding_window):
    """(group of the layer, its caches, window) as the cache has them; refuses a window that it does not hold."""
    group, place = cache.layer_index_to_group_indices[module.layer_idx]
    held = cache.sliding_windows[module.layer_idx]  # 1: all keys
    if held != 1 and sliding_window != held:
        raise UnsupportedError(
            f"sliding_window is {sliding_window} of layer {module.layer_idx}, of which the paged cache keeps the last "
            f"{held} keys; foveal supports the same"
        )
    left = None if sliding_window is None else sliding_window - 1
    return group, cache.key_cache[place], cache.value_cache[place], held != 1, (left, 0)


def _with_rest(ends, rows):
    """The ends of the sequences, and of one more, whose rows are what padding there is behind them."""
    return torch.nn.functional.pad(ends.to(torch.int32), (0, 1), value=rows)


def _from_pages(q, k, v, k_cache, v_cache, ends, read, write, options):
    """Full attention: new rows go to the cache, whose slots are pages of one row, and keys are read where they lie."""
    pages = [cache.unsqueeze(1) for cache in (k_cache, v_cache)]
    append(k, v, *pages, slot_mapping=write)
    ends_q, ends_k = ends
    listed = {"page_indptr": torch.cat((ends_k, ends_k[-1:])), "page_indices": read.to(torch.int32)}
    try:
        return attention_varlen(q, *pages, ends_q, None, seqused_k=_used(ends_k), **listed, **options)
    except UnsupportedError:  # a GPU on which these pages are none: gathered, they are what they were
        k, v = (cache.index_select(0, read) for cache in (k_cache, v_cache))
        return _from_rows(q, k, v, ends, options)


def _from_rows(q, k, v, ends, options):
    ends_q, ends_k = ends
    return attention_varlen(q, k, v, ends_q, _with_rest(ends_k, k.shape[0]), seqused_k=_used(ends_k), **options)


def _used(ends):
    """Keys of each sequence; of the last, which padding belongs to, none."""
    return torch.nn.functional.pad(ends[1:] - ends[:-1], (0, 1))


def paged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cache: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | dict[str, torch.Tensor] | None = None,
    read_index: list[torch.Tensor] | None = None,
    write_index: list[torch.Tensor] | None = None,
    block_table: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, h_q, rows, d], key and value [1, h_k, rows, d] -> (out [1, rows, h_q, d], None).

    New keys and values are written to `cache`, transformers' PagedAttentionCache, and each sequence sees its own:
    causal, and in a sliding layer within the window. The other arguments are those that continuous batching hands to
    every paged attention. Rows of padding give 0.
    """
    if cache is None or cu_seq_lens_q is None or cu_seq_lens_k is None or read_index is None or write_index is None:
        raise InvalidArgument(
            "cache is None; paged|foveal is for continuous batching, model.generate_batch(): use foveal elsewhere"
        )
    if dropout:
        raise UnsupportedError(f"dropout is {dropout}; continuous batching, which does not train, has none")
    refuse({name: x for name, x in kwargs.items() if name not in _OF_CONTINUOUS_BATCHING}, False)
    for name, given in (("attention_mask", attention_mask), ("block_table", block_table)):
        if given is not None:
            raise UnsupportedError(f"{name} is given; foveal's paged attention supports only None")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedError("is_causal is False; foveal's paged attention is causal, as continuous batching is")
    group, k_cache, v_cache, slides, window = _layer_of(cache, module, sliding_window)
    if value.shape[-1] != v_cache.shape[-1]:
        raise UnsupportedError(f"value.shape[-1] is {value.shape[-1]}; the paged cache holds {v_cache.shape[-1]}")
    kind = "sliding_attention" if slides else "full_attention"
    ends_k = cu_seq_lens_k[kind] if isinstance(cu_seq_lens_k, dict) else cu_seq_lens_k
    q, k, v = (addressable(x[0].transpose(0, 1)) for x in (query, key, value))
    ends = _with_rest(cu_seq_lens_q, q.shape[0]), ends_k.to(torch.int32)
    options = {"scale": scaling, "window": window, "softcap": softcap or 0.0}
    options["sinks"] = None if s_aux is None else s_aux.to(torch.float32)
    if slides or read_index[group].numel() == 0:  # a ring of keys, read before new ones replace some; or no old keys
        k, v = cache.update(key, value, module.layer_idx, read_index=read_index, write_index=write_index)
        return _from_rows(q, addressable(k), addressable(v), ends, options)[None], None
    return _from_pages(q, k, v, k_cache, v_cache, ends, read_index[group], write_index[group], options)[None], None
