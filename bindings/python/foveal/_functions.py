"""What is asked beforehand: supports() and plan(); and attention_backward(). Their arguments go to the extension by
position. What a model calls (attention, attention_varlen, merge) is the extension's own, for the host cost.
"""

from dataclasses import dataclass

from foveal import _foveal
from foveal._quantize import quantize_qkv


@dataclass(frozen=True, repr=False)
class Support:
    """The answer of supports(): true or false, and the reason."""

    reason: str  # why not; empty if the problem is supported

    def __bool__(self):
        return not self.reason

    def __repr__(self):
        return f"not supported: {self.reason}" if self.reason else "supported"


@dataclass(frozen=True, repr=False)
class Plan:
    """Which kernel, tile, grid and order of work a problem gets; print it."""

    text: str
    workspace_bytes: int  # of device memory that a launch needs

    def __repr__(self):
        return self.text


def supports(
    q,
    k,
    v,
    *,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    scale=None,
    causal=False,
    window=(None, None),
    align="bottom_right",
    softcap=0.0,
    chunk=0,
    alibi_slopes=None,
    sinks=None,
    bias=None,
    mask=None,
    seqused_q=None,
    seqused_k=None,
    block_table=None,
    page_indptr=None,
    page_indices=None,
    query_offset=None,
    tree_mask=None,
    workspace=None,
    dropout_p=0.0,
    dropout_state=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    uint8_as=None,
    return_lse=False,
    backend=None,
):
    """Would attention() accept this problem? Looks at no data and needs no GPU.

    Args:
        Those of attention() and attention_varlen(). A tensor may also be described: ((1, 4096, 32, 128), "bfloat16").
        backend: "cpu" or "sm90"; None: where q lies, or for a description any backend of this build.

    Returns:
        Support: true or false, with the reason.

    Raises:
        InvalidArgument: not a well-formed problem.
    """
    return Support(
        _foveal.supports(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            scale,
            causal,
            window,
            align,
            softcap,
            chunk,
            alibi_slopes,
            sinks,
            bias,
            mask,
            seqused_q,
            seqused_k,
            block_table,
            page_indptr,
            page_indices,
            query_offset,
            tree_mask,
            workspace,
            dropout_p,
            dropout_state,
            q_descale,
            k_descale,
            v_descale,
            uint8_as,
            return_lse,
            backend,
        )
    )


def plan(
    q,
    k,
    v,
    *,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    scale=None,
    causal=False,
    window=(None, None),
    align="bottom_right",
    softcap=0.0,
    chunk=0,
    alibi_slopes=None,
    sinks=None,
    bias=None,
    mask=None,
    seqused_q=None,
    seqused_k=None,
    block_table=None,
    page_indptr=None,
    page_indices=None,
    query_offset=None,
    tree_mask=None,
    workspace=None,
    dropout_p=0.0,
    dropout_state=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    uint8_as=None,
    return_lse=False,
    backend=None,
):
    """What attention() would do: kernel, tile, grid, order of work and predicted bound. Print it.

    Args:
        Those of attention() and attention_varlen(). A tensor may also be described: ((1, 4096, 32, 128), "bfloat16");
        then `backend` is needed, and "sm90" plans for an H200 without a GPU at hand.

    Returns:
        Plan

    Raises:
        As attention().
    """
    return Plan(
        *_foveal.plan(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            scale,
            causal,
            window,
            align,
            softcap,
            chunk,
            alibi_slopes,
            sinks,
            bias,
            mask,
            seqused_q,
            seqused_k,
            block_table,
            page_indptr,
            page_indices,
            query_offset,
            tree_mask,
            workspace,
            dropout_p,
            dropout_state,
            q_descale,
            k_descale,
            v_descale,
            uint8_as,
            return_lse,
            backend,
        )
    )


@dataclass(frozen=True)
class Gradients:
    """What attention_backward() returns; None: not wanted, or not given to attention()."""

    dq: object
    dk: object
    dv: object
    dsinks: object
    dbias: object
    dalibi_slopes: object


