"""foveal in JAX: under jax.jit, jax.vmap and sharding, through XLA's foreign function interface.

    import foveal.jax
    out = jax.jit(foveal.jax.attention, static_argnames="causal")(q, k, v, causal=True)
    out = foveal.jax.dot_product_attention(q, k, v, is_causal=True)    # the arguments of jax.nn's function

It runs where XLA puts it, on the CPU or a Hopper GPU, on XLA's stream, and may be part of XLA's CUDA graphs. Shapes,
types and options are checked by foveal when a call is traced (foveal.InvalidArgument, foveal.UnsupportedError); what
only the backend that it then runs on refuses is an error of XLA's, with foveal's words.

jax.vmap folds the axis into the batch; what is not mapped is repeated, but biases and masks of one batch, which are
shared; mapped sinks make a loop of calls, and so does dropout. Sharded operands are gathered first, as XLA does for
custom calls: right, but each device computes all; under jax.shard_map each computes its part.

jax.grad and jax.vjp have the gradients of q, k, v, slopes, sinks and bias, also through the log-sum-exp, on the CPU so
far; under vmap they are a loop of calls. There are no forward-mode derivatives (jax.jvp) and no second ones.

Dropout takes a key of jax.random: the same key drops the same weights, in the gradient and under jax.checkpoint too,
and each layer and step wants a key of its own (jax.random.split, jax.random.fold_in). Under jax.vmap a key that is not
mapped drops the same weights in every call, under jax.shard_map on every device.

XLA hands operands over packed, in the order of their dimensions: an operand that is a transpose is copied by XLA.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, overload

import foveal
import jax
import jax.numpy as jnp
import numpy as np
from foveal import InvalidArgument, UnsupportedError
from foveal._xla import OPTIONAL, Call, call_of
from jax.typing import ArrayLike, DTypeLike

__all__ = ["attention", "dot_product_attention", "dropout_state"]


def _described(x: jax.Array) -> tuple[tuple[int, ...], str]:
    return tuple(x.shape), np.dtype(x.dtype).name


# ---- foveal's own meaning --------------------------------------------------------------------------------------------


def _number(value: Any, name: str) -> float:
    if isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        raise TypeError(f"{name} is traced; it must be a Python number, known when the call is traced") from None


def _side(value: Any) -> int:
    return -1 if value is None else operator.index(value)


@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = (None, None),
    align: Literal["bottom_right", "top_left"] = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seqused_q: ArrayLike | None = None,
    seqused_k: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_key: jax.Array | None = None,
    q_descale: ArrayLike | None = None,
    k_descale: ArrayLike | None = None,
    v_descale: ArrayLike | None = None,
    out_dtype: DTypeLike | None = None,
    return_lse: Literal[False] = False,
) -> jax.Array: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = (None, None),
    align: Literal["bottom_right", "top_left"] = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seqused_q: ArrayLike | None = None,
    seqused_k: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_key: jax.Array | None = None,
    q_descale: ArrayLike | None = None,
    k_descale: ArrayLike | None = None,
    v_descale: ArrayLike | None = None,
    out_dtype: DTypeLike | None = None,
    return_lse: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = (None, None),
    align: Literal["bottom_right", "top_left"] = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seqused_q: ArrayLike | None = None,
    seqused_k: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_key: jax.Array | None = None,
    q_descale: ArrayLike | None = None,
    k_descale: ArrayLike | None = None,
    v_descale: ArrayLike | None = None,
    out_dtype: DTypeLike | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """foveal.attention() in JAX: q [b, s_q, h_q, d], k [b, s_k, h_k, d], v [b, s_k, h_k, d_v] -> [b, s_q, h_q, d_v].

    The arguments, their shapes, units and meaning are foveal.attention's. The arrays are bfloat16, float16 or float32;
    k and v, or all three, may be float8_e4m3fn. What is no array is a Python value, known when the call is traced. Rows
    of q behind seqused_q give out = 0 and lse = -inf.

    Args:
        dropout_p: the probability with which a weight is dropped, in [0, 1). On the CPU so far.
        dropout_key: a key of jax.random (jax.random.key(0)), which is used up; needed where dropout_p > 0, and nothing
            is drawn from it where that is 0. foveal.dropout_mask(..., foveal.jax.dropout_state(dropout_key)) shows
            which weights are kept.
        out_dtype: of a q in float8_e4m3fn bfloat16 (None: that) or float16, else q's dtype (None: that).

    Returns:
        out [b, s_q, h_q, d_v], of out_dtype; with return_lse also lse, float32 [b, h_q, s_q].

    Raises:
        InvalidArgument: not a well-formed problem. UnsupportedError: no backend of this build can do it exactly.
        TypeError: an argument of the wrong type, or a forward-mode derivative is asked for.
    """
    p = float(np.float32(_number(dropout_p, "dropout_p")))  # as the library reads it: of 1e-50, 0
    optional = {"seqused_q": seqused_q, "seqused_k": seqused_k, "alibi_slopes": alibi_slopes, "sinks": sinks}
    optional |= {"bias": bias, "mask": mask, "dropout_state": _dropout_words(p, dropout_key)}
    optional |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    options = {"scale": scale, "causal": causal, "window": window, "align": align, "softcap": softcap, "chunk": chunk}
    results = _results(q, k, v, optional, return_lse, options | {"dropout_p": p}, out_dtype)
    return (results[0], results[1]) if return_lse else results[0]


def _results(
    q: Any,
    k: Any,
    v: Any,
    optional: dict[str, Any],
    return_lse: bool,
    options: dict[str, Any],
    out_dtype: Any = None,
) -> Sequence[jax.Array]:
    """[out], or [out, lse]. options: what is no array; all of them."""
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    present = {name: jnp.asarray(optional[name]) for name in OPTIONAL if optional[name] is not None}
    for name in ("scale", "softcap"):
        if options[name] is not None:
            options[name] = _number(options[name], name)
    described: dict[str, Any] = {name: _described(x) for name, x in present.items() if name != "dropout_state"}
    described |= options
    support = foveal.supports(*[_described(x) for x in arrays], return_lse=return_lse, **described)
    if not support:
        raise UnsupportedError(support.reason)
    for name in present.keys() & {"bias", "mask"}:
        present[name] = _of_rank_4(present[name])
    left, right = (None, None) if options["window"] is None else options["window"]
    call = Call(
        given=("q", "k", "v", *present),
        out_dtype=_out_dtype(arrays[0].dtype, out_dtype),
        return_lse=return_lse,
        scale=math.nan if options["scale"] is None else options["scale"],
        top_left=options["align"] == "top_left",
        window_left=_side(left),
        window_right=0 if options["causal"] else _side(right),
        softcap=options["softcap"],
        chunk=operator.index(options["chunk"]),
        dropout_p=options["dropout_p"],
    )
    results: Sequence[jax.Array] = call_of(call)(*arrays, *present.values())
    return _without_unused_rows(results, present["seqused_q"]) if "seqused_q" in present else results


def _out_dtype(q: Any, asked: Any) -> str:
    name = np.dtype(q).name
    if asked is None:
        return "bfloat16" if name == "float8_e4m3fn" else name
    out = np.dtype(asked).name
    if out not in (("bfloat16", "float16") if name == "float8_e4m3fn" else (name,)):
        needed = "bfloat16 or float16" if name == "float8_e4m3fn" else f"{name} or None"
        raise InvalidArgument(f"out_dtype is {out}; beside q in {name} it must be {needed}")
    return out


def _without_unused_rows(results: Sequence[jax.Array], seqused_q: jax.Array) -> list[jax.Array]:
    """The library leaves rows behind the used length as they are: 0 in out, -inf in lse."""
    used = jnp.arange(results[0].shape[1]) < seqused_q[:, None]  # [b, s_q]
    cleared = [jnp.where(used[:, :, None, None], results[0], 0)]
    return cleared + [jnp.where(used[:, None, :], lse, -jnp.inf) for lse in results[1:]]


# ---- Dropout ---------------------------------------------------------------------------------------------------------


def _words_of(key: Any) -> jax.Array:
    try:
        return jax.random.bits(key, (4,), jnp.uint32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dropout_key must be one key of jax.random, as jax.random.key(0) is: {error}") from None


def _dropout_words(dropout_p: float, key: Any) -> jax.Array | None:
    """The state as the custom call takes it; None without dropout."""
    if key is None and dropout_p > 0:
        raise InvalidArgument(f"dropout_key is None and dropout_p is {dropout_p:g}; it must be a key of jax.random")
    return _words_of(key) if dropout_p > 0 else None


def dropout_state(dropout_key: jax.Array) -> tuple[int, int]:
    """(seed, offset) that attention() draws from `dropout_key`, for foveal.dropout_mask() and foveal.attention().

    Raises:
        TypeError: it is not one key. jax.errors.TracerArrayConversionError: it is traced.
    """
    words = np.asarray(_words_of(dropout_key)).tolist()
    return words[0] | words[1] << 32, words[2] | words[3] << 32


# ---- jax.nn's meaning ------------------------------------------------------------------------------------------------


def _local_window(size: Any, is_causal: bool) -> tuple[int | None, int | None]:
    if size is None:
        return None, 0 if is_causal else None
    left, right = (size, size) if isinstance(size, int) else size
    if is_causal and right >= 0:
        right = 0
    return left, right


def _of_rank_4(x: Any) -> Any:
    if x is None:
        return None
    x = jnp.asarray(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: None = None,
    return_residual: Literal[False] = False,
) -> jax.Array: ...
@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: None = None,
    return_residual: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """jax.nn.dot_product_attention, computed by foveal.

    query [B, T, N, H] or [T, N, H], key and value [B, S, K, H] or [S, K, H], N a multiple of K -> query's shape. Of
    jax.nn's meaning are: is_causal from the first key on ("top-left"), local_window_size (keys before and after, both
    counted; an int: both; from the first key on), scale, query_seq_lengths and key_value_seq_lengths (int32 [B]).

    Otherwise than jax.nn: a row that sees no key gives 0 and a residual of -inf (jax.nn: the mean of value, -2.4e38).

    Args:
        bias, mask: broadcast to [B, N, T, S]. bias: query's dtype or float32; another is refused. mask: bool.
        implementation: None; foveal is the implementation.
        return_residual: return (out, lse), lse [B, T, N] or [T, N] of key's dtype.

    Raises:
        As attention(). InvalidArgument too where query, key and value are not as jax.nn wants them.
    """
    if implementation is not None:
        raise UnsupportedError(f"implementation is {implementation!r}; foveal supports None: it is one itself")
    shape = jnp.shape(query)
    q, k, v = (_of_rank_4(x) for x in (query, key, value))
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dtype == jnp.float8_e4m3fn:
            raise UnsupportedError(
                f"{name}.dtype is float8_e4m3fn, for which there are no descales here; foveal.jax.attention() has them"
            )
    if v.shape != k.shape:
        raise InvalidArgument(f"value.shape is {list(v.shape)} but key.shape is {list(k.shape)}")
    results = _results(
        q,
        k,
        v,
        {
            **dict.fromkeys(OPTIONAL),
            **{"bias": _of_rank_4(bias), "mask": _of_rank_4(mask)},
            **{"seqused_q": query_seq_lengths, "seqused_k": key_value_seq_lengths},
        },
        return_residual,
        {
            **{"scale": scale, "causal": False, "window": _local_window(local_window_size, is_causal)},
            **{"align": "top_left", "softcap": 0.0, "chunk": 0, "dropout_p": 0.0},
        },
    )
    out = results[0].reshape(shape)
    if not return_residual:
        return out
    return out, results[1].transpose(0, 2, 1).astype(k.dtype).reshape(shape[:-1])
