#!/usr/bin/env python3
"""Charts from results files alone: throughput over sequence length, ratio to the best peer, joules a forward.

    python3 bench/report.py bench/results/h200 --out bench/results/h200/charts

Reads every FOLDER/*.json that compare.py wrote; writes SVG and PNG for each suite and one page, index.html, with all of
them inside. Files in other forms (of the tool, of the tests) are named and passed over.
"""

import argparse
import base64
import html
import json
import pathlib
import re
import statistics

import matplotlib
from bounds import bound_us
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, told apart by colour-blind readers; a marker of its own for print.
STYLES = {
    "foveal": ("#D55E00", "o", "foveal"),
    "fa3": ("#0072B2", "s", "FlashAttention-3"),
    "cudnn": ("#009E73", "^", "cuDNN"),
    "fa2": ("#CC79A7", "v", "FlashAttention-2"),
    "efficient": ("#E69F00", "P", "PyTorch's memory-efficient"),
    "flashinfer": ("#56B4E9", "D", "FlashInfer"),
    "torch_cpu": ("#0072B2", "s", "PyTorch's SDPA"),
}
SPARE_COLOURS = ["#000000", "#F0E442", "#999999"]

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "figure.dpi": 120,
        "svg.fonttype": "none",
        "svg.hashsalt": "foveal",  # the same results give the same file
    }
)


def style_of(name, names):
    if name in STYLES:
        return STYLES[name]
    unknown = [n for n in names if n not in STYLES]
    return SPARE_COLOURS[unknown.index(name) % len(SPARE_COLOURS)], "X", name


def short(case):
    """The case, with the number of sequences and the range of their lengths in place of these."""
    if case.startswith("varlen"):
        lengths = [int(n) for n in re.search(r"qlens=([\d,]+)", case)[1].split(",")]
        rest = [t for t in case.split()[1:] if "=" not in t]
        return f"varlen b{len(lengths)} {min(lengths)}–{max(lengths)} " + " ".join(rest)
    return case


def common_tokens(rows):
    sets = [set(short(row["case"]).split()) for row in rows]
    return set.intersection(*sets) if len(sets) > 1 else set()


def length_of(case):
    match = re.search(r"\bs(\d+)\b", case)
    return int(match[1]) if match else None


def names_of(rows):
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    return sorted(names, key=lambda name: (name != "foveal", name))


class Suite:
    def __init__(self, path, document):
        self.path, self.about, self.rows = path, document, document["rows"]
        self.name, self.title = path.stem, path.stem
        self.names = names_of(self.rows)
        self.on_gpu = bool(document.get("gpu"))
        self.shared = common_tokens(self.rows)

    def label(self, row):
        own = [t for t in short(row["case"]).split() if t not in self.shared]
        return " ".join(own) or short(row["case"])

    def shared_text(self):
        order = short(self.rows[0]["case"]).split()
        return " ".join(t for t in order if t in self.shared)

    def place(self):
        where = self.about.get("gpu") or self.about.get("cpu") or ""
        commit = (self.about.get("commit") or "")[:12]
        return f"{where}, {self.about.get('date', '')[:10]}, commit {commit}"


def load(folder):
    suites, passed_over = [], []
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        document = json.loads(path.read_text())
        rows = document.get("rows") or []
        if rows and all(isinstance(row.get("us"), dict) and "flops" in row for row in rows) and len(names_of(rows)) > 1:
            suites.append(Suite(path, document))
        else:
            passed_over.append(path.name)
    return suites, passed_over


def _title(axes, suite, what):
    shared = suite.shared_text()
    axes.set_title(f"{suite.title}: {what}", loc="left", fontweight="bold", pad=22)
    text = f"{shared} · {suite.place()}" if shared else suite.place()
    axes.annotate(text, (0, 1), (0, 7), "axes fraction", textcoords="offset points", fontsize=8, color="#555555")


