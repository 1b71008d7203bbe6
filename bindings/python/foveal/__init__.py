"""foveal: fused attention for NVIDIA Hopper GPUs and for CPUs.

    out = foveal.attention(q, k, v, causal=True)

Tensors of PyTorch, NumPy, CuPy and JAX are used where they lie. PyTorch's dispatcher: `import foveal.torch`. JAX under
jit: `import foveal.jax`. In place of PyTorch's scaled_dot_product_attention: `foveal.compat.torch`. FlashAttention's
functions: `foveal.compat.flash_attn`. Hugging Face transformers: `foveal.compat.transformers`.
"""

import os as _os

from foveal._foveal import (
    CudaError,
    Error,
    InvalidArgument,
    NoDeviceError,
    OutOfMemoryError,
    UnsupportedError,
    append,
    attention,
    attention_varlen,
    copy_pages,
    gather,
    merge,
    use_library,
)
from foveal._functions import (
    Gradients,
    Plan,
    Support,
    attention_backward,
    backends,
    dropout_mask,
    get_num_threads,
    plan,
    quantize_qkv,
    set_num_threads,
    supports,
    version,
)
from foveal._workspace import Workspace

if _os.environ.get("FOVEAL_LIBRARY"):
    use_library(_os.environ["FOVEAL_LIBRARY"])

__version__ = version()
__all__ = [
    "CudaError",
    "Error",
    "Gradients",
    "InvalidArgument",
    "NoDeviceError",
    "OutOfMemoryError",
    "Plan",
    "Support",
    "UnsupportedError",
    "Workspace",
    "append",
    "attention",
    "attention_backward",
    "attention_varlen",
    "backends",
    "copy_pages",
    "dropout_mask",
    "gather",
    "get_num_threads",
    "merge",
    "plan",
    "quantize_qkv",
    "set_num_threads",
    "supports",
    "version",
]
