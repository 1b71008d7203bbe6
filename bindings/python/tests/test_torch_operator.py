"""torch.ops.foveal.*: opcheck, torch.compile with dynamic shapes, CUDA graphs, gradients."""

import shutil

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import foveal.torch  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402


def tensors(device, b=2, s_q=40, s_k=56, h_q=4, h_k=2, d=64):
    torch.manual_seed(0)
    shapes = (b, s_q, h_q, d), (b, s_k, h_k, d), (b, s_k, h_k, d)
    return [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]


def packed(device):
    q, k, v = (x.flatten(0, 1) for x in tensors(device))
    cu_q, cu_k = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 30, 80], [0, 50, 112]))
    return q, k, v, cu_q, cu_k


@pytest.mark.parametrize("name", ["attention", "attention_lse", "attention_varlen", "attention_varlen_lse"])
def test_opcheck(name, device):
    args = packed(device) if "varlen" in name else tensors(device)
    operator = getattr(torch.ops.foveal, name)
    for options in ({}, {"causal": True, "scale": 0.1}, {"window_left": 8, "window_right": 4, "align": "top_left"}):
        torch.library.opcheck(operator, tuple(args), options)


def test_the_operator_is_the_function(device):
    q, k, v = tensors(device)
    assert torch.equal(torch.ops.foveal.attention(q, k, v, causal=True), foveal.attention(q, k, v, causal=True))
    out, lse = torch.ops.foveal.attention_lse(q, k, v, window_left=5)
    expected, expected_lse = foveal.attention(q, k, v, window=(5, None), return_lse=True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


@pytest.mark.parametrize("attention", [foveal.attention, foveal.torch.attention])
def test_compile_with_dynamic_shapes(device, attention):
    def layer(q, k, v):
        out, lse = attention(q * 2, k, v, causal=True, window=(20, None), return_lse=True)
        return out + 1, lse

    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=graphs)
    for s in (40, 41, 56, 72):
        q, k, v = tensors(device, s_q=s, s_k=s + 3)
        for actual, expected in zip(compiled(q, k, v), layer(q, k, v), strict=True):
            assert torch.equal(actual, expected)
    assert graphs.frame_count == 1


def need_inductor(device):
    from torch.utils._triton import has_triton

    if device == "cuda" and not has_triton():
        pytest.skip("SKIPPED: no Triton")
    if shutil.which("g++") is None:
        pytest.skip("SKIPPED: no C++ compiler for TorchInductor")


def test_inductor(device):
    need_inductor(device)

    def layer(q, k, v):
        return foveal.torch.attention(q * 2, k, v, causal=True) + 1

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for s in (40, 41, 72):
        q, k, v = tensors(device, s_q=s, s_k=s)
        torch.testing.assert_close(compiled(q, k, v), layer(q, k, v))


def test_compile_varlen(device):
    def layer(q, k, v, cu_q, cu_k):
        return foveal.torch.attention_varlen(q, k, v, cu_q, cu_k, causal=True)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*packed(device)), layer(*packed(device)))


def test_gradient_is_recorded_or_refused(device):
    q, k, v = tensors(device)
    k.requires_grad_()
    for call in (torch.ops.foveal.attention, torch.ops.foveal.attention_lse, foveal.torch.attention):
        try:
            result = call(q, k, v)
        except foveal.UnsupportedError as error:
            assert device == "cuda" and "a gradient is recorded" in str(error)
        else:
            assert all(x.requires_grad for x in (result if isinstance(result, tuple) else (result,)))
        with torch.no_grad():
            call(q, k, v)


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(2, 8, 4, 64, dtype=torch.bfloat16, device="cuda")
        v = torch.empty(2, 8, 4, 32, dtype=torch.bfloat16, device="cuda")
        out, lse = torch.ops.foveal.attention_lse(q, q, v)
    assert out.shape == (2, 8, 4, 32) and out.dtype == torch.bfloat16 and out.device.type == "cuda"
    assert lse.shape == (2, 4, 8) and lse.dtype == torch.float32


@pytest.mark.gpu
def test_cuda_graph():
    q, k, v = tensors("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        foveal.attention(q, k, v, causal=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        direct = foveal.attention(q, k, v, causal=True)
        through_dispatcher = torch.ops.foveal.attention(q, k, v, causal=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for x in (q, k, v):
            x.normal_()
        graph.replay()
        expected = foveal.attention(q, k, v, causal=True)
        assert torch.equal(direct, expected) and torch.equal(through_dispatcher, expected)


@pytest.mark.gpu
def test_compile_with_cuda_graphs():
    need_inductor("cuda")

    def layer(q, k, v):
        return foveal.torch.attention(q, k, v, causal=True) * 2

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        q, k, v = tensors("cuda", s_k=40)
        torch.testing.assert_close(compiled(q, k, v).clone(), layer(q, k, v))


@pytest.mark.gpu
def test_current_stream():
    q, k, v = tensors("cuda", s_q=512, s_k=512)
    expected = foveal.attention(q, k, v)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the inputs are ready long after the call
        late = q.clone()
        out = foveal.attention(late, k, v)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
def test_devices_are_told_apart():
    q, k, v = tensors("cuda")
    with pytest.raises(foveal.InvalidArgument, match="k is on the CPU but q is on cuda:0"):
        foveal.attention(q, k.cpu(), v)
    with pytest.raises(foveal.InvalidArgument, match="out is on the CPU"):
        foveal.attention(q, k, v, out=q.cpu())


@pytest.mark.gpu
def test_no_stray_device_memory():
    q, k, v = tensors("cuda")
    foveal.attention(q, k, v)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()
    for _ in range(100):
        foveal.attention(q, k, v, return_lse=True)
    assert (torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()) == before


@pytest.mark.gpu
@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="SKIPPED: needs two GPUs")
def test_a_device_that_is_not_current():
    q, k, v = tensors("cuda:1")
    expected = foveal.attention(*tensors("cuda:0"))
    assert torch.equal(foveal.attention(q, k, v).cpu(), expected.cpu()) and torch.cuda.current_device() == 0
