"""Memory that a caller hands to foveal's functions."""

from typing import Any


class Workspace:
    """Memory for a launch's intermediate results: `foveal.attention(..., workspace=workspace)`.

    It is filled with zeros once, here, and every call leaves its control words as it found them: so one serves calls of
    all shapes, one after the other; calls that may run at the same time (on two streams, say) have one each. It never
    grows: plan() says how many bytes make a call fast, and a call that gets fewer computes all the same, or says what
    it needs.
    """

    def __init__(self, size: int, like: Any) -> None:
        """size: bytes, rounded up to whole words of 4. like: a tensor of PyTorch or NumPy, on whose device it lies."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"size is {size!r}; it must be a number of bytes, 0 or more")
        words = (size + 3) // 4
        if type(like).__module__.partition(".")[0] == "numpy":
            import numpy

            spare = numpy.zeros(words + 15, numpy.int32)  # so that 64 bytes' alignment fits
            first = -spare.ctypes.data % 64 // 4
            self.tensor: Any = spare[first : first + words]
        else:
            import torch

            if not isinstance(like, torch.Tensor):
                raise TypeError(f"like is of type {type(like).__name__}; it must be a tensor of PyTorch or NumPy")
            self.tensor = torch.zeros(words, dtype=torch.int32, device=like.device)

    @property
    def size(self) -> int:
        """In bytes."""
        return 4 * int(self.tensor.shape[0])

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tensor.__dlpack__(*args, **kwargs)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()
