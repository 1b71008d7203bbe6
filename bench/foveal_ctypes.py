"""The few lines of the C ABI that compare.py needs, through ctypes. The Python package will replace this file."""

import ctypes

MAX_RANK = 4
BF16, F16 = 2, 3
SM90 = 2


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("stride", ctypes.c_int64 * MAX_RANK),
    ]


class ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("backend", ctypes.c_int32),
        *[(name, Tensor) for name in ("q", "k", "v", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k")],
        ("scale", ctypes.c_float),
        ("alignment", ctypes.c_int32),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("softcap", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *[(name, Tensor) for name in ("alibi_slopes", "sinks", "bias", "mask")],
    ]


def _view(tensor):
    import torch

    dtypes = {torch.float32: 1, torch.bfloat16: BF16, torch.float16: F16, torch.int32: 4}
    view = Tensor(tensor.data_ptr(), dtypes[tensor.dtype], tensor.dim())
    for i in range(tensor.dim()):
        view.shape[i], view.stride[i] = tensor.shape[i], tensor.stride(i)
    return view


class Foveal:
    """libfoveal.so at `path`."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.foveal_last_error.restype = ctypes.c_char_p
        self.library.foveal_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def prepare(self, q, k, v, out, causal=False, **optional):
        """Arguments of a call; optional: lse, cu_seqlens_q, ... as tensors."""
        args = ForwardArgs()
        self.library.foveal_forward_args_init(ctypes.byref(args))
        assert args.struct_size == ctypes.sizeof(args), "this file does not match the library"
        args.backend = SM90
        for name, tensor in dict(q=q, k=k, v=v, out=out, **optional).items():
            setattr(args, name, _view(tensor))
        if causal:
            args.window_right = 0
        return args

    def forward(self, args, stream):
        """Enqueues the call on `stream` (a cudaStream_t as an integer)."""
        if self.library.foveal_forward(ctypes.byref(args), stream) != 0:
            raise RuntimeError(self.library.foveal_last_error().decode())
