"""attn_implementation="paged|foveal": continuous batching in transformers, on small randomly initialised models."""

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")

import foveal  # noqa: E402
import foveal.compat.transformers  # noqa: E402
from test_transformers import MODELS, batch, model_of  # noqa: E402

PROMPTS = (1, 3, 17, 40, 40, 64)
NEW = 12


def prompts(shared=20):
    torch.manual_seed(5)
    common = torch.randint(1, 320, (shared,)).tolist()  # the longer ones begin alike: blocks are shared
    return [(common + torch.randint(1, 320, (n,)).tolist())[-n if n <= shared else 0 :][:n] for n in PROMPTS]


def alone(name, prompt):
    """The answer of "eager" to one prompt, without a batch."""
    ids = torch.tensor([prompt])
    model = model_of(name, "cpu", "eager", torch.float32)
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(ids))
    return out[0, len(prompt) :].tolist()


def answers(name, given, **config):
    model = model_of(name, "cpu", "paged|foveal", torch.float32)
    generation = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    config = {"block_size": 8, "num_blocks": 64, "max_batch_tokens": 48, **config}
    batching = transformers.ContinuousBatchingConfig(**config)
    out = model.generate_batch(given, generation_config=generation, continuous_batching_config=batching)
    assert all(result.error is None for result in out.values()), out
    by_prompt = {tuple(result.prompt_ids): result.generated_tokens for result in out.values()}
    return [by_prompt[tuple(prompt)] for prompt in given]


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_eager_alone(name):
    given = prompts()
    assert answers(name, given) == [alone(name, prompt) for prompt in given]


def test_a_cache_with_room_for_few_requests():
    given = prompts()
    assert answers("llama", given, num_blocks=14) == [alone("llama", prompt) for prompt in given]


def test_pages_are_read_where_they_lie(monkeypatch):
    paged = foveal.compat._transformers_paged
    calls, attention = [], paged.attention_varlen
    monkeypatch.setattr(paged, "attention_varlen", lambda *a, **k: calls.append(k) or attention(*a, **k))
    answers("llama", prompts())
    in_pages = [call for call in calls if "page_indices" in call]
    assert len(in_pages) > len(calls) / 2 and all(call["window"] == (None, 0) for call in calls)
    calls.clear()
    answers("mistral", prompts())  # a ring of keys, of which the new ones replace some
    assert calls and all(call["window"] == (11, 0) and "page_indices" not in call for call in calls)


def test_where_pages_are_refused_keys_are_gathered(monkeypatch):
    paged = foveal.compat._transformers_paged
    attention = paged.attention_varlen

    def without_pages(*arguments, **options):
        if "page_indices" in options:
            raise foveal.UnsupportedError("page_indices is present; this backend supports none")
        return attention(*arguments, **options)

    given = prompts()
    expected = answers("llama", given)
    monkeypatch.setattr(paged, "attention_varlen", without_pages)
    assert answers("llama", given) == expected


def call(**options):
    """paged_attention_forward() on a cache of one layer: 3 new rows of two sequences, and one of padding."""
    torch.manual_seed(0)
    layer = {"layer_index_to_group_indices": {0: (0, 0)}, "sliding_windows": {0: 1}, "block_size": 4}
    cache = type("Cache", (), {**layer, "key_cache": [torch.randn(16, 2, 8)], "value_cache": [torch.randn(16, 2, 8)]})()
    module = torch.nn.Module()
    module.layer_idx = 0
    query, key, value = torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    given = {
        "cache": cache,
        "cu_seq_lens_q": torch.tensor([0, 2, 3]),
        "cu_seq_lens_k": torch.tensor([0, 4, 9]),
        "read_index": [torch.tensor([0, 1, 2, 3, 8, 9, 10, 11, 4])],
        "write_index": [torch.tensor([2, 3, 4, 15])],
        **options,
    }
    value = given.pop("value", value)
    out, weights = foveal.compat.transformers.paged_attention_forward(module, query, key, value, None, **given)
    assert weights is None
    return out[0], query[0], cache


def test_rows_of_padding_are_zeros():
    out, query, cache = call(max_seqlen_q=2, max_seqlen_k=5, block_table=None, use_cache=False)
    assert not out[3].any() and out[:3].any(dim=-1).all()
    k, v = (
        x[0][torch.tensor([8, 9, 10, 11, 4])].repeat_interleave(2, dim=1) for x in (cache.key_cache, cache.value_cache)
    )
    scores = torch.einsum("hd,khd->hk", query[:, 2], k) / 8**0.5
    torch.testing.assert_close(out[2], torch.einsum("hk,khd->hd", scores.softmax(-1), v))


def test_refusals_name_the_argument():
    for options, message in (
        ({"cache": None}, "cache is None"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"block_table": torch.zeros(1, 2, 4)}, "block_table is given"),
        ({"is_causal": False}, "is_causal is False"),
        ({"position_bias": torch.zeros(1)}, "position_bias is a tensor"),
        ({"output_attentions": True}, "output_attentions is True"),
        ({"value": torch.zeros(1, 2, 4, 6)}, r"value.shape\[-1\] is 6"),
    ):
        with pytest.raises(foveal.Error, match=message):
            call(**options)


def test_a_window_that_the_cache_does_not_hold_is_refused():
    class Sliding:
        layer_index_to_group_indices, sliding_windows = {0: (0, 0)}, {0: 12}
        key_cache = value_cache = [torch.zeros(16, 2, 8)]

    with pytest.raises(foveal.UnsupportedError, match="sliding_window is None of layer 0"):
        call(cache=Sliding())


def test_a_model_without_the_interface_is_refused():
    config = transformers.BloomConfig(vocab_size=99, n_layer=1, n_head=4, hidden_size=64)
    with pytest.raises(foveal.UnsupportedError, match=r'"paged\|foveal"; BloomModel'):
        transformers.BloomModel._from_config(config, attn_implementation="paged|foveal")


def test_a_standard_forward_is_refused():
    with pytest.raises(foveal.InvalidArgument, match="cache is None"), torch.no_grad():
        model_of("llama", "cpu", "paged|foveal", torch.float32)(**batch("cpu", "none"))
