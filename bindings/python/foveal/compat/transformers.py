"""attn_implementation="foveal" for Hugging Face transformers (5.x).

    import foveal.compat.transformers
    foveal.compat.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="foveal", dtype=torch.bfloat16)

Continuous batching, generate_batch(), takes "paged|foveal", which is registered as well: paged_attention_forward.

The mask says which keys a query sees, as it does for "eager" and "sdpa"; foveal's mask function always gives one. Where
the mask is causal, full or a window over a batch without padding, it is a PlainMask, which says so in two numbers and
costs no memory. What a layer says of causality and of its window counts only where it hands over no mask at all.

It trains: docs/backward.md. Packed batches, which transformers knows by their position_ids or by cu_seq_lens_q and
cu_seq_lens_k, are computed sequence by sequence. Where transformers does not part them (with a cache, with an
attention_mask, in models that show their masks no positions), position_ids that start again raise.

A layer's dropout, which it hands over when it trains, is honoured: PyTorch's generator of the queries' device decides
which weights are dropped, and checkpointing drops the same ones again.

Refused by name are output_attentions, arguments that this layer does not know (such as the keys
that sparse models choose), and models that never call transformers' attention interface. A floating mask is added to
the scores; the lowest number of its type, by which "eager" hides a key, hides it here as -inf does. A row that sees no
key gives 0, where "eager" gives the mean of V.

A tensor whose strides foveal refuses (the last one not 1, another one 0; on a GPU, what is not aligned to 16 bytes) is
copied here, in each call. Under autocast q, k and v become autocast's type, as for PyTorch's own attention.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from foveal import InvalidArgument, UnsupportedError
from foveal.compat._transformers_arguments import addressable, refuse
from foveal.compat._transformers_packed import (
    lengths_of,
    refuse_restarts,
    same_sequence,
    say_the_same,
    values_of,
    without_packing,
)
from foveal.compat._transformers_paged import paged_attention_forward
from foveal.compat.torch import under_autocast
from foveal.torch import attention, attention_varlen
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, PreTrainedModel, masking_utils
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

__all__ = ["PlainMask", "attention_forward", "attention_mask_for", "paged_attention_forward", "register"]
paged_attention_forward.__module__ = __name__  # where it is public

_names: set[str] = set()  # what transformers knows this layer as


def register(name: str = "foveal") -> None:
    """Makes attn_implementation=`name`, and f"paged|{name}", known to transformers, which from then on asks
    _check_model() about them.
    """
    AttentionInterface.register(name, attention_forward)
    AttentionInterface.register(f"paged|{name}", paged_attention_forward)
    AttentionMaskInterface.register(name, attention_mask_for)
    _names.update((name, f"paged|{name}"))
    if not hasattr(PreTrainedModel.get_correct_attn_implementation, "asks_foveal"):
        model: Any = PreTrainedModel
        model.get_correct_attn_implementation = _asking(model.get_correct_attn_implementation)


# ---- Models ----------------------------------------------------------------------------------------------------------


class UnsupportedModel(UnsupportedError, ValueError):
    """A model without the attention interface: a ValueError, as transformers' own where a model cannot do "sdpa"."""


def _asking(get_correct_attn_implementation):
    # transformers checks what a model supports for the names that it knows itself, and for no other.
    @functools.wraps(get_correct_attn_implementation)
    def checked(self, requested_attention, *args, **kwargs):
        implementation = get_correct_attn_implementation(self, requested_attention, *args, **kwargs)
        if implementation in _names:
            _check_model(type(self), implementation)
            _is_additive(type(self.config))  # found out now, for torch.compile cannot look for it
        return implementation

    checked.asks_foveal = True
    return checked


