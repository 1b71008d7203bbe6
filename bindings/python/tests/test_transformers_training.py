"""Training Hugging Face transformers with attn_implementation="foveal": gradients, packed batches, what trainers do.

What is right is the same model with its attention in float64; how near is what "eager" is to that.
"""

import functools

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")

import foveal  # noqa: E402
import foveal.compat.transformers  # noqa: E402
from test_transformers import MODELS, model_of  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from transformers.data.data_collator import DataCollatorWithFlattening  # noqa: E402
from transformers.masking_utils import eager_mask, sdpa_mask  # noqa: E402

foveal.compat.transformers.register()


@pytest.fixture(autouse=True)
def pytorch_is_deterministic():  # it adds up the gradients of gpt-oss's experts in any order otherwise
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


FACTOR = 1.25  # of the error of "eager", for chance


def exact_attention(module, query, key, value, attention_mask, scaling, softcap=None, s_aux=None, **kwargs):
    q, k, v = (x.double() for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    scores = scores if not softcap else softcap * torch.tanh(scores / softcap)
    is_seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    scores = scores.masked_fill(~is_seen, -1e300)  # a row of padding that sees nothing: any numbers
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.double()[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    out = scores.softmax(-1)[..., : k.shape[2]] @ v
    return out.transpose(1, 2).to(query.dtype), None


def exact_mask(*args, allow_is_causal_skip=True, allow_is_bidirectional_skip=False, config=None, **kwargs):
    write = eager_mask if config.model_type == "gpt_oss" else sdpa_mask
    return write(*args, allow_is_causal_skip=False, allow_is_bidirectional_skip=False, config=config, **kwargs)


transformers.AttentionInterface.register("exact", exact_attention)
transformers.AttentionMaskInterface.register("exact", exact_mask)


def tokens(rows=40, batch=3):
    return torch.randint(1, 320, (batch, rows), generator=torch.Generator().manual_seed(4))


def gradients(model):
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def trained(name, implementation, dtype=torch.float32, prepare=lambda model: model, **inputs):
    """(loss, {parameter: gradient}) of one pass; the labels are the tokens."""
    model = prepare(model_of(name, "cpu", implementation, dtype).train())
    given = {"input_ids": tokens(), "use_cache": False} | inputs
    given.setdefault("labels", given["input_ids"])
    loss = model(**given).loss
    loss.backward()
    return loss.item(), gradients(model)


def together(of):
    return torch.cat([x.flatten().float() for x in of.values()])


def assert_as_near_as_eager(results):
    """results: {"foveal", "eager", "exact": (loss, gradients)}; of every parameter, and of all of them together."""
    (_, ours), (_, eager), (_, exact) = (results[name] for name in ("foveal", "eager", "exact"))
    assert ours.keys() == exact.keys() == eager.keys()
    error, own_error = ((together(x) - together(exact)).norm() for x in (ours, eager))
    assert 0 < own_error < 0.1 * together(exact).norm() and error <= FACTOR * own_error, (error, own_error)
    for name, expected in exact.items():
        error, own_error = ((x[name] - expected).float().norm() for x in (ours, eager))
        assert error <= 2 * FACTOR * own_error, (name, error, own_error)


# ---- Gradients of whole models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_every_parameter(name, dtype):
    results = {kind: trained(name, kind, dtype) for kind in ("foveal", "eager", "exact")}
    assert_as_near_as_eager(results)
    loss, again = trained(name, "foveal", dtype)
    assert loss == results["foveal"][0] and torch.equal(together(again), together(results["foveal"][1]))
    if name == "gpt_oss":
        assert all(again[f"model.layers.{i}.self_attn.sinks"].any() for i in range(2))


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps(name):
    def losses(implementation):
        model = model_of(name, "cpu", implementation, torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        values = []
        for _ in range(6):
            loss = model(tokens(), labels=tokens(), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(loss.item())
        return values

    ours, eager = losses("foveal"), losses("eager")
    assert ours[-1] < ours[0] - 0.5 and ours == pytest.approx(eager, rel=1e-4) and ours == losses("foveal")


# ---- Packed batches --------------------------------------------------------------------------------------------------

LENGTHS = (9, 21, 1, 14)  # the third has nothing to predict


def documents():
    ids = tokens(max(LENGTHS), len(LENGTHS))
    return [{"input_ids": row[:length].tolist()} for row, length in zip(ids, LENGTHS, strict=True)]


def padded():
    """The documents in a row each, padded at the end, as a loss over the same tokens wants them."""
    ids, seen = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64), []
    for row, document in zip(ids, documents(), strict=True):
        row[: len(document["input_ids"])] = torch.tensor(document["input_ids"])
    seen = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids, "attention_mask": seen.long(), "labels": ids.masked_fill(~seen, -100)}


PACKINGS = {
    "position_ids": {},
    "position_ids and cu_seq_lens": {"return_flash_attn_kwargs": True},
    "cu_seq_lens alone": {"return_flash_attn_kwargs": True, "return_position_ids": False},
    "position_ids, cu_seq_lens and seq_idx": {"return_flash_attn_kwargs": True, "return_seq_idx": True},
    "position_ids and seq_idx": {"return_seq_idx": True},
}


@functools.cache
def of_padded(name):
    return {kind: trained(name, kind, **padded()) for kind in ("eager", "exact")}


# gpt-oss shows its masks no positions: test_sequences_that_only_positions_tell_are_refused
PACKED = [(n, packing) for n in MODELS for packing in PACKINGS if n != "gpt_oss" or "cu_seq_lens" in packing]


@pytest.mark.parametrize("name, packing", PACKED)
def test_a_packed_batch_is_its_padded_documents(name, packing, monkeypatch):
    calls = []
    varlen = foveal.compat.transformers.attention_varlen
    monkeypatch.setattr(
        foveal.compat.transformers, "attention_varlen", lambda *a, **k: calls.append(a[3].tolist()) or varlen(*a, **k)
    )
    batch = dict(DataCollatorWithFlattening(**PACKINGS[packing])(documents()))
    loss, of = trained(name, "foveal", **batch)
    assert calls == [[0, 9, 30, 31, 45]] * 2
    assert loss == pytest.approx(of_padded(name)["eager"][0], rel=1e-5)
    exact = together(of_padded(name)["exact"][1])
    error, own_error = ((together(x) - exact).norm() for x in (of, of_padded(name)["eager"][1]))
    if packing == "cu_seq_lens alone":  # other angles round otherwise
        assert error <= 1e-4 * exact.norm()
    else:
        assert error <= 2 * FACTOR * own_error, (error, own_error)


def test_sequences_that_only_positions_tell_are_refused():
    batch = DataCollatorWithFlattening()(documents())
    with pytest.raises(foveal.UnsupportedError, match="position_ids start again"):
        trained("llama", "foveal", **batch | {"use_cache": True})
    with pytest.raises(foveal.UnsupportedError, match="position_ids start again"):
        trained("gpt_oss", "foveal", **batch)
    with pytest.raises(foveal.UnsupportedError, match="position_ids start again"):
        trained("llama", "foveal", attention_mask=torch.ones_like(batch["input_ids"]), **batch)
    with pytest.raises(foveal.InvalidArgument, match="cu_seq_lens_q is .*0 to 45"):
        given = torch.tensor([0, 9, 44], dtype=torch.int32)
        trained("llama", "foveal", cu_seq_lens_q=given, cu_seq_lens_k=given, **batch)


def test_lengths_that_differ_from_the_positions_both_part():
    batch = dict(DataCollatorWithFlattening()(documents()))
    other = torch.tensor([0, 30, 35, 45], dtype=torch.int32)
    loss, _ = trained("llama", "foveal", cu_seq_lens_q=other, cu_seq_lens_k=other, **batch)
    both = torch.tensor([0, 9, 30, 31, 35, 45], dtype=torch.int32)
    expected, _ = trained("llama", "foveal", cu_seq_lens_q=both, cu_seq_lens_k=both, **batch | {"use_cache": True})
    assert loss == pytest.approx(expected, rel=1e-6)


# ---- What trainers do besides ----------------------------------------------------------------------------------------


def checkpointed(model, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_bit(name, reentrant, packed):
    inputs = dict(DataCollatorWithFlattening(return_flash_attn_kwargs=True)(documents())) if packed else {}
    loss, expected = trained(name, "foveal", **inputs)
    again, actual = trained(name, "foveal", prepare=lambda model: checkpointed(model, reentrant), **inputs)
    assert loss == again and torch.equal(together(actual), together(expected))


@pytest.mark.parametrize("checkpoint", [None, False, True])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name, checkpoint):
    prepare = (lambda model: model) if checkpoint is None else lambda model: checkpointed(model, checkpoint)
    results = {"exact": trained(name, "exact")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results |= {kind: trained(name, kind, prepare=prepare) for kind in ("foveal", "eager")}
    assert all(x.dtype == torch.float32 for x in results["foveal"][1].values())
    (_, ours), (_, eager), (_, exact) = (results[kind] for kind in ("foveal", "eager", "exact"))
    error, own_error = ((together(x) - together(exact)).norm() for x in (ours, eager))
    assert own_error < 0.2 * together(exact).norm() and error <= FACTOR * own_error, (error, own_error)


@pytest.mark.parametrize("checkpoint", [None, False])
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_compiled_training_step(name, checkpoint):
    counting = CompileCounterWithBackend("aot_eager")

    def prepare(model):
        model = model if checkpoint is None else checkpointed(model, checkpoint)
        return torch.compile(model, backend=counting, fullgraph=checkpoint is None)

    torch._dynamo.reset()
    loss, expected = trained(name, "foveal")
    compiled_loss, actual = trained(name, "foveal", prepare=prepare)
    actual = {key.removeprefix("_orig_mod."): x for key, x in actual.items()}
    assert counting.frame_count >= 1 and compiled_loss == pytest.approx(loss, rel=1e-5)
    error = (together(actual) - together(expected)).norm()
    assert actual.keys() == expected.keys() and error <= 1e-5 * together(expected).norm()


def test_gradients_add_up():
    model = model_of("gpt_oss", "cpu", "foveal", torch.float32).train()
    for ids in tokens().split(1):
        (model(ids, labels=ids, use_cache=False).loss / 3).backward()
    _, expected = trained("gpt_oss", "foveal")
    torch.testing.assert_close(together(gradients(model)), together(expected), rtol=1e-3, atol=1e-6)


def test_distributed_data_parallel():
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        loss, expected = trained("gpt_oss", "foveal")
        model = model_of("gpt_oss", "cpu", "foveal", torch.float32).train()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        parallel.register_comm_hook(torch.distributed.group.WORLD, default_hooks.allreduce_hook)
        of_parallel = parallel(tokens(), labels=tokens(), use_cache=False).loss
        of_parallel.backward()
        assert of_parallel.item() == loss and torch.equal(together(gradients(model)), together(expected))
    finally:
        torch.distributed.destroy_process_group()


# ---- The Trainer -----------------------------------------------------------------------------------------------------

TRAINER = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("name, lengths", zip(TRAINER, (False, True, False, True), strict=True))
def test_trainer_with_flattening(name, lengths, tmp_path):
    pytest.importorskip("accelerate", reason="SKIPPED: no accelerate, which transformers.Trainer needs")
    seen = []

    class Keep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            seen.append(gradients(model))

    def results(implementation, collator, examples, more):
        seen.clear()
        options = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "max_grad_norm": 0.0}
        arguments = transformers.TrainingArguments(
            str(tmp_path), report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
            train_sampling_strategy="sequential", **options | more,
        )  # fmt: skip
        model = model_of("mistral", "cpu", implementation, torch.float32)
        trainer = transformers.Trainer(
            model, arguments, data_collator=collator, train_dataset=examples, callbacks=[Keep()]
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], list(seen)

    def pad(examples):
        return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}

    rows = [dict(zip(padded(), row, strict=True)) for row in zip(*padded().values(), strict=True)]
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=lengths)
    losses, ours = results("foveal", flatten, documents(), TRAINER[name])
    exact_losses, exact = results("exact", pad, rows, TRAINER[name] | {"bf16": False})
    _, eager = results("eager", pad, rows, TRAINER[name])
    error, own_error = ((together(x[0]) - together(exact[0])).norm() for x in (ours, eager))
    assert 0 < own_error < 0.2 * together(exact[0]).norm() and error <= 2 * FACTOR * own_error, (error, own_error)
    assert len(losses) == len(ours) == 3 and losses[2] < losses[0] - 0.1
    assert losses == pytest.approx(exact_losses, rel=0.02 if name == "bf16" else 1e-3)  # log entries have four digits
    assert losses == results("foveal", flatten, documents(), TRAINER[name])[0]
