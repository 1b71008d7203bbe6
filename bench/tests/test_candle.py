"""What bench/candle.py reads from the program seed, what it writes, and how that is shown."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import candle  # noqa: E402
import measured  # noqa: E402
from suite import load  # noqa: E402

SEED = pathlib.Path(__file__).parents[2] / "bindings/rust/candle-foveal/examples/seed.rs"
PRINTED = """b128 hq32 hk8 d128 causal bf16, microseconds a forward
| s | candle-foveal | candle-flash-attn-v3 after 3597, as published of another H200 |
|---|---|---|
| 128 | 90.5 | 302 |
| 1024 | 1900.0 | 2201 |
| 2048 | 6700.0 | 6971 |
| 8192 | 98000.0 | 94020 |
host time of a call: 2.31 microseconds
"""


class Telemetry:
    """The n-th take of one that is on says n MHz and 10 n watts."""

    on, takes = False, 0

    def take(self):
        self.takes += self.on
        return (self.takes, 10 * self.takes) if self.on else (None, None)


def program(folder, printed, status=0):
    path = folder / "seed"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def compared(foveal, fa3, alone):
    return {
        **{"us": {"foveal": foveal, "fa3": fa3}, "alone_us": {"foveal": foveal, "fa3": alone}},
        **{"spread_pct": {}, "rounds": 40, "sm_mhz": 1600, "watts": 690, "ratio": {}, "flops": 1},
    }


def test_the_program_is_read_to_its_end(tmp_path):
    telemetry = Telemetry()
    rows, host_us = candle.run_seed(program(tmp_path, PRINTED), telemetry, 20)
    assert rows == {128: (90.5, 1, 10), 1024: (1900.0, 2, 20), 2048: (6700.0, 3, 30), 8192: (98000.0, 4, 40)}
    assert host_us == 2.31 and not telemetry.on


def test_the_program_prints_what_is_read():
    """The text that seed.rs formats, with numbers in its holes."""
    source = SEED.read_text()
    assert '"| {s} | {:.1} | {published} |"' in source and '"host time of a call: {:.2} microseconds"' in source
    assert "b128 hq32 hk8 d128 causal bf16" in source
    for s in candle.PUBLISHED:
        assert f"({s}, " in source


@pytest.mark.parametrize(
    ("printed", "status"),
    [(PRINTED, 3), (PRINTED.replace("| 2048 |", "| 4096 |"), 0), (PRINTED.replace("host time", "time"), 0)],
)
def test_a_program_that_does_less_is_refused(tmp_path, printed, status):
    with pytest.raises(candle.SeedError, match=f"status {status}"):
        candle.run_seed(program(tmp_path, printed, status), Telemetry(), 20)


def test_a_program_that_hangs_is_ended(tmp_path):
    path = tmp_path / "seed"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    with pytest.raises(candle.SeedError, match="status -9"):
        candle.run_seed(str(path), Telemetry(), 0.2)


def test_flash_attention_3_has_the_lower_of_its_times():
    row = candle.row_of(128, (90.0, 1700, 400), [compared(89.0, 118.0, 121.0), compared(91.0, 122.0, 125.0)])
    assert row["fa3_us"] == {"interleaved": 120.0, "alone": 123.0} and row["us"]["fa3"] == 120.0
    assert row["ratio"] == {"fa3": 0.75} and row["ratios"] == {"interleaved": 0.75, "alone": 0.7317}
    assert row["us"]["published_before"] == 1603.7 and row["us"]["published_after"] == 302.5
    assert row["torch_foveal_us"]["interleaved"] == 90.0 and (row["sm_mhz"], row["watts"]) == (1700, 400)
    row = candle.row_of(128, (90.0, 1700, 400), [compared(89.0, 118.0, 110.0), compared(91.0, 122.0, 112.0)])
    assert row["us"]["fa3"] == 111.0


def document():
    rows = []
    for i, s in enumerate(candle.PUBLISHED):
        us = 90.0 * 8**i
        runs = [compared(us, us / (0.7 + 0.05 * i), 2 * us)] * 2
        rows.append(candle.row_of(s, (us, 1700, 690), runs))
    about = {"gpu": "a card", "driver": "1", "cuda": "13.0", "commit": "0123456789", "date": "2026-01-01"}
    return {"suite": "candle_seed", **about, "candle_call_us": 2.31, "rows": rows}


def test_the_file_is_a_sentence_a_table_and_a_chart(tmp_path, monkeypatch):
    card = tmp_path / "card"
    card.mkdir()
    (card / "candle_seed.json").write_text(json.dumps(document()))
    suites, others = load(card)
    assert not suites and list(others) == ["candle_seed"]  # no part of the means over compare.py's suites
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    text = measured.with_blocks("<!-- measured: candle card -->\n<!-- end measured -->\n")
    assert "90.00, 720.0, 5760.0, 46080 µs" in text and "0.700 to 0.850 of" in text
    page = measured.page(card)
    assert "| b128 s128 hq32 hk8 d128 bf16 causal | 90.00 | 128.6 | 302.5 | 1603.7 | 0.700 | 0.500 |" in page
    charts = pytest.importorskip("charts", reason="SKIPPED: no matplotlib")
    figure = charts.candle(others["candle_seed"])
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths[0] == [1603.7, 302.5, 128.57, 90.0] and len(widths) == 4
    assert [text.get_text() for text in figure.axes[0].texts] == [" 1.60 ms", " 302.5 µs", " 128.6 µs, 1.000 ×",
                                                                  " 90.0 µs, 0.700 ×"]  # fmt: skip