def _check_model(model, name):
    try:
        source = inspect.getsource(sys.modules[model.__module__])
    except (KeyError, OSError, TypeError):
        source = ""
    calls_it = "ALL_ATTENTION_FUNCTIONS.get_interface(" in source
    has_a_list = re.search(r"ATTENTION_CLASSES\[\w*config\._attn_implementation\]", source)
    has_its_own = re.search(r"^class \w*Attention\w*\(nn\.Module\):", source, re.MULTILINE) and not calls_it
    knows_no_other = not (model._supports_sdpa or model._supports_attention_backend or calls_it)
    if knows_no_other or has_a_list or (has_its_own and not model._supports_attention_backend):
        raise UnsupportedModel(
            f'attn_implementation is "{name}"; {model.__name__} does not call transformers\' attention interface and '
            'computes its attention itself: load it with attn_implementation="eager"'
        )


# ---- Masks -----------------------------------------------------------------------------------------------------------


class PlainMask(torch.Tensor):
    """A mask [b, 1, rows, keys] that is still unwritten: row i sees keys i + off - left to i + off + right.

    sides: (left, right) as foveal's window; align: foveal's off. cu_seq_lens: None, or int32 [sequences + 1], where
    sequences begin among all b * rows rows, as many as keys; none sees another. Any operation works on the mask written
    out, and after the first of them sides is None, for whoever has the written mask may change it.
    """

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape, dtype, device, sides, align, write, cu_seq_lens=None):
        mask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        mask.sides, mask.align, mask._write, mask.cu_seq_lens = sides, align, write, cu_seq_lens
        return mask

    def written(self):
        """The mask as a plain tensor of its shape."""
        if self.sides is not None:
            self._tensor, self.sides = self._write(), None
        return self._tensor

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, cls.written, (args, kwargs or {}))
        return operator(*args, **kwargs)

    def __repr__(self):
        return f"PlainMask({list(self.shape)}, sides={self.sides}, align={self.align!r})"


def _sides_of(mask_function):
    """(left, right) of a mask function of transformers that says no more than these; else None."""
    if mask_function is masking_utils.causal_mask_function:
        return None, 0
    if mask_function is masking_utils.bidirectional_mask_function:
        return None, None
    if getattr(mask_function, "__module__", None) != masking_utils.__name__:
        return None
    maker, inside = mask_function.__qualname__.split(".")[0], inspect.getclosurevars(mask_function).nonlocals
    if maker == "sliding_window_overlay":  # transformers counts the query itself
        return inside["sliding_window"] - 1, None
    if maker == "sliding_window_bidirectional_overlay":
        return inside["sliding_window"], inside["sliding_window"]
    if maker != "and_masks":
        return None
    parts = [_sides_of(part) for part in inside["mask_functions"]]
    if None in parts:
        return None
    return tuple(min((side for side in sides if side is not None), default=None) for sides in zip(*parts, strict=True))


_additive: dict[type, bool] = {}  # the answers of _is_additive(), by the configuration's class


def _is_additive(config_class):
    # Of models that do not know "sdpa", some handle their masks as numbers: DeepSeek-V4 turns what it adds to a boolean
    # mask into the opposite. They get the masks of "eager".
    if config_class not in _additive:
        models = [PreTrainedModel]
        for model in models:
            models += model.__subclasses__()
        known = [model._supports_sdpa for model in models if model.config_class is config_class]
        if not known:  # not loaded yet, or the caller's own
            return False
        _additive[config_class] = not all(known)
    return _additive[config_class]


def _align_of(sides, q_length, kv_length, off):
    if sides == (None, None) or off == kv_length - q_length:
        return "bottom_right"
    return "top_left" if off == 0 else None