def attention_backward(
    dout,
    q,
    k,
    v,
    out,
    lse,
    *,
    dlse=None,
    wanted=("q", "k", "v", "sinks", "bias", "alibi_slopes"),
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    scale=None,
    causal=False,
    window=(None, None),
    align="bottom_right",
    softcap=0.0,
    chunk=0,
    alibi_slopes=None,
    sinks=None,
    bias=None,
    mask=None,
    seqused_q=None,
    seqused_k=None,
    query_offset=None,
    tree_mask=None,
    dropout_p=0.0,
    dropout_state=None,
):
    """The gradients of attention() or attention_varlen(), on the device and current stream of q.

    PyTorch calls it by itself, where a tensor requires a gradient; this is for NumPy, and for who writes a backward
    pass. The same inputs give the same bits.

    Args:
        dout: gradient of what follows with respect to out, shaped as out.
        q, k, v, and all options: those of the call whose gradient it is; not in pages. Dropout needs its state here
            too: none is drawn.
        out, lse: what that call returned, with return_lse=True.
        dlse: gradient of what follows with respect to lse, where that is used; float32, shaped as lse.
        wanted: the inputs whose gradients are computed; those that are not given have none.
        cu_seqlens_q, cu_seqlens_k: of attention_varlen().

    Returns:
        Gradients: dq, dk, dv, dsinks, dbias and dalibi_slopes, each shaped as what it is the gradient of, and of its
        type. Dimensions of size 1 of bias are summed over. Rows outside used lengths are 0.

    Raises:
        As attention(). UnsupportedError: keys in pages.
    """
    names = ("q", "k", "v", "sinks", "bias", "alibi_slopes")
    for name in wanted:
        if name not in names:
            raise _foveal.InvalidArgument(f"wanted has {name!r}; known are {', '.join(names)}")
    return Gradients(
        *_foveal.attention_backward(
            dout,
            dlse,
            out,
            lse,
            tuple(name in wanted for name in names),
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            scale,
            causal,
            window,
            align,
            softcap,
            chunk,
            alibi_slopes,
            sinks,
            bias,
            mask,
            seqused_q,
            seqused_k,
            None,
            None,
            None,
            query_offset,
            tree_mask,
            None,
            dropout_p,
            dropout_state,
            False,
        )
    )


def dropout_mask(b, h_q, s_q, s_k, dropout_p, dropout_state):
    """Which weights attention() keeps with this dropout_p and dropout_state, of any call, on any device.

    Args:
        b, h_q, s_q, s_k: how many sequences, query heads, queries and keys of a sequence. Of attention_varlen() rows
            and keys are counted within their sequence; what is behind its end has no meaning.
        dropout_p: in [0, 1).
        dropout_state: (seed, offset): two integers, or an array or tensor of two, wherever it lies.

    Returns:
        NumPy bool [b, h_q, s_q, s_k]: False where the weight is dropped; the others are divided by 1 - dropout_p.

    Raises:
        InvalidArgument: a number out of range. TypeError: dropout_state is not two integers.
    """
    import numpy as np

    if hasattr(dropout_state, "tolist"):
        dropout_state = dropout_state.tolist()
    if not isinstance(dropout_state, (tuple, list)):
        raise TypeError(f"dropout_state is {dropout_state!r}; it must be two integers, seed and offset")
    kept = _foveal.dropout_mask(b, h_q, s_q, s_k, dropout_p, dropout_state)
    return np.frombuffer(bytearray(kept), np.bool_).reshape(b, h_q, s_q, s_k)


def version():
    """The version of libfoveal."""
    return _foveal.version()


def backends():
    """The backends of this build: "cpu", and "sm90" if it has the CUDA part."""
    return _foveal.backends()


def set_num_threads(threads):
    """Threads that a call on the CPU may use at most, the caller's included; 0: the default again.

    For all threads of the process, from their next call on. The default: FOVEAL_NUM_THREADS, an integer in [1, 4096];
    else the CPUs that the calling thread may run on, but no more than its cgroups' quota allows nor than
    OMP_NUM_THREADS. torch.set_num_threads() does not count here. Results do not depend on the number. Once a PyTorch
    tensor has been seen the threads are those of PyTorch's OpenMP, else the library's own.
    InvalidArgument outside [0, 4096].
    """
    _foveal.set_num_threads(threads)


def get_num_threads():
    """Threads that this thread's next call on the CPU may use at most; set_num_threads() says what decides."""
    return _foveal.get_num_threads()


# As users write them: errors, pickles and help() say foveal.attention.
for _public in (
    Support,
    Plan,
    Gradients,
    supports,
    plan,
    attention_backward,
    dropout_mask,
    quantize_qkv,
    version,
    backends,
    set_num_threads,
    get_num_threads,
):
    _public.__module__ = "foveal"
