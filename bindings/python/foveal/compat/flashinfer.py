"""FlashInfer's wrappers for paged caches, computed by foveal: its names plan() and run(), without a plan.

plan() only keeps its arguments: foveal reads lengths where they lie, and another plan() costs nothing. The workspace
buffer and all that steers FlashInfer's scheduling (_SCHEDULING) are not needed and not looked at. The log-sum-exp is in
base 2, as FlashInfer has it. q_scale, k_scale and v_scale, a number, or a tensor of one or of a K/V head each, are the
descales of what is in float8_e4m3fn. What foveal does not do, any other argument too, raises foveal.UnsupportedError by
name.
"""

import math
from typing import Any

import torch
from foveal import InvalidArgument, UnsupportedError
from foveal.torch import attention, attention_varlen

__all__ = ["BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"]


# Of FlashInfer's arguments those that change how it computes, and not what.
_SCHEDULING = frozenset({
    "backend", "disable_split_kv", "enable_pdl", "fixed_split_size", "max_sequence_kv", "max_token_per_sequence",
    "non_blocking", "paged_kv_indices_buffer", "paged_kv_indptr_buffer", "paged_kv_last_page_len_buffer",
    "qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf", "block_tables",
    "seq_lens", "seq_lens_q", "use_cuda_graph", "use_tensor_cores",
})  # fmt: skip


def _only_scheduling(arguments):
    for name, value in arguments.items():
        if name not in _SCHEDULING and value is not None:
            raise UnsupportedError(f"{name} is given; foveal supports None")


def _refuse(**absent):
    for name, (value, supported) in absent.items():
        if value != supported:
            raise UnsupportedError(f"{name} is {value!r}; foveal supports {supported!r}")


class _Pages:
    """A batch's pages and what is asked of them."""

    def __init__(self, indptr, indices, last_page_len, page_size, softcap, scale, window_left):
        self.indptr, self.indices, self.last_page_len = indptr, indices, last_page_len
        self.page_size = page_size
        self.options = {
            "softcap": softcap or 0.0,
            "scale": scale,
            "window": (None if window_left < 0 else window_left, None),
        }

    def arguments(self, device):
        indptr, indices, last = (x.to(device) for x in (self.indptr, self.indices, self.last_page_len))
        pages = indptr.diff()
        used = torch.where(pages > 0, (pages - 1) * self.page_size + last, 0).to(torch.int32)
        return {"page_indptr": indptr, "page_indices": indices, "seqused_k": used, **self.options}


class _Wrapper:
    def __init__(
        self, float_workspace_buffer: torch.Tensor | None = None, kv_layout: str = "NHD", **options: Any
    ) -> None:
        """kv_layout: "NHD" or "HND". The others steer FlashInfer's scheduling."""
        if kv_layout not in ("NHD", "HND"):
            raise InvalidArgument(f"kv_layout is {kv_layout!r}; known are 'NHD' and 'HND'")
        _only_scheduling(options)
        self._kv_layout = kv_layout
        self._pages: _Pages | None = None
        self._o_data_type: torch.dtype | None = None

    def _arguments(self, paged_kv_cache, device):
        if self._pages is None:
            raise InvalidArgument("run() was called before plan()")
        if isinstance(paged_kv_cache, torch.Tensor):
            paged_kv_cache = paged_kv_cache.unbind(1)
        k, v = paged_kv_cache
        if self._kv_layout == "HND":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        if k.shape[1] != self._pages.page_size:
            raise InvalidArgument(
                f"pages have {k.shape[1]} rows, and plan() was given page_size {self._pages.page_size}"
            )
        return k, v, self._pages.arguments(device)

    def _typed_out(self, q, v, out):
        """`out`, or one of the type that plan() was given, which q in float8_e4m3fn does not say."""
        if out is None and self._o_data_type is not None and q.dtype == torch.float8_e4m3fn:
            return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=self._o_data_type)
        return out


def _descales(batch, heads, **given):
    """For attention(), of {name: (tensor, scale)}: FlashInfer's scales are numbers or tensors, foveal's [b, h_k]."""
    descales = {}
    for name, (x, scale) in given.items():
        if scale is None:
            continue
        if x.dtype != torch.float8_e4m3fn:
            raise UnsupportedError(f"{name}_scale is {scale!r} beside {x.dtype}; foveal supports it of float8_e4m3fn")
        values = torch.as_tensor(scale, dtype=torch.float32, device=x.device).flatten()
        if values.numel() not in (1, heads):
            raise InvalidArgument(f"{name}_scale has {values.numel()} elements; it has one, or one for each K/V head")
        descales[f"{name}_descale"] = values.expand(batch, heads)
    return descales


