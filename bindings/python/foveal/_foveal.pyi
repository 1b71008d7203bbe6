"""The extension. The functions that end in _dispatched are those that PyTorch's dispatcher calls: all arguments by
position, and True behind them. supports and plan: by position as well; foveal/_functions.py names the arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from foveal._functions import Align, Bytes, DropoutState, Tensor, Window
from foveal._workspace import Workspace

class Error(RuntimeError): ...
class InvalidArgument(Error, ValueError): ...
class UnsupportedError(Error, NotImplementedError): ...
class NoDeviceError(Error): ...
class CudaError(Error): ...
class OutOfMemoryError(Error, MemoryError): ...

class HostBuffer:
    def __dlpack__(self, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    page_indptr: Tensor | None = None,
    page_indices: Tensor | None = None,
    query_offset: Tensor | None = None,
    tree_mask: Tensor | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    uint8_as: Bytes = None,
    return_lse: Literal[False] = False,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    page_indptr: Tensor | None = None,
    page_indices: Tensor | None = None,
    query_offset: Tensor | None = None,
    tree_mask: Tensor | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    uint8_as: Bytes = None,
    return_lse: Literal[True],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    page_indptr: Tensor | None = None,
    page_indices: Tensor | None = None,
    query_offset: Tensor | None = None,
    tree_mask: Tensor | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    uint8_as: Bytes = None,
    return_lse: Literal[False] = False,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    page_indptr: Tensor | None = None,
    page_indices: Tensor | None = None,
    query_offset: Tensor | None = None,
    tree_mask: Tensor | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    uint8_as: Bytes = None,
    return_lse: Literal[True],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def append(
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    *,
    slot_mapping: Tensor | None = None,
    cache_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    block_table: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    interleaved: bool = False,
    q: None = None,
    q_out: None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_scale_out: Tensor | None = None,
    v_scale_out: Tensor | None = None,
    uint8_as: Bytes = None,
) -> None: ...
@overload
def append(
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    *,
    slot_mapping: Tensor | None = None,
    cache_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    block_table: Tensor | None = None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    interleaved: bool = False,
    q: Tensor,
    q_out: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_scale_out: Tensor | None = None,
    v_scale_out: Tensor | None = None,
    uint8_as: Bytes = None,
) -> Tensor: ...
def copy_pages(k_cache: Tensor | None, v_cache: Tensor | None, pairs: Tensor) -> None: ...
def gather(
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_k: Tensor,
    *,
    total_k: int | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    page_indptr: Tensor | None = None,
    page_indices: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def merge(
    outs: Sequence[Tensor], lses: Sequence[Tensor], *, out: Tensor | None = None, lse: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...
def attention_dispatched(*arguments: Any) -> Any: ...
def attention_varlen_dispatched(*arguments: Any) -> Any: ...
def merge_dispatched(outs: Any, lses: Any, out: Any, lse: Any, dispatched: bool, /) -> tuple[Any, Any]: ...
def append_dispatched(*arguments: Any) -> Any: ...
def attention_backward(*arguments: Any) -> tuple[Any, ...]: ...
def backward_supports(*arguments: Any) -> str: ...
def copy_pages_dispatched(*arguments: Any) -> None: ...
def gather_dispatched(*arguments: Any) -> tuple[Any, Any]: ...
def supports(*arguments: Any) -> str: ...
def plan(*arguments: Any) -> tuple[str, int]: ...
def version() -> str: ...
def backends() -> list[str]: ...
def set_num_threads(threads: int, /) -> None: ...
def dropout_mask(b: int, h_q: int, s_q: int, s_k: int, p: float, state: Sequence[int], /) -> bytes: ...
def get_num_threads() -> int: ...
def use_library(path: str) -> str: ...

# Of foveal.parallel. Spans are (rank, sequence, position, rows).
class Communicator:
    @overload
    def __init__(self, rank: int, ranks: int, timeout_seconds: float, exchange: Callable[..., None], /) -> None: ...
    @overload
    def __init__(self, nccl_comm: int, library: str, timeout_seconds: float, /) -> None: ...
    def abort(self) -> None: ...
    def wait(self, stream: int, /) -> None: ...

def parallel_place(placement: str, lengths: list[int], ranks: int, /) -> list[tuple[int, int, int, int]]: ...
def parallel_attention(*arguments: Any) -> Any: ...
def parallel_decode(*arguments: Any) -> Any: ...
def parallel_gradients(*arguments: Any) -> None: ...
def parallel_plan(*arguments: Any) -> str: ...
