"""What is asked beforehand: supports() and plan(). Their arguments go to the extension by position. What a model calls
(attention, attention_varlen, merge) is the extension's own, for the host cost.
"""

from dataclasses import dataclass

from foveal import _foveal


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
            return_lse,
            backend,
        )
    )


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
    OMP_NUM_THREADS. torch.set_num_threads() does not count here. Results do not depend on the number.
    InvalidArgument outside [0, 4096].
    """
    _foveal.set_num_threads(threads)


def get_num_threads():
    """Threads that this thread's next call on the CPU may use at most; set_num_threads() says what decides."""
    return _foveal.get_num_threads()


# As users write them: errors, pickles and help() say foveal.attention.
for _public in (Support, Plan, supports, plan, version, backends, set_num_threads, get_num_threads):
    _public.__module__ = "foveal"