def throughput(suite):
    """Rate over sequence length, one line an implementation; several masks or shapes of a length: panels."""
    if any(length_of(row["case"]) is None for row in suite.rows):
        return None
    groups = {}
    for row in suite.rows:  # rows that differ in more than b and s are of different panels
        key = " ".join(t for t in suite.label(row).split() if not re.fullmatch(r"[bs]\d+", t))
        groups.setdefault(key, []).append(row)
    groups = {
        key: sorted(rows, key=lambda row: length_of(row["case"])) for key, rows in groups.items() if len(rows) > 1
    }
    if not groups:
        return None
    unit, scale = ("TFLOP/s", 1e6) if suite.on_gpu else ("GFLOP/s", 1e3)
    figure, panels = plt.subplots(1, len(groups), figsize=(3 + 4.2 * len(groups), 4.4), sharey=True, squeeze=False)
    for axes, (key, rows) in zip(panels[0], groups.items(), strict=True):
        lengths = [length_of(row["case"]) for row in rows]
        positions = range(len(rows))
        bounds = [bound_us(suite.about.get("gpu"), row) for row in rows]
        if all(bounds):
            roof = [row["flops"] / bound / scale for row, bound in zip(rows, bounds, strict=True)]
            axes.plot(positions, roof, color="#888888", linestyle="--", linewidth=1.2, label="roofline")
        for name in suite.names:
            colour, marker, label = style_of(name, suite.names)
            points = [(i, row["flops"] / row["us"][name] / scale) for i, row in enumerate(rows) if name in row["us"]]
            width = 2.2 if name == "foveal" else 1.4
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, linewidth=width, markersize=6, label=label
            )
        batches = [re.search(r"\bb(\d+)\b", row["case"]) for row in rows]
        axes.set_xticks(positions, [f"{s}\nb{b[1]}" if b else str(s) for s, b in zip(lengths, batches, strict=True)])
        axes.set_xlabel("sequence length, and batch")
        axes.set_ylim(bottom=0)
        if len(groups) > 1:
            axes.text(0.97, 0.04, key, transform=axes.transAxes, ha="right", fontweight="bold")
    panels[0][0].set_ylabel(unit)
    _title(panels[0][0], suite, "throughput")
    lines = {}  # a peer may be in one panel only
    for axes in panels[0]:
        lines |= {line.get_label(): line for line in axes.get_lines()}
    panels[0][-1].legend(lines.values(), lines.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def ratios_of(row):
    """peer -> foveal's time over the peer's. Files from before 2026-11-26 have medians of each alone."""
    of_medians = {n: row["us"]["foveal"] / us for n, us in row["us"].items() if n != "foveal"}
    return row.get("ratio") or of_medians


def ratio(suite):
    """foveal's time over the best peer's, a bar a row."""
    rows = [row for row in suite.rows if "foveal" in row["us"] and len(row["us"]) > 1]
    if not rows:
        return None
    to_peers = [ratios_of(row) for row in rows]
    best = [max(ratios_of_row, key=ratios_of_row.get) for ratios_of_row in to_peers]
    ratios = [ratios_of_row[peer] for ratios_of_row, peer in zip(to_peers, best, strict=True)]
    figure, axes = plt.subplots(figsize=(7.4, 1.5 + 0.34 * len(rows)))
    colours = [style_of("foveal", [])[0] if r <= 1 else "#7F7F7F" for r in ratios]
    axes.barh(range(len(rows)), ratios, color=colours, height=0.62)
    axes.axvline(1, color="#333333", linewidth=1)
    for i, (value, name) in enumerate(zip(ratios, best, strict=True)):
        text = f"{value:.3f} of {style_of(name, suite.names)[2]}"
        axes.text(max(value, 1) + 0.015, i, text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [suite.label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(1.45, max(ratios) + 0.45))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("time of foveal ÷ time of the best peer; below 1: foveal is faster")
    mean = statistics.geometric_mean(ratios)
    _title(axes, suite, f"ratio to the best peer, geometric mean {mean:.3f}")
    figure.tight_layout()
    return figure


def joules(suite):
    """Energy of a forward, relative to foveal's; a row of marks a case."""
    rows = [row for row in suite.rows if row.get("joules", {}).get("foveal")]
    names = [name for name in suite.names if any(name in row["joules"] for row in rows)]
    if not rows or len(names) < 2:
        return None
    figure, axes = plt.subplots(figsize=(7.4, 1.6 + 0.34 * len(rows)))
    for name in names:
        colour, marker, label = style_of(name, names)
        points = [
            (row["joules"][name] / row["joules"]["foveal"], i) for i, row in enumerate(rows) if name in row["joules"]
        ]
        axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=48, label=label, zorder=3)
    axes.axvline(1, color="#333333", linewidth=1)
    labels = [f"{suite.label(row)}   {row['joules']['foveal']:.3g} J" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("joules a forward ÷ foveal's (given at the left), each implementation alone")
    _title(axes, suite, "energy of a forward")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


CHARTS = {"throughput": throughput, "ratio": ratio, "joules": joules}


def table(suite):
    head = "".join(f"<th>{html.escape(style_of(name, suite.names)[2])}, µs" for name in suite.names)
    body = []
    for row in suite.rows:
        best = min(row["us"].values())
        cells = []
        for name in suite.names:
            us = row["us"].get(name)
            text = "–" if us is None else f"{us:,.1f}"
            cells.append(f"<td>{f'<b>{text}</b>' if us == best else text}")
        errors = row.get("rel_err", {})
        if isinstance(errors, dict) and errors.get("foveal") is not None:
            plain = row.get("ref_rel_err")
            cells.append(f"<td>{errors['foveal']:.2e}" + (f" ({plain:.2e})" if plain else ""))
        else:
            cells.append("<td>–")
        clock = f"{row['sm_mhz']} MHz, {row['watts']} W" if row.get("sm_mhz") else "–"
        body.append(f"<tr><td>{html.escape(short(row['case']))}{''.join(cells)}<td>{clock}")
    head += "<th>relative error of foveal (of a plain computation)<th>SM clock, power"
    return f"<table><tr><th>case{head}{''.join(body)}</table>"


STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1em 0}
td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}small{color:#666}"""


def page(suites, images):
    parts = [f"<!doctype html><meta charset=utf-8><title>foveal: measured</title><style>{STYLE}</style>"]
    parts.append(
        "<h1>foveal beside its peers</h1><p>Same tensors, one process, interleaved, shuffled every round; medians. "
    )
    parts.append("Made by <code>bench/report.py</code> from the results files alone.")
    for suite in suites:
        parts.append(f"<h2>{html.escape(suite.title)}</h2><p><small>{html.escape(suite.place())}</small>")
        for path in images[suite.name]:
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<p><img alt="{path.stem}" src="data:image/svg+xml;base64,{data}">')
        parts.append(table(suite))
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with results files")
    parser.add_argument("--out", help="default: FOLDER/charts")
    options = parser.parse_args()
    out = pathlib.Path(options.out or pathlib.Path(options.folder) / "charts")
    out.mkdir(parents=True, exist_ok=True)
    suites, passed_over = load(options.folder)
    if passed_over:
        print(f"not of compare.py, passed over: {', '.join(passed_over)}")
    images = {}
    for suite in suites:
        images[suite.name] = []
        for chart, draw in CHARTS.items():
            figure = draw(suite)
            if figure is None:
                continue
            base = out / f"{suite.name}_{chart}"
            figure.savefig(base.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
            figure.savefig(base.with_suffix(".png"), bbox_inches="tight")
            with Image.open(base.with_suffix(".png")) as picture:  # few colours: a quarter of the size
                picture.convert("RGB").quantize(64).save(base.with_suffix(".png"), optimize=True)
            plt.close(figure)
            images[suite.name].append(out / f"{suite.name}_{chart}.svg")
    (out / "index.html").write_text(page(suites, images))
    print(f"{out}: {sum(map(len, images.values()))} charts of {len(suites)} suites, and index.html")


if __name__ == "__main__":
    main()
