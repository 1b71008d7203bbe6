"""What is written lies apart from what is read, or the call is refused by name and writes nothing."""

import foveal
import numpy as np
import pytest


def dense():
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal((1, 30, 4, 16)).astype(np.float32) for name in "qkv"}


@pytest.mark.parametrize("name", "qkv")
def test_out_over_an_input(name):
    tensors = dense()
    before = tensors[name].copy()
    with pytest.raises(foveal.InvalidArgument, match=f"out overlaps {name}"):
        foveal.attention(**tensors, out=tensors[name])
    np.testing.assert_array_equal(tensors[name], before)


@pytest.mark.parametrize("name", "qkv")
def test_out_over_an_input_of_sequences_one_after_the_other(name):
    tensors = {key: value[0] for key, value in dense().items()}
    ends = np.array([0, 10, 30], np.int32)
    with pytest.raises(foveal.InvalidArgument, match=f"out overlaps {name}"):
        foveal.attention_varlen(**tensors, cu_seqlens_q=ends, cu_seqlens_k=ends, out=tensors[name])


def test_out_over_half_of_an_input():
    tensors = dense()
    buffer = np.concatenate([tensors["q"], tensors["q"]], axis=1)
    tensors["q"] = buffer[:, :30]
    with pytest.raises(foveal.InvalidArgument, match="out overlaps q"):
        foveal.attention(**tensors, out=buffer[:, 15:45])
    expected = foveal.attention(**tensors)
    np.testing.assert_array_equal(foveal.attention(**tensors, out=buffer[:, 30:]), expected)


def test_out_over_a_bias():
    tensors = dense()
    bias = np.zeros((1, 4, 30, 30), np.float32)
    out = bias.reshape(-1)[: 30 * 4 * 16].reshape(1, 30, 4, 16)
    with pytest.raises(foveal.InvalidArgument, match="out overlaps bias"):
        foveal.attention(**tensors, bias=bias, out=out)


def test_parts_of_one_buffer():
    tensors = dense()
    expected = foveal.attention(**tensors)
    fused = np.stack([tensors["q"], tensors["k"], tensors["v"], tensors["v"]], axis=2)  # [b, s, 4, h, d]
    foveal.attention(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2], out=fused[:, :, 3])
    np.testing.assert_array_equal(fused[:, :, 3], expected)