def attention_mask_for(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,  # int, or of a static cache a tensor
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: str | torch.device = "cpu",
    **rest: Any,
) -> torch.Tensor:
    """[batch_size, 1, q_length, kv_length], a PlainMask where that says all.

    Boolean, True where a row sees a key; for a model that does not know "sdpa" as for "eager": 0 and the lowest number.
    """
    is_additive = _is_additive(type(rest.get("config")))
    write = functools.partial(
        eager_mask if is_additive else sdpa_mask,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        device=device,
        **rest,
    )
    if is_tracing(attention_mask):
        return write()
    inside, sequences = without_packing(mask_function)
    may_skip = allow_is_causal_skip or allow_is_bidirectional_skip or sequences is not None
    sides = _sides_of(inside) if may_skip else None
    if sides is None:
        return write()
    first = int(q_offset)  # of a static cache it is a tensor
    lengths = None
    if sequences is not None:
        is_whole = (first, kv_offset) == (0, 0) and sequences.shape == (batch_size, q_length) == (batch_size, kv_length)
        lengths = lengths_of(sequences) if is_whole else None
        if lengths is None:
            return write()
    align = _align_of(sides, q_length, kv_length, first - kv_offset)
    end = kv_length + kv_offset  # of the keys that some row sees: padding behind it hides nothing more
    if sides[1] is not None:
        end = min(end, first + q_length + sides[1])
    is_padded = attention_mask is not None and (
        attention_mask.shape[-1] < end or not attention_mask[:, kv_offset:end].all()
    )
    if align is None or is_padded:
        return write()
    dtype = rest.get("dtype", torch.float32) if is_additive else torch.bool
    return PlainMask((batch_size, 1, q_length, kv_length), dtype, device, sides, align, write, lengths)


def _scores_of(tensor, name, query, keys):
    """A mask or a bias as foveal takes it: [b or 1, h or 1, rows or 1, keys or 1]."""
    batch, heads, rows = query.shape[:3]
    shape = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    wanted = (batch, heads, rows, keys)
    if len(shape) != 4 or any(size not in (1, most) for size, most in zip(shape, wanted, strict=True)):
        raise InvalidArgument(f"{name}.shape is {list(tensor.shape)}; it has to fit the scores' {list(wanted)}")
    scores = tensor.reshape(shape)
    return scores if shape[-1] == 1 or scores.stride(3) in (0, 1) else scores.contiguous()


def _mask_and_bias(attention_mask, position_bias, query, keys):
    """A mask that is added to the scores is a bias, and adds up with the position's."""
    mask, bias = None, position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        mask = attention_mask
    elif attention_mask is not None and attention_mask.is_floating_point():
        lowest = torch.finfo(attention_mask.dtype).min
        added = attention_mask.masked_fill(attention_mask <= lowest, -torch.inf)
        bias = added if bias is None else bias + added
    elif attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask.dtype is {attention_mask.dtype}; foveal supports bool and floating types"
        )
    if bias is not None and bias.dtype != query.dtype and torch.is_autocast_enabled(query.device.type):
        bias = bias.float()
    mask = None if mask is None else _scores_of(mask, "attention_mask", query, keys)
    bias = None if bias is None else _scores_of(bias, "attention_mask or position_bias", query, keys)
    return mask, bias


# ---- Packed sequences ------------------------------------------------------------------------------------------------


def _lengths_and_mask(cu_seq_lens_q, cu_seq_lens_k, mask):
    """The lengths that are given or else those of a PlainMask, and the mask: written out where the two differ."""
    own = mask.cu_seq_lens if isinstance(mask, PlainMask) and mask.sides is not None else None
    given = [lengths for lengths in (cu_seq_lens_q, cu_seq_lens_k) if lengths is not None]
    if own is None:
        return cu_seq_lens_q, cu_seq_lens_k, mask
    if not given:
        return own, own, mask
    return cu_seq_lens_q, cu_seq_lens_k, mask if say_the_same(own, given) else mask.written()


