from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

from foveal._workspace import Workspace

class DLPackTensor(Protocol):
    """A tensor of PyTorch, NumPy, CuPy, JAX or another library with DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

Tensor = TypeVar("Tensor", bound=DLPackTensor)
Align = Literal["bottom_right", "top_left"]
Backend = Literal["cpu", "sm90"]
Window = tuple[int | None, int | None] | None
Bytes = Literal["float8_e4m3fn"] | None

# A seed and an offset.
DropoutState = tuple[int, int] | list[int] | DLPackTensor | None

# A description: (shape, dtype).
Description = tuple[Sequence[int], Any]

class Support:
    reason: str
    def __init__(self, reason: str) -> None: ...
    def __bool__(self) -> bool: ...

class Plan:
    text: str
    workspace_bytes: int
    def __init__(self, text: str, workspace_bytes: int) -> None: ...

def supports(
    q: DLPackTensor | Description,
    k: DLPackTensor | Description,
    v: DLPackTensor | Description,
    *,
    cu_seqlens_q: DLPackTensor | Description | None = None,
    cu_seqlens_k: DLPackTensor | Description | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: DLPackTensor | Description | None = None,
    sinks: DLPackTensor | Description | None = None,
    bias: DLPackTensor | Description | None = None,
    mask: DLPackTensor | Description | None = None,
    seqused_q: DLPackTensor | Description | None = None,
    seqused_k: DLPackTensor | Description | None = None,
    block_table: DLPackTensor | Description | None = None,
    page_indptr: DLPackTensor | Description | None = None,
    page_indices: DLPackTensor | Description | None = None,
    query_offset: DLPackTensor | Description | None = None,
    tree_mask: DLPackTensor | Description | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: DLPackTensor | Description | None = None,
    k_descale: DLPackTensor | Description | None = None,
    v_descale: DLPackTensor | Description | None = None,
    uint8_as: Bytes = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> Support: ...
def plan(
    q: DLPackTensor | Description,
    k: DLPackTensor | Description,
    v: DLPackTensor | Description,
    *,
    cu_seqlens_q: DLPackTensor | Description | None = None,
    cu_seqlens_k: DLPackTensor | Description | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: Window = (None, None),
    align: Align = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: DLPackTensor | Description | None = None,
    sinks: DLPackTensor | Description | None = None,
    bias: DLPackTensor | Description | None = None,
    mask: DLPackTensor | Description | None = None,
    seqused_q: DLPackTensor | Description | None = None,
    seqused_k: DLPackTensor | Description | None = None,
    block_table: DLPackTensor | Description | None = None,
    page_indptr: DLPackTensor | Description | None = None,
    page_indices: DLPackTensor | Description | None = None,
    query_offset: DLPackTensor | Description | None = None,
    tree_mask: DLPackTensor | Description | None = None,
    workspace: Workspace | Any | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
    q_descale: DLPackTensor | Description | None = None,
    k_descale: DLPackTensor | Description | None = None,
    v_descale: DLPackTensor | Description | None = None,
    uint8_as: Bytes = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> Plan: ...

class Gradients:
    dq: Any
    dk: Any
    dv: Any
    dsinks: Any
    dbias: Any
    dalibi_slopes: Any
    def __init__(self, dq: Any, dk: Any, dv: Any, dsinks: Any, dbias: Any, dalibi_slopes: Any) -> None: ...

def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    dlse: Tensor | None = None,
    wanted: Sequence[Literal["q", "k", "v", "sinks", "bias", "alibi_slopes"]] = ...,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
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
    query_offset: Tensor | None = None,
    tree_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_state: DropoutState = None,
) -> Gradients: ...
def dropout_mask(
    b: int,
    h_q: int,
    s_q: int,
    s_k: int,
    dropout_p: float,
    dropout_state: tuple[int, int] | Sequence[int] | DLPackTensor,
) -> Any: ...
def quantize_qkv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def version() -> str: ...
def backends() -> list[str]: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
