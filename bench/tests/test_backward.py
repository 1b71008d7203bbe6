"""Rows of bench/backward.py, what they count as work, and what is accepted as a right gradient."""

import json
import pathlib
import sys

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
pytest.importorskip("foveal", reason="SKIPPED: no foveal")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import backward  # noqa: E402
import devices  # noqa: E402
import implementations  # noqa: E402
import tables  # noqa: E402
from cases import Case, NotMeasured  # noqa: E402
from gradient_reference import errors_of, kept_weights  # noqa: E402


def test_every_row_is_a_case_that_foveal_has_a_gradient_of():
    assert len(set(backward.ROWS)) == len(backward.ROWS)
    for row in backward.ROWS:
        for text in filter(None, (row.case, row.beside)):
            case = Case(text)
            assert case.text == text and case.square
            assert backward.foveal_forward(case, *torch.zeros(3, 1))  # refuses options that it would leave out
    varlen = Case(next(row.case for row in backward.ROWS if row.case.startswith("varlen")))
    assert (varlen.batch, min(varlen.lengths_q), max(varlen.lengths_q)) == (16, 64, 4096)
    assert sum(varlen.lengths_q) == 16 * 1442


def test_rows_are_chosen_by_their_words():
    assert backward.chosen("", False) == backward.ROWS
    assert {row.kind for row in backward.chosen("step", False)} == {"step"}
    narrow = [row.case for row in backward.chosen("causal d64", False)]
    assert len(narrow) == 3 and all(" d64 " in case and " causal" in case for case in narrow)
    assert not backward.chosen("d6", False)
    assert 3 <= len(backward.chosen("", True)) < 8


