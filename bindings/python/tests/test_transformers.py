"""attn_implementation="foveal" in Hugging Face transformers, on small randomly initialised models."""

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")

import foveal  # noqa: E402
import foveal.compat.transformers  # noqa: E402
import walk_transformers  # noqa: E402
from transformers import masking_utils  # noqa: E402

foveal.compat.transformers.register()

SIZE = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}

MODELS = {  # configuration, its own options, a reference that knows all of them
    "llama": ("LlamaConfig", {}, "sdpa"),
    "mistral": ("MistralConfig", {"sliding_window": 12}, "sdpa"),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": 12, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 64},
        "eager",
    ),
    "gpt_oss": ("GptOssConfig", {"sliding_window": 12, "num_local_experts": 1, "num_experts_per_tok": 1}, "eager"),
}


def model_of(name, device, implementation, dtype):
    torch.manual_seed(0)
    config_class, options, _ = MODELS[name]
    config = getattr(transformers, config_class)(**SIZE, **options)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=implementation, dtype=torch.float32
    )
    for parameter_name, parameter in model.named_parameters():
        if "sinks" in parameter_name:
            torch.nn.init.normal_(parameter)
        elif parameter.dim() > 1:  # sharp enough that the attention matters
            torch.nn.init.normal_(parameter, std=0.08)
    return model.to(device, dtype).eval()  # random numbers differ between types: drawn in float32


def batch(device, padding):
    torch.manual_seed(1)
    ids = torch.randint(1, 320, (3, 40), device=device)
    seen = torch.ones_like(ids)
    if padding == "left":
        seen[0, :11] = seen[1, :3] = 0
    elif padding == "right":
        seen[0, -11:] = seen[2, -3:] = 0
    return {"input_ids": ids, "attention_mask": seen}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.float()[inputs["attention_mask"].bool()]


