"""The documents' figures are those of the results files, and stay so."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import measured  # noqa: E402
import tables  # noqa: E402
from suite import Suite, best_ratio, short  # noqa: E402

ROW = {"case": "b2 s64 h4 d64 bf16 causal", "flops": 4e9, "bytes": 2e6, "us": {"foveal": 8.0, "a": 10.0, "b": 16.0}}


def test_the_best_peer_is_the_fastest_and_its_ratio_that_of_the_rounds():
    assert best_ratio(ROW) == (0.8, "a")
    assert best_ratio(ROW | {"ratio": {"a": 0.7, "b": 0.9}}) == (0.9, "b")
    assert best_ratio(ROW | {"us": {"foveal": 8.0}, "ratio": {}}) is None


def test_rates():
    suite = Suite(pathlib.Path("x.json"), {"gpu": "a card", "rows": [ROW]})
    assert suite.rate(ROW, "foveal") == 500.0  # TFLOP/s
    assert "| 500 | 250 | 0.800 | a |" in measured.suite_table(suite)


def test_a_varlen_case_is_told_by_its_range():
    assert short("varlen qlens=9,1,40 klens=9,1,40 hq4 hk2 d64 bf16 full") == "varlen b3 s1–40 hq4 hk2 d64 bf16 full"


SPAN = {"least": [1e-7, 0.001], "median": [1e-6, 0.002], "most": [1e-5, 0.003]}
TRAINED = {
    **{"model": "Llama", "dtype": "f32", "same_bits_twice": True, "first_loss": 4.0, "chance": 0.25},
    **{"last_loss": {"foveal": 1.5, "eager": 1.25}, "between": [0.001, 0.002, 0.003]},
    **{"distance": {"foveal": [0.1, 0.2, 0.3], "eager": [0.4, 0.5, 0.6]}},
    **{"loss": {"foveal": [4.0, 1.5], "eager": [4.0, 1.25]}, "apart": {"foveal": SPAN, "eager": SPAN}},
}
TRAINING = {
    **{"gpu": None, "cpu": "a CPU", "commit": "c", "date": "2026-01-01", "transformers": "5", "steps": 10, "every": 5},
    **{"runs": 3, "level": 0.05, "rows": [TRAINED, TRAINED | {"dtype": "bf16", "same_bits_twice": False}]},
}


def test_training_is_a_table_and_a_chart():
    text = tables.training_table(TRAINING)
    row = "4.0000 | 1.5000 | 1.2500 | 0.2 (0.1 to 0.3) | 0.5 (0.4 to 0.6) | 0.002 (0.001 to 0.003) | 0.25 |"
    assert f"| Llama | f32 | {row} yes |" in text and f"| Llama | bf16 | {row} no |" in text
    charts = pytest.importorskip("charts", reason="SKIPPED: no matplotlib")
    losses, apart, *_ = charts.training(TRAINING).axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[4.0, 1.25], [4.0, 1.5]]
    assert [list(line.get_ydata()) for line in apart.lines] == [[1e-6, 0.002], [1e-6, 0.002]]
    assert len(apart.collections) == 2  # from least to most


def test_check_finds_a_figure_that_no_file_gives(tmp_path, monkeypatch, capsys):
    card = tmp_path / "bench/results/card"
    card.mkdir(parents=True)
    (tmp_path / "README.md").write_text(
        "<!-- measured: means -->\n<!-- end measured -->\n<!-- measured: speed-ups -->\n<!-- end measured -->\n"
    )
    (card / "seed.json").write_text(
        json.dumps({"gpu": "a card", "commit": "c", "date": "2026-01-01", "rows": [ROW, ROW]})
    )
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path / "bench/results")
    monkeypatch.setattr(measured, "PAGES", tmp_path / "docs/measured")
    monkeypatch.setattr(sys, "argv", ["measured.py"])
    assert measured.main() == 0
    assert "| 1.25 |" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["measured.py", "--check"])
    assert measured.main() == 0
    page = tmp_path / "docs/measured/card.md"
    page.write_text(page.read_text().replace("10.00", "11.00"))
    assert measured.main() == 1
    assert "docs/measured/card.md" in capsys.readouterr().out