def _result(out, lse, into, lse_into):
    lse = lse * math.log2(math.e)
    if into is not None:
        out = into.copy_(out)
    if lse_into is not None:
        lse = lse_into.copy_(lse)
    return out, lse


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """One query a sequence: q [b, h_q, d] -> out [b, h_q, d_v], lse [b, h_q]."""

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: Any = None,
        kv_data_type: Any = None,
        o_data_type: torch.dtype | None = None,
        data_type: Any = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        non_blocking: bool = True,
        **scheduling: Any,
    ) -> None:
        """indptr int32 [b + 1], indices int32 [n], last_page_len int32 [b]. Heads and types are those of run()."""
        _only_scheduling(scheduling)
        _refuse(pos_encoding_mode=(pos_encoding_mode, "NONE"))
        self._o_data_type = o_data_type
        self._pages = _Pages(indptr, indices, last_page_len, page_size, logits_soft_cap, sm_scale, window_left)

    begin_forward = plan

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        *,
        q_scale: float | torch.Tensor | None = None,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        sinks: torch.Tensor | None = None,
        **scheduling: Any,
    ) -> Any:
        """out, with return_lse (out, lse). paged_kv_cache: (k, v), or [pages, 2, ...].

        Of q in float8_e4m3fn the result is bfloat16, unless out, or o_data_type of plan(), says another type.
        """
        _only_scheduling(scheduling)
        k, v, options = self._arguments(paged_kv_cache, q.device)
        options |= _descales(q.shape[0], k.shape[2], q=(q, q_scale), k=(k, k_scale), v=(v, v_scale))
        out = self._typed_out(q, v, out)
        if q.dtype == torch.float8_e4m3fn and out is not None:
            options["out"] = out[:, None]
        result, lse_e = attention(q[:, None], k, v, sinks=sinks, return_lse=True, **options)
        result, lse_2 = _result(result[:, 0], lse_e[:, :, 0], out, lse)
        return (result, lse_2) if return_lse else result

    forward = run


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """Any number of queries a sequence: q [total_q, h_q, d] -> out [total_q, h_q, d_v], lse [total_q, h_q]."""

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: None = None,
        packed_custom_mask: None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: Any = None,
        kv_data_type: Any = None,
        non_blocking: bool = True,
        o_data_type: torch.dtype | None = None,
        **scheduling: Any,
    ) -> None:
        """qo_indptr int32 [b + 1]; the pages as the decode wrapper has them. A tree: foveal's own tree_mask."""
        _only_scheduling(scheduling)
        _refuse(pos_encoding_mode=(pos_encoding_mode, "NONE"), use_fp16_qk_reduction=(use_fp16_qk_reduction, False))
        for name, mask in (("custom_mask", custom_mask), ("packed_custom_mask", packed_custom_mask)):
            if mask is not None:
                raise UnsupportedError(f"{name} is given; foveal supports None (foveal.attention_varlen has tree_mask)")
        self._pages = _Pages(
            paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, logits_soft_cap, sm_scale, window_left
        )
        self._qo_indptr, self._causal, self._o_data_type = qo_indptr, causal, o_data_type

    begin_forward = plan

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        *,
        q_scale: float | torch.Tensor | None = None,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        sinks: torch.Tensor | None = None,
        **scheduling: Any,
    ) -> Any:
        """out, with return_lse (out, lse). paged_kv_cache: (k, v), or [pages, 2, ...].

        Of q in float8_e4m3fn the result is bfloat16, unless out, or o_data_type of plan(), says another type.
        """
        _only_scheduling(scheduling)
        k, v, options = self._arguments(paged_kv_cache, q.device)
        options |= _descales(self._qo_indptr.shape[0] - 1, k.shape[2], q=(q, q_scale), k=(k, k_scale), v=(v, v_scale))
        options |= {"causal": self._causal, "sinks": sinks, "return_lse": True}
        out = self._typed_out(q, v, out)
        if q.dtype == torch.float8_e4m3fn and out is not None:
            options["out"] = out
        result, lse_e = attention_varlen(q, k, v, self._qo_indptr.to(q.device), None, **options)
        result, lse_2 = _result(result, lse_e.transpose(0, 1), out, lse)
        return (result, lse_2) if return_lse else result

    forward = run
