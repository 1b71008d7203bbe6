"""quantize_qkv(): q, k and v to float8_e4m3fn. The scales and the conversion are foveal.append's."""

import sys

from foveal._foveal import InvalidArgument, UnsupportedError, append


class _Torch:
    def __init__(self, module):
        self.module = module

    def new_codes(self, x):
        return self.module.empty(x.shape, dtype=self.module.float8_e4m3fn, device=x.device)

    def new_scales(self, x, heads):
        return self.module.ones((x.shape[0], heads), dtype=self.module.float32, device=x.device)

    def zero_length(self, x):
        return self.module.zeros(1, dtype=self.module.int32, device=x.device)


class _NumPy:
    def __init__(self, module):
        self.module = module

    def new_codes(self, x):
        try:
            from ml_dtypes import float8_e4m3fn
        except ImportError as error:
            raise UnsupportedError("float8_e4m3fn is a type of ml_dtypes in NumPy, which is not installed") from error
        return self.module.empty(x.shape, float8_e4m3fn)

    def new_scales(self, x, heads):
        return self.module.ones((x.shape[0], heads), self.module.float32)

    def zero_length(self, x):
        return self.module.zeros(1, self.module.int32)


def _library_of(tensor, name):
    for module, type_name, library in (("torch", "Tensor", _Torch), ("numpy", "ndarray", _NumPy)):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(tensor, getattr(loaded, type_name)):
            return library(loaded)
    raise TypeError(f"{name} is of type {type(tensor).__name__}; quantize_qkv takes tensors of PyTorch and NumPy")


def _converted(library, x, heads):
    """x [b, s, heads * n, d] in e4m3, and its scales [b, heads]: the n query heads of a K/V head have one."""
    codes, scales = library.new_codes(x), library.new_scales(x, heads)
    if 0 in x.shape:
        return codes, scales
    rows, pages = (t.reshape(*t.shape[:2], heads, -1) for t in (x, codes))
    length = library.zero_length(x)
    for i in range(x.shape[0]):
        # A sequence is a page, of which all rows are new.
        append(rows[i : i + 1], None, pages[i : i + 1], None, cache_lengths=length, k_scale_out=scales[i])
    return codes, scales


def quantize_qkv(q, k, v):
    """q, k and v as attention() takes them in float8_e4m3fn: each divided by a scale of its sequence and K/V head, the
    largest finite magnitude there over 448, then rounded once to the nearest. On the CPU.

    Args:
        q: [b, s_q, h_q, d], bfloat16, float16 or float32, of PyTorch or NumPy (with ml_dtypes).
        k, v: [b, s_k, h_k, d] and [b, s_k, h_k, d_v], q's dtype.

    Returns:
        (q, k, v, q_descale, k_descale, v_descale): the tensors in float8_e4m3fn, and the scales, float32 [b, h_k], by
        these names for attention(). Where a head is all zeros its scale is 1; NaN stays NaN, and infinities become the
        largest number.

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
    (q, q_scale), (k, k_scale), (v, v_scale) = (_converted(library, x, heads_k) for x in (q, k, v))
    return q, k, v, q_scale, k_scale, v_scale
