"""foveal.supports and foveal.plan: answers without data, and without a GPU."""

import foveal
import numpy as np
import pytest

Q, KV = ((1, 4096, 32, 128), "bfloat16"), ((1, 4096, 8, 128), "bfloat16")


def test_support_and_its_reason():
    assert foveal.supports(Q, KV, KV, causal=True, backend="sm90")
    assert foveal.supports(Q, KV, KV).reason == ""
    q, kv = ((1, 64, 4, 128), "float32"), ((1, 64, 4, 128), "float32")
    answer = foveal.supports(q, kv, kv, backend="sm90")
    assert not answer and "q.dtype is f32" in answer.reason and "q.dtype is f32" in repr(answer)
    assert foveal.supports(q, kv, kv, backend="cpu")


def test_tensors_and_malformed_problems():
    x = np.zeros((1, 4, 2, 8), np.float32)
    assert foveal.supports(x, x, x)
    with pytest.raises(foveal.InvalidArgument, match="k.shape"):
        foveal.supports(x, x[..., :4], x)
    with pytest.raises(foveal.InvalidArgument, match='backend is "gpu"'):
        foveal.supports(x, x, x, backend="gpu")
    with pytest.raises(TypeError, match="q is a tuple"):
        foveal.supports((1, 2, 3), x, x)
    with pytest.raises(foveal.InvalidArgument, match="q.dtype is int8"):
        foveal.supports(((1, 4, 2, 8), "int8"), x, x)


@pytest.mark.parametrize("dimension", ["a", 1.5, None, 2**70, [1]], ids=repr)
def test_shapes_that_are_no_integers(dimension):
    for call in (foveal.supports, foveal.plan):
        for name in ("q", "v", "bias"):
            arguments = {"q": Q, "k": KV, "v": KV, name: ((1, dimension, 32, 128), "bfloat16")}
            with pytest.raises(TypeError, match=f"^{name}.shape\\[1\\] is .*integer"):
                call(**arguments, backend="cpu")
    with pytest.raises(TypeError, match="^q.shape\\[0\\] is 'a'"):
        foveal.supports(("abc", "bfloat16"), KV, KV)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")], ids=repr)
def test_dtypes_in_descriptions(dtype):
    assert foveal.supports(*[((1, 4, 2, 8), dtype)] * 3, backend="cpu")
    with pytest.raises(foveal.InvalidArgument, match="^q.dtype is .udc80"):
        foveal.supports(*[((1, 4, 2, 8), "\udc80")] * 3)


def test_plan_is_printable():
    x = np.zeros((1, 4, 2, 8), np.float32)
    plan = foveal.plan(x, x, x)
    assert str(plan) and plan.workspace_bytes == 0
    with pytest.raises(foveal.InvalidArgument, match="backend"):
        foveal.plan(Q, KV, KV)


@pytest.mark.skipif("sm90" not in foveal.backends(), reason="SKIPPED: this build of foveal has no CUDA part")
def test_plan_for_a_gpu_that_is_not_there():
    assert "128 keys" in str(foveal.plan(Q, KV, KV, causal=True, backend="sm90"))