def supported_or_skip(call):
    try:
        return call()
    except foveal.UnsupportedError as error:
        pytest.skip(f"SKIPPED: sm90: {error}")


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name, padding, device):
    inputs = batch(device, padding)
    reference = MODELS[name][2]
    exact = logits(model_of(name, device, reference, torch.float32), inputs)
    expected = logits(model_of(name, device, reference, torch.bfloat16), inputs)
    model = model_of(name, device, "foveal", torch.bfloat16)
    actual = logits(model, inputs) if device == "cpu" else supported_or_skip(lambda: logits(model, inputs))
    # In bf16, foveal is no further from float32 than transformers' own attention is, but for chance.
    assert torch.isfinite(actual).all()
    error, own_error = ((x - exact).norm() / exact.norm() for x in (actual, expected))
    assert own_error < 0.1 and error <= 1.25 * own_error, (error, own_error)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_exact_in_float32(name):
    for padding in ("none", "left"):
        inputs = batch("cpu", padding)
        expected = logits(model_of(name, "cpu", MODELS[name][2], torch.float32), inputs)
        actual = logits(model_of(name, "cpu", "foveal", torch.float32), inputs)
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache, padding", [("dynamic", "left"), ("static", "left"), ("static", "none")])
def test_generation(name, cache, padding):
    inputs = batch("cpu", padding)
    options = {"max_new_tokens": 20, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    with torch.no_grad():
        expected = model_of(name, "cpu", MODELS[name][2], torch.float32).generate(**inputs, **options)
        actual = model_of(name, "cpu", "foveal", torch.float32).generate(**inputs, **options)
    assert torch.equal(actual, expected)


def test_the_function_is_called(monkeypatch):
    calls = []
    attention = foveal.compat.transformers.attention
    monkeypatch.setattr(foveal.compat.transformers, "attention", lambda *a, **k: calls.append(k) or attention(*a, **k))
    logits(model_of("mistral", "cpu", "foveal", torch.float32), batch("cpu", "none"))
    assert [call["window"] for call in calls] == [(11, 0), (11, 0)] and all(call["mask"] is None for call in calls)


def test_a_packed_batch_does_not_leak():
    model = model_of("llama", "cpu", "foveal", torch.float32)
    ids = batch("cpu", "none")["input_ids"][:1]
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = model(input_ids=ids[:, 15:]).logits
    torch.testing.assert_close(packed[:, 15:], alone, atol=1e-4, rtol=1e-4)


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
    with pytest.raises(foveal.UnsupportedError, match="dropout is 0.1"):
        forward(layer(), q, q, q, None, dropout=0.1)
    with pytest.raises(foveal.UnsupportedError, match="output_attentions"):
        forward(layer(), q, q, q, None, output_attentions=True)
    with pytest.raises(foveal.UnsupportedError, match="gradient"):
        model_of("llama", "cpu", "foveal", torch.float32)(**batch("cpu", "none"))


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


MODELS_WITHOUT_THE_INTERFACE = {  # of their own attention, of a list of attentions, of one although "sdpa" is known
    "Bloom": {"n_layer": 1, "n_head": 4, "hidden_size": 64},
    "Mpt": {"n_layers": 1, "n_heads": 4, "d_model": 64},
    "Falcon": {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64},
    "GPTNeo": {"num_layers": 1, "num_heads": 4, "hidden_size": 64, "attention_types": [[["global"], 1]]},
    "Git": {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64},
    "RoFormer": {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64, "is_decoder": True},
    "Longformer": {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64},
    "LED": {"encoder_layers": 1, "decoder_layers": 1, "d_model": 64},
}


@pytest.mark.parametrize("error", [foveal.UnsupportedError, ValueError])  # ValueError: as for "sdpa"
@pytest.mark.parametrize("name", MODELS_WITHOUT_THE_INTERFACE)
def test_a_model_that_never_calls_the_interface_is_refused(name, error):
    config = getattr(transformers, f"{name}Config")(vocab_size=99, **MODELS_WITHOUT_THE_INTERFACE[name])
    with pytest.raises(error, match=f'"foveal"; {name}Model'):
        getattr(transformers, f"{name}Model")._from_config(config, attn_implementation="foveal")


def test_a_model_that_only_eager_and_the_interface_know_is_not_refused():
    assert model_of("gpt_oss", "cpu", "foveal", torch.float32).config._attn_implementation == "foveal"


def test_a_second_name_is_refused_as_well():
    foveal.compat.transformers.register("another_foveal")
    with pytest.raises(foveal.UnsupportedError, match="another_foveal"):
        config = transformers.BloomConfig(vocab_size=99, **MODELS_WITHOUT_THE_INTERFACE["Bloom"])
        transformers.BloomModel._from_config(config, attn_implementation="another_foveal")


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


def test_a_decoder_without_causality_sees_all():
    model = model_of("llama", "cpu", "foveal", torch.float32)
    expected_of = model_of("llama", "cpu", "eager", torch.float32)
    inputs = batch("cpu", "none")
    with torch.no_grad():
        actual, expected = (m(**inputs, is_causal=False, use_cache=False).logits for m in (model, expected_of))
        causal = model(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
    assert (actual - causal).abs().max() > 0.01


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


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_given_packed_lengths_does_not_leak(use_cache):
    model = model_of("mistral", "cpu", "foveal", torch.float32)
    ids = batch("cpu", "none")["input_ids"][:2]
    positions = torch.cat([torch.arange(15), torch.arange(25)]).expand(2, -1)
    cu = lengths_of(15, 40, 55, 80)
    with torch.no_grad():
        packed = model(
            ids, position_ids=positions, cu_seq_lens_q=cu, cu_seq_lens_k=cu, max_length_q=25, max_length_k=25,
            use_cache=use_cache,
        ).logits  # fmt: skip
        alone = model(ids[:, 15:]).logits
    torch.testing.assert_close(packed[:, 15:], alone, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_model_under_autocast(name):
    inputs = batch("cpu", "left")
    model, reference = (model_of(name, "cpu", kind, torch.float32) for kind in ("foveal", "eager"))
    expected = logits(reference, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, own = logits(model, inputs), logits(reference, inputs)
    error, own_error = ((x - expected).norm() / expected.norm() for x in (actual, own))
    assert own_error < 0.1 and error <= 1.25 * own_error, (error, own_error)


# ---- Architectures ---------------------------------------------------------------------------------------------------


# Each for what it hands over: a window in the mask alone, in the argument alone, chunks, a mask of its own, biases,
# sinks, soft caps, prefixes, bidirectional layers, cross-attention, keys that a part of the model chooses.
@pytest.mark.parametrize(
    "name",
    ["phimoe", "olmoe", "qwen2_moe", "doge", "llama4_text", "t5", "gemma3_text", "modernbert", "whisper", "bert"],
)
def test_an_architecture_is_as_eager(name):
    with torch.no_grad():
        result = walk_transformers.compare(name)
    assert result["state"] == "right" and result["calls"], result
