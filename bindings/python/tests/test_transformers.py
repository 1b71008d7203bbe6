"""attn_implementation="foveal" in Hugging Face transformers, on small randomly initialised models."""

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")

import foveal  # noqa: E402
import foveal.compat.transformers  # noqa: E402
import walk_transformers  # noqa: E402

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


# ---- Models that are refused ---------------------------------------------------------------------------------------

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


# ---- Whole models --------------------------------------------------------------------------------------------------


def test_a_decoder_without_causality_sees_all():
    model = model_of("llama", "cpu", "foveal", torch.float32)
    expected_of = model_of("llama", "cpu", "eager", torch.float32)
    inputs = batch("cpu", "none")
    with torch.no_grad():
        actual, expected = (m(**inputs, is_causal=False, use_cache=False).logits for m in (model, expected_of))
        causal = model(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
    assert (actual - causal).abs().max() > 0.01


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_given_packed_lengths_does_not_leak(use_cache):
    model = model_of("mistral", "cpu", "foveal", torch.float32)
    ids = batch("cpu", "none")["input_ids"][:2]
    positions = torch.cat([torch.arange(15), torch.arange(25)]).expand(2, -1)
    cu = torch.tensor([0, 15, 40, 55, 80])
    with torch.no_grad():
        packed = model(
            ids, position_ids=positions, cu_seq_lens_q=cu, cu_seq_lens_k=cu, max_length_q=25, max_length_k=25,
            use_cache=use_cache,
        ).logits  # fmt: skip
        alone = model(ids[:, 15:]).logits
    torch.testing.assert_close(packed[:, 15:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model(name):
    inputs = batch("cpu", "none")
    model = model_of(name, "cpu", "foveal", torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for given in (inputs, {"input_ids": inputs["input_ids"]}):
        with torch.no_grad():
            actual, expected = (m(**given, use_cache=False).logits for m in (compiled, model))
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


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
