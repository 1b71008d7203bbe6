"""quantize_qkv(): q, k and v to float8_e4m3fn. Conversion is foveal.append's, so that it is the caches' own."""

import sys

from foveal._foveal import InvalidArgument, UnsupportedError, append

_LARGEST = 448.0  # of float8_e4m3fn


class _Torch:
    def __init__(self, module):
        self.module = module

    def absmax(self, x):  # [b, s, h, d] -> [b, h]
        return x.detach().abs().amax((1, 3)).float() if x.numel() else self.empty_like(x).fill_(0)

    def empty_like(self, x):
        return x.new_empty((x.shape[0], x.shape[2]), dtype=self.module.float32)

    def scale_of(self, absmax):
        usable = absmax.isfinite() & (absmax > 0)
        return self.module.where(usable, absmax / _LARGEST, 1.0)

    def largest_of_groups(self, absmax, groups):
        return absmax.unflatten(1, (groups, -1)).amax(2)

    def repeated(self, scale, times):
        return scale.repeat_interleave(times, 1)

    def new_codes(self, x):
        return self.module.empty(x.shape, dtype=self.module.float8_e4m3fn, device=x.device)

    def zero_length(self, x):
        return self.module.zeros(1, dtype=self.module.int32, device=x.device)


class _NumPy:
    def __init__(self, module):
        self.module = module

    def absmax(self, x):
        return self.module.abs(x).max((1, 3), initial=0).astype(self.module.float32)

    def scale_of(self, absmax):
        usable = self.module.isfinite(absmax) & (absmax > 0)
        return self.module.where(usable, absmax / self.module.float32(_LARGEST), self.module.float32(1))

    def largest_of_groups(self, absmax, groups):
        return absmax.reshape(absmax.shape[0], groups, -1).max(2)

    def repeated(self, scale, times):
        return self.module.repeat(scale, times, 1)

    def new_codes(self, x):
        try:
            from ml_dtypes import float8_e4m3fn
        except ImportError as error:
            raise UnsupportedError("float8_e4m3fn is a type of ml_dtypes in NumPy, which is not installed") from error
        return self.module.empty(x.shape, float8_e4m3fn)

    def zero_length(self, x):
        return self.module.zeros(1, self.module.int32)


def _library_of(tensor, name):
    for module, type_name, library in (("torch", "Tensor", _Torch), ("numpy", "ndarray", _NumPy)):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(tensor, getattr(loaded, type_name)):
            return library(loaded)
    raise TypeError(f"{name} is of type {type(tensor).__name__}; quantize_qkv takes tensors of PyTorch and NumPy")


def _converted(library, x, scale):
    codes = library.new_codes(x)
    if 0 in x.shape:
        return codes
    length = library.zero_length(x)
    for i in range(x.shape[0]):
        # A sequence is a page, of which all rows are new.
        append(x[i : i + 1], None, codes[i : i + 1], None, cache_lengths=length, k_scale=scale[i])
    return codes


def quantize_qkv(q, k, v):
    """q, k and v as attention() takes them in float8_e4m3fn: each divided by a scale of its sequence and K/V head, the
    largest magnitude there over 448, then rounded once to the nearest. On the CPU.

    Args:
        q: [b, s_q, h_q, d], bfloat16, float16 or float32, of PyTorch or NumPy (with ml_dtypes).
        k, v: [b, s_k, h_k, d] and [b, s_k, h_k, d_v], q's dtype.

    Returns:
        (q, k, v, q_descale, k_descale, v_descale): the tensors in float8_e4m3fn, and the scales, float32 [b, h_k], by
        these names for attention(). Where a head is all zeros, or holds NaN or infinities, its scale is 1: NaN stays
        NaN, and what is larger than 448 becomes that.

    Raises:
        As append().
    """
    library = _library_of(q, "q")
    for name, x in {"q": q, "k": k, "v": v}.items():
        if type(_library_of(x, name)) is not type(library):
            raise TypeError(f"{name} is of type {type(x).__name__} and q of type {type(q).__name__}")
        if x.ndim != 4:
            raise InvalidArgument(f"{name} has rank {x.ndim}; quantize_qkv needs 4: [b, s, heads, d]")
    heads_k = k.shape[2]
    if heads_k == 0 or q.shape[2] % heads_k != 0:
        raise InvalidArgument(f"q has {q.shape[2]} heads and k {heads_k}; the first must be a multiple of the second")
    if q.shape[2] == 0:
        raise InvalidArgument("q has 0 heads; at least 1 is needed")
    q_scale = library.scale_of(library.largest_of_groups(library.absmax(q), heads_k))
    k_scale = library.scale_of(library.absmax(k))
    v_scale = library.scale_of(library.absmax(v))
    codes = (
        _converted(library, q, library.repeated(q_scale, q.shape[2] // heads_k)),
        _converted(library, k, k_scale),
        _converted(library, v, v_scale),
    )
    return (*codes, q_scale, k_scale, v_scale)
