"""What bench/training.py takes for exact, and for chance."""

import pathlib
import sys

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
pytest.importorskip("transformers", reason="SKIPPED: no transformers")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import training  # noqa: E402


def test_chance_is_that_of_the_ranks():
    assert training.chance_of([4.0, 5.0, 9.0], [1.0, 2.0, 3.0]) == 1 / 20
    assert training.chance_of([1.0, 2.0, 3.0], [4.0, 5.0, 9.0]) == 1
    assert training.chance_of([1.0, 4.0], [2.0, 3.0]) == 4 / 6  # of 6 pairs of ranks, all but 0 + 1 and 0 + 2


@pytest.mark.parametrize("name", ["Gemma-2", "gpt-oss"])  # softcap and window, sinks and window
def test_exact_is_what_eager_rounds(name):
    training.prepare(threads=1)
    ids = training.batches(1, seed=1)[0]
    models = [training.model_of(name, kind, "cpu", 0) for kind in ("exact", "eager")]
    for model in models:
        model(ids, labels=ids, use_cache=False).loss.backward()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm()
