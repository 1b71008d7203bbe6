import importlib.util
import os
import tempfile

import pytest

# A cache of their own: Inductor's keeps code that calls operators with as many arguments as they had when it was
# compiled, and does not look whether they still do (findings/inductor-cache-ignores-operator-schema.sh).
_INDUCTOR_CACHE = tempfile.TemporaryDirectory(prefix="foveal-inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _INDUCTOR_CACHE.name


def _gpu_missing():
    """Why tests on a GPU cannot run here; empty if they can."""
    import foveal

    if "sm90" not in foveal.backends():
        return "this build of foveal has no CUDA part"
    if importlib.util.find_spec("torch") is None:
        return "no PyTorch"
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() != (9, 0):
        return "the CUDA device is no Hopper GPU"
    return ""


def pytest_collection_modifyitems(items):
    missing = None
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            missing = _gpu_missing() if missing is None else missing
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"SKIPPED: {missing}"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def require():
    """require(support): skips where a GPU backend does not support a problem yet; the CPU must support all."""

    def check(support, device):
        if device == "cpu":
            assert support, support.reason
        elif not support:
            pytest.skip(f"SKIPPED: sm90: {support.reason}")

    return check
