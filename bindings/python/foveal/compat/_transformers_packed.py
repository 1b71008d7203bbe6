"""Several sequences in one row of a batch: how models of transformers say so, and what foveal is told of it."""

import inspect

import torch
from foveal import InvalidArgument, UnsupportedError
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import masking_utils
from transformers.utils.import_utils import is_tracing

_read = WeakTensorKeyDictionary()  # a tensor -> (its version then, what was read from it)


def _read_once(tensor, read):
    """read(tensor), which waits for the device: once for all layers, and again where the tensor was written to."""
    version = None if tensor.is_inference() else tensor._version
    then, values = _read.get(tensor, (None, None))
    if version is None or version != then:
        values = read(tensor)
        _read[tensor] = version, values
    return values


# ---- Lengths ---------------------------------------------------------------------------------------------------------


def values_of(cu_seq_lens, name, rows):
    """The lengths as numbers; None while tracing, which has none."""
    if is_tracing(cu_seq_lens):
        return None
    values = _read_once(cu_seq_lens, torch.Tensor.tolist)
    if values[:1] != [0] or values[-1] != rows or values != sorted(values):
        raise InvalidArgument(f"{name} is {values}; it has to rise from 0 to {rows}, all rows of the batch")
    return values


def say_the_same(cu_seq_lens, others):
    """Whether all of these cut the rows of the batch at the same places."""
    first, *rest = ({*_read_once(lengths, torch.Tensor.tolist)} for lengths in (cu_seq_lens, *others))
    return all(ends == first for ends in rest)


def same_sequence(lengths, batch, rows, keys):
    """[batch, 1, rows, keys]: whether row and key belong to one sequence."""
    sequences = []
    for (name, cu_seq_lens, values), length in zip(lengths, (rows, keys), strict=True):
        if values is not None and not set(range(0, batch * length, length)) <= set(values):
            raise UnsupportedError(f"{name} is {values}; beside a mask a sequence has to end with its row of the batch")
        positions = torch.arange(batch * length, device=cu_seq_lens.device, dtype=cu_seq_lens.dtype)
        sequences.append(torch.searchsorted(cu_seq_lens[1:], positions, right=True).view(batch, length))
    return sequences[0][:, None, :, None] == sequences[1][:, None, None, :]


# ---- Masks -----------------------------------------------------------------------------------------------------------


def without_packing(mask_function):
    """(what a mask function of transformers says inside a sequence, [b, rows]: the sequence of each row, or None)"""
    name = getattr(mask_function, "__qualname__", "").split(".")[0]
    if getattr(mask_function, "__module__", None) != masking_utils.__name__ or name != "and_masks":
        return mask_function, None
    *rest, last = inspect.getclosurevars(mask_function).nonlocals["mask_functions"]
    if not getattr(last, "__qualname__", "").startswith("packed_sequence_mask_function."):
        return mask_function, None
    return masking_utils.and_masks(*rest), inspect.getclosurevars(last).nonlocals["packed_sequence_mask"]


def lengths_of(sequences):
    """cu_seq_lens, int32 [sequences + 1], of [b, rows], the sequence of each row; None where one comes back."""
    steps = sequences.diff()
    if (steps < 0).any():
        return None
    begins = torch.nn.functional.pad(steps != 0, (1, 0), value=True)
    return torch.nn.functional.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=sequences.numel()).to(torch.int32)


def refuse_restarts(position_ids, rows):
    """Raises for packed sequences of which nothing but their positions tells: transformers looks for them only where
    there is neither a cache nor an attention_mask, and a causal mask lets each see the ones before it."""
    if not isinstance(position_ids, torch.Tensor) or position_ids.dim() != 2 or position_ids.shape[1] != rows:
        return
    if not is_tracing(position_ids) and _read_once(position_ids, lambda tensor: bool((tensor.diff() <= 0).any())):
        raise UnsupportedError(
            "position_ids start again within a row of the batch, and the causal mask does not part the sequences: "
            "transformers does that only with use_cache=False, without an attention_mask, and not in every model; "
            "pass cu_seq_lens_q and cu_seq_lens_k"
        )
