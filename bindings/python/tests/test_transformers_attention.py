"""The attention and mask functions that foveal registers with transformers, called as models call them."""

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")

import foveal  # noqa: E402
import foveal.compat.transformers  # noqa: E402
from transformers import masking_utils  # noqa: E402


def layer(is_causal=True):
    module = torch.nn.Module()
    module.is_causal = is_causal
    return module


def random_qkv(batch=2, heads=4, kv_heads=2, rows=24, keys=24, d=16):
    generator = torch.Generator().manual_seed(3)
    shapes = (heads, rows, d), (kv_heads, keys, d), (kv_heads, keys, d)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


def forward(*arguments, **options):
    return foveal.compat.transformers.attention_forward(*arguments, **options)[0]


def exact(q, k, v, mask=None, bias=None):
    """[b, s, h, d] in float64; rows without a key are 0."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q.double() @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0) @ v).transpose(1, 2).float()


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def causal_mask(rows, keys, left=10**6, off=0):
    away = torch.arange(keys)[None, :] - torch.arange(rows)[:, None] - off
    return ((away <= 0) & (away >= -left))[None, None]


def same_sequence(lengths):
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (sequence[:, None] == sequence[None, :])[None, None]


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_the_unsupported_raises_by_name():
    q = torch.zeros(1, 2, 4, 16)
    with pytest.raises(foveal.UnsupportedError, match="output_attentions"):
        forward(layer(), q, q, q, None, output_attentions=True)


@pytest.mark.parametrize("name", ["indices", "block_indices", "head_mask", "seq_idx", "an_option_to_come"])
@pytest.mark.parametrize("value", [torch.zeros(1, 4, 2), 0, 3, "text", True])
def test_an_unknown_argument_raises_by_name(name, value):
    q = torch.zeros(1, 2, 4, 16)
    with pytest.raises(foveal.UnsupportedError, match=f"{name} is "):
        forward(layer(), q, q, q, None, **{name: value})


def test_arguments_that_say_nothing_are_accepted():
    q, k, v = random_qkv()
    told = {"indices": None, "output_attentions": False, "position_ids": torch.arange(24)[None], "use_cache": True}
    assert_same(forward(layer(), q, k, v, None, **told), exact(q, k, v, causal_mask(24, 24)))


# ---- Masks -----------------------------------------------------------------------------------------------------------

MASKS = {
    "causal": masking_utils.causal_mask_function,
    "full": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(5),
    "full window": masking_utils.sliding_window_bidirectional_mask_function(5),
    "chunks": masking_utils.chunked_causal_mask_function(5, torch.zeros(2, dtype=torch.int64)),
    "two windows": masking_utils.and_masks(
        masking_utils.sliding_window_overlay(7), masking_utils.sliding_window_causal_mask_function(5)
    ),
    "packed": masking_utils.and_masks(
        masking_utils.causal_mask_function,
        masking_utils.packed_sequence_mask_function(torch.arange(64).expand(2, -1) // 9),
    ),
    "prefix": masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k < 4),
    "own": lambda b, h, q, k: (k <= q) & (k != 3),
}
STEPS = {  # rows, keys, position of the first row, position of the first key
    "prompt": (24, 24, 0, 0),
    "one token": (1, 24, 23, 0),
    "several tokens": (6, 24, 18, 0),
    "static cache, prompt": (10, 24, 0, 0),
    "static cache, several tokens": (6, 24, 10, 0),
    "window's cache": (6, 10, 20, 16),
}
PADDING = {
    "none": None,
    "nothing": lambda seen: seen,
    "left": lambda seen: seen.scatter(1, torch.zeros(2, 1).long(), False),
}
PLAIN = {"causal", "full", "window", "full window", "two windows"}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_is_left_out_says_what_it_would_have_said(name, step, padding):
    rows, keys, first, first_key = STEPS[step]
    seen = None if padding == "none" else PADDING[padding](torch.ones(2, keys + first_key, dtype=torch.bool))
    arguments = {
        "batch_size": 2,
        "q_length": rows,
        "kv_length": keys,
        "q_offset": torch.tensor(first) if "static" in step else first,
        "kv_offset": first_key,
        "mask_function": MASKS[name],
        "attention_mask": seen,
    }
    written = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
    mask = foveal.compat.transformers.attention_mask_for(**arguments)
    assert mask.shape == written.shape and mask.dtype == torch.bool
    assert not (name not in PLAIN and isinstance(mask, foveal.compat.transformers.PlainMask))
    if name == "causal" and step == "prompt" and padding != "left":
        assert isinstance(mask, foveal.compat.transformers.PlainMask)
    q, k, v = random_qkv(rows=rows, keys=keys)
    for is_causal in (True, False):  # the mask says all: neither the layer nor its window is asked
        actual = forward(layer(is_causal), q, k, v, mask, sliding_window=3, is_causal=is_causal)
        assert_same(actual, exact(q, k, v, written))
    assert torch.equal(mask.clone(), written)


def plain_mask(batch_size=2, **options):
    return foveal.compat.transformers.attention_mask_for(batch_size=batch_size, q_length=24, kv_length=24, **options)


def test_a_plain_mask_is_an_ordinary_one_for_whoever_looks_at_it():
    expected = torch.ones(24, 24, dtype=torch.bool).tril().expand(2, 1, 24, 24)
    assert torch.equal(plain_mask()[:, :, :, :20], expected[..., :20])
    assert torch.equal(torch.where(plain_mask(), 0.0, -1.0), torch.where(expected, 0.0, -1.0))
    assert torch.equal(torch.cat([plain_mask(), expected], -1), torch.cat([expected, expected], -1))
    assert torch.equal(~plain_mask(), ~expected) and int(plain_mask().sum()) == int(expected.sum())
    assert "PlainMask" in repr(plain_mask()) and plain_mask().device.type == "cpu"


def test_a_plain_mask_that_was_changed_is_no_longer_plain():
    q, k, v = random_qkv(batch=1)
    mask = plain_mask(batch_size=1)
    mask[:, :, :, 3] = False
    expected = causal_mask(24, 24).clone()
    expected[..., 3] = False
    assert_same(forward(layer(), q, k, v, mask), exact(q, k, v, expected))


def test_no_plain_mask_where_a_real_one_is_asked_for():
    mask = plain_mask(allow_is_causal_skip=False)
    assert type(mask) is torch.Tensor


def test_a_model_that_knows_only_eager_gets_masks_of_numbers():
    q, k, v = random_qkv()
    seen = torch.ones(2, 24, dtype=torch.bool)
    assert not transformers.GptOssForCausalLM._supports_sdpa and transformers.LlamaForCausalLM._supports_sdpa
    for config, dtype in ((transformers.GptOssConfig(), torch.float32), (transformers.LlamaConfig(), torch.bool)):
        assert plain_mask(config=config, dtype=torch.float32).dtype == dtype
        seen[0, :3] = False
        mask = plain_mask(config=config, dtype=torch.float32, attention_mask=seen)
        assert type(mask) is torch.Tensor and mask.dtype == dtype
        assert_same(
            forward(layer(), q, k, v, mask)[:, 3:], exact(q, k, v, causal_mask(24, 24) & seen[:, None, None])[:, 3:]
        )


def test_a_full_mask_hides_nothing_whatever_its_shape():  # BridgeTower counts the queries for the keys
    q, k, v = random_qkv(keys=17)
    mask = plain_mask(mask_function=MASKS["full"], allow_is_bidirectional_skip=True)
    assert_same(forward(layer(), q, k, v, mask), exact(q, k, v))


def test_a_mask_that_is_shared_by_strides():
    q, k, v = random_qkv()
    mask = causal_mask(24, 24)
    assert_same(forward(layer(), q, k, v, mask.expand(2, 4, 24, 24)), exact(q, k, v, mask))


def test_without_a_mask_the_layer_says_all():
    q, k, v = random_qkv()
    assert_same(forward(layer(True), q, k, v, None), exact(q, k, v, causal_mask(24, 24)))
    assert_same(forward(layer(False), q, k, v, None), exact(q, k, v))
    assert_same(forward(layer(True), q, k, v, None, is_causal=False), exact(q, k, v))
    assert_same(forward(layer(False), q, k, v, None, is_causal=True), exact(q, k, v, causal_mask(24, 24)))
    assert_same(forward(layer(), q, k, v, None, sliding_window=5), exact(q, k, v, causal_mask(24, 24, left=4)))
    assert_same(forward(layer(), q[:, :, :1], k, v, None), exact(q[:, :, :1], k, v))
    assert_same(forward(layer(), q[:, :, :9], k, v, None), exact(q[:, :, :9], k, v, causal_mask(9, 24)))


@pytest.mark.parametrize(
    "shape", [(24,), (24, 24), (1, 24, 24), (4, 24, 24), (2, 1, 1, 24), (2, 1, 24, 1), (1, 4, 1, 24)]
)
def test_masks_of_every_shape(shape):
    q, k, v = random_qkv()
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    assert_same(forward(layer(), q, k, v, bias), exact(q, k, v, bias=bias))
    assert_same(forward(layer(), q, k, v, bias > 0), exact(q, k, v, bias > 0))
    assert_same(forward(layer(), q, k, v, bias > 0, position_bias=bias), exact(q, k, v, bias > 0, bias))
    assert_same(forward(layer(), q, k, v, bias, position_bias=bias), exact(q, k, v, bias=2 * bias))
    assert_same(forward(layer(), q, k, v, None, position_bias=bias), exact(q, k, v, causal_mask(24, 24), bias))


def test_a_row_of_a_mask_that_shows_nothing_gives_zero():
    q, k, v = random_qkv()
    mask = causal_mask(24, 24).clone()
    mask[..., 7, :] = False
    assert (forward(layer(), q, k, v, mask)[:, 7] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_lowest_number_of_a_mask_hides_a_key(dtype):
    q, k, v = (x.to(dtype) for x in random_qkv())
    seen = causal_mask(24, 24) & (torch.arange(24) >= 5)  # rows 0 to 4 see no key
    numbers = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)
    position = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(5)).to(dtype)
    for bias in (None, position):
        actual = forward(layer(), q, k, v, numbers, position_bias=bias)
        assert torch.equal(actual, forward(layer(), q, k, v, seen, position_bias=bias))
        assert (actual[:, :5] == 0).all() and (actual[:, 5:] != 0).any()


def test_masks_that_do_not_fit_raise():
    q, k, v = random_qkv()
    for shape in [(2, 1, 24, 25), (3, 1, 24, 24), (1, 1, 1, 24, 24), (2, 1, 23, 24)]:
        with pytest.raises(foveal.InvalidArgument, match="attention_mask.shape"):
            forward(layer(), q, k, v, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(foveal.UnsupportedError, match="attention_mask.dtype is torch.int64"):
        forward(layer(), q, k, v, torch.ones(2, 1, 24, 24, dtype=torch.int64))


# ---- Packed sequences ------------------------------------------------------------------------------------------------


def lengths_of(*ends):
    return torch.tensor([0, *ends])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("window", [None, 5])
def test_packed_lengths_count_the_rows_of_the_whole_batch(window, dtype):
    q, k, v = random_qkv()
    cu = lengths_of(10, 24, 28, 48).to(dtype)
    mask = causal_mask(24, 24, left=10**6 if window is None else window - 1)
    masks = torch.cat([mask & same_sequence([10, 14]), mask & same_sequence([4, 20])])
    for given in (None, plain_mask(mask_function=MASKS["causal" if window is None else "window"])):
        actual = forward(layer(), q, k, v, given, sliding_window=window, cu_seq_lens_q=cu, cu_seq_lens_k=cu)
        assert_same(actual, exact(q, k, v, masks))


@pytest.mark.parametrize("kind", ["mask", "shared mask", "floating mask", "bias"])
def test_packed_lengths_beside_a_mask(kind):
    q, k, v = random_qkv()
    cu = lengths_of(10, 24, 28, 48)
    generator = torch.Generator().manual_seed(7)
    bias = torch.randn(1 if kind == "shared mask" else 2, 1, 24, 24, generator=generator)
    masks = torch.cat([same_sequence([10, 14]), same_sequence([4, 20])]) & causal_mask(24, 24)
    given = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu}
    if kind == "bias":
        actual = forward(layer(), q, k, v, None, position_bias=bias, **given)
        assert_same(actual, exact(q, k, v, masks, bias))
    elif kind == "floating mask":
        floating = bias.masked_fill(~causal_mask(24, 24), -torch.inf)
        assert_same(forward(layer(), q, k, v, floating, **given), exact(q, k, v, masks, bias))
    else:
        seen = causal_mask(24, 24) & (bias > -0.5)
        assert_same(forward(layer(), q, k, v, seen, **given), exact(q, k, v, masks & (bias > -0.5)))


def packed_mask(sequences, inside="causal", **options):
    function = masking_utils.and_masks(MASKS[inside], masking_utils.packed_sequence_mask_function(sequences))
    return plain_mask(mask_function=function, allow_is_causal_skip=False, **options)


@pytest.mark.parametrize("inside", ["causal", "window", "full"])
def test_a_mask_of_packed_sequences_is_lengths(inside):
    q, k, v = random_qkv()
    sequences = torch.stack([torch.arange(24) // 9, torch.arange(24) // 13])
    mask = packed_mask(sequences, inside)
    assert mask.cu_seq_lens.tolist() == [0, 9, 18, 24, 37, 48] and mask.cu_seq_lens.dtype == torch.int32
    actual = forward(layer(), q, k, v, mask)
    same = torch.cat([same_sequence([9, 9, 6]), same_sequence([13, 11])])
    known = {"causal": causal_mask(24, 24), "window": causal_mask(24, 24, left=4), "full": torch.tensor(True)}
    assert_same(actual, exact(q, k, v, same & known[inside]))
    given = {"cu_seq_lens_q": mask.cu_seq_lens.long(), "cu_seq_lens_k": mask.cu_seq_lens.long()}
    assert torch.equal(forward(layer(), q, k, v, mask, **given), actual) and mask.sides is not None
    bias = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(7))
    assert_same(forward(layer(), q, k, v, mask, position_bias=bias), exact(q, k, v, same & known[inside], bias))
    cu = lengths_of(9, 18, 20, 24, 37, 48)
    cut = torch.cat([same_sequence([20, 4]), same_sequence([24])])
    assert_same(
        forward(layer(), q, k, v, mask, cu_seq_lens_q=cu, cu_seq_lens_k=cu), exact(q, k, v, same & known[inside] & cut)
    )
    assert mask.sides is None  # written out, and still right
    assert_same(forward(layer(), q, k, v, mask), exact(q, k, v, same & known[inside]))


def test_a_mask_of_sequences_that_come_back_is_written():
    assert type(packed_mask(torch.tensor([[0] * 8 + [1] * 8 + [0] * 8] * 2))) is torch.Tensor
    assert type(packed_mask(torch.zeros(2, 32), q_offset=3)) is torch.Tensor


def test_packed_lengths_that_do_not_fit_raise():
    q, k, v = random_qkv()
    whole = lengths_of(24, 48)
    for cu in (lengths_of(10, 24), lengths_of(24, 96), lengths_of(30, 20, 48), torch.tensor([5, 48])):
        with pytest.raises(foveal.InvalidArgument, match="cu_seq_lens_q is .*0 to 48"):
            forward(layer(), q, k, v, None, cu_seq_lens_q=cu, cu_seq_lens_k=whole)
        with pytest.raises(foveal.InvalidArgument, match="cu_seq_lens_k is .*0 to 48"):
            forward(layer(), q, k, v, None, cu_seq_lens_q=whole, cu_seq_lens_k=cu)
    with pytest.raises(foveal.InvalidArgument, match="need both"):
        forward(layer(), q, k, v, None, cu_seq_lens_q=whole)
    with pytest.raises(foveal.UnsupportedError, match="end with its row"):
        cu = lengths_of(30, 48)
        forward(layer(), q, k, v, causal_mask(24, 24), cu_seq_lens_q=cu, cu_seq_lens_k=cu)


def test_packed_lengths_are_read_again_when_they_change():
    q, k, v = random_qkv(batch=1)
    cu = lengths_of(10, 24)
    for end in (10, 11):
        cu[1] = end
        actual = forward(layer(), q, k, v, causal_mask(24, 24), cu_seq_lens_q=cu, cu_seq_lens_k=cu)
        assert_same(actual, exact(q, k, v, causal_mask(24, 24) & same_sequence([end, 24 - end])))
    cu[2] = 23
    with pytest.raises(foveal.InvalidArgument, match="0 to 24"):
        forward(layer(), q, k, v, causal_mask(24, 24), cu_seq_lens_q=cu, cu_seq_lens_k=cu)


# ---- Tensors ---------------------------------------------------------------------------------------------------------


def strided(x, kind):
    if kind == "time":  # [b, h, s, d] of a projection along the time
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == "gaps":
        return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    if kind == "heads":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    return x[:, :1].expand_as(x)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["time", "gaps", "heads", "shared"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_tensors_of_any_strides(which, kind, packed):
    qkv = random_qkv()
    qkv[which] = strided(qkv[which], kind)
    cu = {"cu_seq_lens_q": lengths_of(24, 48), "cu_seq_lens_k": lengths_of(24, 48)} if packed else {}
    assert_same(forward(layer(), *qkv, None, **cu), exact(*qkv, causal_mask(24, 24)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_type_to_q_k_and_v(dtype):
    q, k, v = random_qkv()
    bias = torch.randn(2, 1, 24, 24, dtype=torch.float32)
    low = [x.to(dtype) for x in (q, k, v)]
    expected = forward(layer(), *low, bias)
    with torch.autocast("cpu", dtype=dtype):
        actual = forward(layer(), q, low[1], low[2], bias)
        from_other = forward(layer(), q, low[1], low[2], bias.to(torch.bfloat16))
        sdpa = torch.nn.functional.scaled_dot_product_attention(q, low[1], low[2], attn_mask=bias, enable_gqa=True)
    assert actual.dtype == sdpa.dtype == dtype and torch.equal(actual, expected)
    torch.testing.assert_close(from_other.float(), actual.float(), atol=0.05, rtol=0.05)


def test_types_that_differ_raise_without_autocast():
    q, k, v = random_qkv()
    with pytest.raises(foveal.Error, match="dtype"):
        forward(layer(), q, k.bfloat16(), v.bfloat16(), None)