def test_flops_are_those_of_five_products():
    case = Case("b4 s4096 h16 d128 bf16 causal")
    assert backward.gradient_flops(case) == 2.5 * case.flops
    assert backward.gradient_flops(case) == 5 * 2 * 128 * 16 * 4 * (4096 * 4097 // 2)
    case = Case("b1 s10 h2 d192 dv128 bf16 full")
    assert backward.gradient_flops(case) == 2 * (3 * 192 + 2 * 128) * 2 * 100


@pytest.mark.parametrize("mask", ["causal", "full", "left30 causal", "left128 causal", "left70 right64"])
def test_tiles_are_those_that_the_mask_touches(mask):
    case = Case(f"b1 s517 h1 d64 bf16 {mask}")
    (left, right), touched = case.window, set()
    for query in range(517):
        for key in range(517):
            if (left is None or key >= query - left) and (right is None or key <= query + right):
                touched.add((key // 128, query // 64))
    assert backward.tiles(case) == len(touched)


CASES = [
    "b2 s90 hq4 hk2 d64 bf16 causal",
    "b1 s90 h2 d64 dv32 bf16 full",
    "b1 s150 h2 d64 bf16 left20 causal",
    "varlen qlens=9,1,40 klens=9,1,40 hq4 hk2 d64 bf16 causal",
    "b2 s150 hq4 hk2 d64 bf16 causal dropout0.1 dropstate=1,2",
]


def gradients(text):
    torch.manual_seed(1)
    case = Case(text)
    tensors = [x.requires_grad_() for x in case.tensors("cpu")]
    dout = torch.randn(*tensors[0].shape[:-1], case.head_dim_v, dtype=case.dtype)
    forward = backward.foveal_forward(case, *tensors)
    gradient = backward.Gradient(backward.foveal_forward, case, tensors, dout)
    gradient()
    return case, tensors, dout, gradient.results, forward


@pytest.mark.parametrize("text", CASES)
def test_the_textbook_accepts_right_gradients_and_nothing_else(text):
    case, tensors, dout, right, forward = gradients(text)
    found = {"right": right}
    for i, name in enumerate("qkv"):
        found |= {f"d{name} scaled": [x * 1.03 if i == j else x for j, x in enumerate(right)]}
        hole = right[i].clone()
        hole.view(-1)[-1] = float("nan")
        found |= {f"d{name} with a NaN": [hole if i == j else x for j, x in enumerate(right)]}
    errors = errors_of(case, tensors, dout, found, forward)
    assert errors.pop("right") <= backward.TOLERANCE / 2
    assert not any(error <= backward.TOLERANCE for error in errors.values())


def test_dropout_of_another_state_is_wrong():
    case, tensors, dout, right, forward = gradients(CASES[-1])
    other = gradients(CASES[-1].replace("=1,2", "=3,2"))[-1]
    kept = kept_weights(case, forward, tensors[2], 1, slice(0, 4)).tril()
    assert kept.sum() / torch.ones_like(kept).tril().sum() == pytest.approx(0.9, abs=0.01)
    assert errors_of(case, tensors, dout, {"foveal": right}, other)["foveal"] > 0.1


def test_what_has_no_textbook_is_refused():
    for text in ("b1 sq9 sk20 h1 d64 bf16 causal", "varlen qlens=9,1 klens=9,1 h1 d64 bf16 full dropout0.1"):
        case = Case(text)
        with pytest.raises(NotMeasured, match="packed"):
            errors_of(case, case.tensors("cpu"), None, {})


def test_a_step_leaves_the_gradients_of_a_sum():
    case, tensors, _, _, forward = gradients(CASES[0])
    sample, found = backward.stepped(forward, tensors, 2)
    assert sample() is None
    assert errors_of(case, tensors, torch.ones_like(forward()), {"": found})[""] <= backward.TOLERANCE


class Eager(devices.Cpu):
    """In place of a graph, calls that write where the first one did."""

    sample_seconds = 1e-6

    def captured(self, prepare, repeats):
        gradient = prepare()
        gradient()
        first = gradient.results

        def replay():
            for _ in range(repeats):
                gradient()
            for x, now in zip(first, gradient.results, strict=True):
                x.copy_(now)

        return replay, gradient


def refuses(case, q, k, v):
    if case.window[0] is not None or case.head_dim == 72:
        raise NotMeasured("no windows | at all\nnor pages")
    return implementations.torch_cpu(case, q, k, v)


def run(monkeypatch, folder):
    """backward.py on the CPU: its exit status and its file's document."""
    rows = [
        backward.Row("gradients", "b2 s60 hq4 hk2 d64 bf16 causal"),
        backward.Row("gradients", "b1 s300 h2 d64 bf16 left20 causal", "b1 s600 h2 d64 bf16 causal", "tiles"),
        backward.Row("step", "b2 s60 h2 d64 bf16 causal"),
        backward.Row("gradients", "b2 s60 h2 d72 bf16 full"),
    ]
    monkeypatch.setattr(backward, "Gpu", Eager)
    monkeypatch.setattr(backward, "ROWS", rows)
    monkeypatch.setattr(backward, "FORWARDS", {"foveal": backward.foveal_forward, "cudnn": refuses})
    command = "backward.py --seconds 0.05 --warmup 0.01 --rounds 20 --commit c --write"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(folder)])
    status, path = backward.main(), folder / "backward.json"
    return status, json.loads(path.read_text()) if path.exists() else None


def test_a_run_is_a_file_a_table_and_a_chart(monkeypatch, tmp_path):
    status, document = run(monkeypatch, tmp_path)
    plain, beside, step, refused = document["rows"]
    assert status == 0 and plain["us"].keys() == {"foveal", "cudnn"} and plain["ratio"].keys() == {"cudnn"}
    assert plain["errors"].keys() == {"foveal", "cudnn", "foveal from cudnn"} and not plain["refused"]
    assert beside["refused"] == {"cudnn": "no windows | at all"} and beside["us"].keys() == {"foveal", "beside"}
    case, other = Case(beside["case"]), Case(beside["beside"]["case"])
    assert beside["beside"]["share"] == round(backward.tiles(case) / backward.tiles(other), 4)
    # A mean of ratios, and medians, on a CPU that may be busy; samples have 64 calls and 2.
    assert 1 / 4 < beside["beside"]["ratio"] / (beside["us"]["foveal"] / beside["us"]["beside"]) < 4
    assert step["useful_flops"] == 3.5 * Case(step["case"]).flops and "joules" not in step
    text = tables.gradient_table(document)
    assert "\n| b2 s60 h2 d72 full | – |" in text and text.endswith(" | cuDNN: no windows   at all |\n")
    assert refused["ratio"] == {} and text.count("\n") == 6 and f"{1 / plain['ratio']['cudnn']:.2f} |" in text
    charts = pytest.importorskip("charts", reason="SKIPPED: no matplotlib")
    bars = charts.gradients(document).axes[0].patches
    assert len(bars) == 4 + 2  # of foveal, and of cuDNN where it has a gradient


def test_a_wrong_gradient_is_no_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(backward, "TOLERANCE", 1e-5)
    assert run(monkeypatch, tmp_path) == (1, None)
    assert capsys.readouterr().out.count("WRONG") == 5