def _packed(q, k, v, cu_seq_lens_q, cu_seq_lens_k, mask, position_bias, options):
    """[b, rows, h, d_v], each sequence alone: as a varlen problem, or under a mask if there is more to say."""
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise InvalidArgument("of cu_seq_lens_q and cu_seq_lens_k one is None; packed sequences need both")
    (batch, rows), keys = q.shape[:2], k.shape[1]
    values_q = values_of(cu_seq_lens_q, "cu_seq_lens_q", batch * rows)
    values_k = values_of(cu_seq_lens_k, "cu_seq_lens_k", batch * keys)
    if mask is None and position_bias is None:
        options["align"] = "bottom_right"  # of each sequence
        lengths = (cu_seq_lens.to(torch.int32) for cu_seq_lens in (cu_seq_lens_q, cu_seq_lens_k))
        out = attention_varlen(*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)), *lengths, **options)
        return out.view(batch, rows, *out.shape[1:])
    if values_q != values_k and "window" in options:
        raise UnsupportedError(
            f"cu_seq_lens_k is {values_k} beside cu_seq_lens_q of {values_q} and a position_bias; they have to be equal"
        )
    mask, bias = _mask_and_bias(mask, position_bias, q.transpose(1, 2), keys)
    lengths = ("cu_seq_lens_q", cu_seq_lens_q, values_q), ("cu_seq_lens_k", cu_seq_lens_k, values_k)
    same = same_sequence(lengths, batch, rows, keys)
    return attention(q, k, v, mask=same if mask is None else mask & same, bias=bias, **options)


# ---- Attention -------------------------------------------------------------------------------------------------------


def _visible(module, is_causal, sliding_window, attention_mask, rows, keys):
    """What foveal's own options say of the mask, and the mask that is left to say."""
    if isinstance(attention_mask, PlainMask):
        sides = attention_mask.sides
        if sides == (None, None):  # of any shape: "eager" has no mask there, and some models count its keys wrong
            return {}, None
        if sides is None or attention_mask.shape[-2:] != (rows, keys):
            return {}, attention_mask.written()
        return {"window": sides, "align": attention_mask.align}, None
    if attention_mask is not None:
        return {}, attention_mask
    # As "sdpa" means it. One query without a mask sees all keys: it is the last row. More keys than rows are the unused
    # tail of a static cache: the first row sees the first key.
    causal = rows > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if not causal:
        return {}, None
    left = None if sliding_window is None else sliding_window - 1
    return {"window": (left, 0), "align": "top_left"}, None


def attention_forward(
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
    position_bias: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [b, h_q, s_q, d], key and value [b, h_k, s_k, ·] -> (out [b, s_q, h_q, d_v], None).

    attention_mask, which broadcasts to [b, h_q, s_q, s_k]: boolean, floating (added to the scores), or a PlainMask.
    Without one: is_causal (else the module's), and sliding_window: a causal query sees itself and sliding_window - 1
    keys before. softcap: bound of the scores. s_aux: sinks [h_q]. cu_seq_lens_q, cu_seq_lens_k [sequences + 1]: where
    sequences begin among all b * s rows; none sees another.
    """
    cu_seq_lens_q, cu_seq_lens_k, attention_mask = _lengths_and_mask(cu_seq_lens_q, cu_seq_lens_k, attention_mask)
    is_packed = cu_seq_lens_q is not None or cu_seq_lens_k is not None
    refuse(kwargs, is_packed)
    rows, keys = query.shape[2], key.shape[2]
    q, k, v = (addressable(x.transpose(1, 2)) for x in under_autocast(query, key, value))
    options, mask = _visible(module, is_causal, sliding_window, attention_mask, rows, keys)
    if not is_packed and rows > 1 and options.get("window", (None, None))[1] == 0:
        refuse_restarts(kwargs.get("position_ids"), rows)
    options["scale"], options["softcap"], options["dropout_p"] = scaling, softcap or 0.0, dropout
    options["sinks"] = None if s_aux is None else s_aux.to(torch.float32)
    if is_packed:
        return _packed(q, k, v, cu_seq_lens_q, cu_seq_lens_k, mask, position_bias, options), None
    mask, bias = _mask_and_bias(mask, position_bias, q.transpose(1, 2), keys)
    return attention(q, k, v, mask=mask, bias=bias, **options), None
