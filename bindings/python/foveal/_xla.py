"""The custom calls of foveal.jax, registered with XLA: rules for vmap and derivatives. src/xla.cpp answers them."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import foveal
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

_TARGET = "foveal_attention"
_BACKWARD = "foveal_attention_backward"
# In the order of src/xla.cpp. dropout_state: uint32 [4], a seed and an offset of 64 bits, the lower half of each first.
DESCALES = ("q_descale", "k_descale", "v_descale")
OPTIONAL = ("seqused_q", "seqused_k", "alibi_slopes", "sinks", "bias", "mask", *DESCALES, "dropout_state")
_WITH_GRADIENT = ("q", "k", "v", "alibi_slopes", "sinks", "bias")


def _register() -> None:
    path = pathlib.Path(foveal.__file__).parent / "libfoveal_xla.so"
    if not path.exists():
        raise ImportError(
            "this foveal was built without jaxlib, whose headers foveal.jax needs: build it where jaxlib is installed"
        )
    if not hasattr(jax, "ffi"):
        raise ImportError(
            f"foveal.jax needs JAX 0.5 or later, whose foreign function interface it uses; here is {jax.__version__}"
        )
    library = ctypes.CDLL(str(path))
    header = pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    known = re.search(r"#define XLA_FFI_API_MINOR (\d+)", header.read_text())
    built = ctypes.c_int32.in_dll(library, "foveal_xla_api_minor").value
    # A jaxlib refuses handlers of a later interface than its own, and with them every computation.
    if known is None or int(known[1]) < built:
        raise ImportError(
            f"this foveal was built for version 0.{built} of XLA's foreign function interface, and jaxlib "
            f"{jax.lib.__version__} has an earlier one: take the jaxlib that foveal was built with, or a later one"
        )
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.foveal_xla_cpu), platform="cpu")
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.foveal_xla_cuda), platform="CUDA")
    jax.ffi.register_ffi_target(_BACKWARD, jax.ffi.pycapsule(library.foveal_xla_backward_cpu), platform="cpu")


_register()


# ---- The call --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """What a call says besides its operands: the attributes of the custom call, and which operands there are."""

    given: tuple[str, ...]
    out_dtype: str
    return_lse: bool
    scale: float
    top_left: bool
    window_left: int
    window_right: int
    softcap: float
    chunk: int
    dropout_p: float

    def attributes(self) -> dict[str, Any]:
        return {
            "given": " ".join(self.given),
            "scale": np.float32(self.scale),
            "top_left": self.top_left,
            "window_left": np.int64(self.window_left),
            "window_right": np.int64(self.window_right),
            "softcap": np.float32(self.softcap),
            "chunk": np.int64(self.chunk),
            "dropout_p": np.float32(self.dropout_p),
        }


@functools.lru_cache(maxsize=1024)
def _traced(call: Call) -> Any:
    """The function of the operands of `call`, with its rule for vmap."""

    @custom_vmap
    def run(*operands: jax.Array) -> Any:
        q, v = operands[0], operands[2]
        results = [jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), call.out_dtype)]
        if call.return_lse:
            results.append(jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32))
        return tuple(jax.ffi.ffi_call(_TARGET, results)(*operands, **call.attributes()))

    @run.def_vmap
    def fold(axis_size: int, in_batched: Sequence[bool], *operands: jax.Array) -> Any:
        out_batched = (True,) * (2 if call.return_lse else 1)
        # Sinks are of a head, not of a batch's; and in a larger batch dropout would draw other masks.
        is_mapped_sink = "sinks" in call.given and in_batched[call.given.index("sinks")]
        if is_mapped_sink or "dropout_state" in call.given:
            mapped = [x for x, is_mapped in zip(operands, in_batched, strict=True) if is_mapped]

            def one(of_this: list[jax.Array]) -> Any:
                left = iter(of_this)
                return run(*(next(left) if is_mapped else x for x, is_mapped in zip(operands, in_batched, strict=True)))

            return jax.lax.map(one, mapped), out_batched
        batch = operands[0].shape[1 if in_batched[0] else 0]
        folded = [
            _fold(name, x, is_mapped, axis_size, batch)
            for name, x, is_mapped in zip(call.given, operands, in_batched, strict=True)
        ]
        results = run(*folded)
        return tuple(x.reshape(axis_size, batch, *x.shape[1:]) for x in results), out_batched

    return run


def _fold(name: str, x: jax.Array, is_mapped: bool, axis_size: int, batch: int) -> jax.Array:
    """The operand with the mapped axis folded into its batch; what is not mapped is repeated, or shared anyway."""
    is_of_heads = name in ("sinks", "alibi_slopes") and x.ndim - is_mapped == 1
    if not is_mapped and (is_of_heads or (name in ("bias", "mask") and x.shape[0] == 1)):
        return x
    if not is_mapped:
        x = x[None]
    if is_of_heads:
        x = x[:, None]
    x = jnp.broadcast_to(x, (axis_size, batch, *x.shape[2:]))
    return x.reshape(axis_size * batch, *x.shape[2:])


@functools.lru_cache(maxsize=1024)
def call_of(call: Call) -> Any:
    """The function of the operands of `call`, under jit, with its gradient."""

    @jax.custom_vjp
    def run(*operands: jax.Array) -> Any:
        return _traced(call)(*operands)

    def forward(*operands: jax.Array) -> Any:
        for name, x in zip(call.given, operands, strict=True):
            if x.dtype == jnp.float8_e4m3fn:
                raise foveal.UnsupportedError(f"{name}.dtype is float8_e4m3fn, which has no gradients")
        out, lse = _traced(dataclasses.replace(call, return_lse=True))(*operands)
        return (out, lse) if call.return_lse else (out,), (operands, out, lse)

    def backward(saved: Any, cotangents: Any) -> Any:
        operands, out, lse = saved
        dlse = cotangents[1] if call.return_lse else jnp.zeros_like(lse)
        return _gradients(call, operands, out, lse, cotangents[0], dlse)

    run.defvjp(forward, backward)
    return jax.jit(run)


def _gradients(call: Call, operands: Sequence[jax.Array], out: Any, lse: Any, dout: Any, dlse: Any) -> Any:
    """Of every operand; None: it has none. Under vmap one call after the other."""
    given = dict(zip(call.given, operands, strict=True))
    names = [name for name in call.given if name in _WITH_GRADIENT]
    results = [jax.ShapeDtypeStruct(given[name].shape, given[name].dtype) for name in names]
    run = jax.ffi.ffi_call(_BACKWARD, results, vmap_method="sequential")
    gradients = dict(zip(names, run(*operands, out, lse, dout, dlse, **call.attributes()), strict=True))
    for name, used in (("q", "seqused_q"), ("k", "seqused_k"), ("v", "seqused_k")):
        if used in given:  # the library leaves rows behind the used length as they are
            rows = jnp.arange(given[name].shape[1]) < given[used][:, None]
            gradients[name] = jnp.where(rows[:, :, None, None], gradients[name], 0)
    return tuple(gradients.get(name) for name in call.given)
