"""bench/e4m3.py on the CPU: what it writes and accepts as right, and how that is shown."""

import json
import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import e4m3  # noqa: E402
import tables  # noqa: E402
from cases import Case  # noqa: E402
from devices import Cpu  # noqa: E402

ROWS = [
    e4m3.Row("cache", "b1 sq1 sk256 hq4 hk2 d64 bf16 full"),
    e4m3.Row("all", "b1 s128 hq4 hk2 d64 bf16 causal"),
    e4m3.Row("cache", "b2 s64 hq4 hk2 d64 bf16 left10 causal page16"),
    e4m3.Row("curve", "b1 sq64 sk512 h2 d64 bf16 full"),
]


def run(monkeypatch, folder, rows):
    monkeypatch.setattr(e4m3, "CPU_ROWS", rows)
    command = "e4m3.py --device cpu --seconds 0.05 --warmup 0.01 --rounds 5 --commit c --write"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(folder)])
    return e4m3.main()


def test_rows_become_a_file_a_table_and_a_chart(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, ROWS) == 0
    document = json.loads((tmp_path / "e4m3.json").read_text())
    assert [row["kind"] for row in document["rows"]] == [row.kind for row in ROWS]
    for row in document["rows"]:
        assert set(row.get("us", ())) == (set() if row["kind"] == "curve" else {"foveal", "bf16"})
        assert row["kind"] != "cache" or row["errors"]["foveal"] == row["errors"]["bf16"]  # bit for bit
    text = tables.e4m3_tables(document)
    assert "| b1 sq1 sk256 hq4 hk2 d64 full | k, v |" in text and "| b1 s128 hq4 hk2 d64 causal | q, k, v |" in text
    assert "| b1 sq64 sk512 h2 d64 full | 0.00" in text
    charts = pytest.importorskip("charts", reason="SKIPPED: no matplotlib")
    rates, errors = charts.e4m3(document).axes
    assert len(rates.patches) == 6 and list(errors.lines[0].get_xdata()) == [512]


def test_a_wrong_result_is_no_row(tmp_path, monkeypatch):
    honest = e4m3.of_foveal
    monkeypatch.setattr(e4m3, "of_foveal", lambda *given: (lambda call: lambda: call() * 1.1)(honest(*given)))
    assert run(monkeypatch, tmp_path, ROWS[:2]) == 1
    assert not (tmp_path / "e4m3.json").exists()


@pytest.mark.parametrize("mask", ["full", "causal", "left3 causal", "left5 right2"])
def test_the_error_is_that_of_the_mask(mask):
    case, device = Case(f"b1 sq9 sk40 hq4 hk2 d32 bf16 {mask}"), Cpu()
    tensors = e4m3.rounded(case, device)
    q, k, v = (x.double().transpose(1, 2) for x in tensors)
    behind = torch.arange(9)[:, None] + 31 - torch.arange(40)
    left, right = case.window
    seen = (behind <= (left if left is not None else 99)) & (behind >= -(right if right is not None else 99))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    assert e4m3.error_of(case, tensors, exact) < 1e-12
    assert e4m3.error_of(case, tensors, 1.5 * exact) == pytest.approx(0.5)
