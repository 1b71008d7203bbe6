#!/usr/bin/env python3
"""Charts from results files alone: speed-ups over the fastest peer, throughput over sequence length, joules a forward.

    python3 bench/report.py bench/results/h200

Reads every FOLDER/*.json that compare.py wrote; writes an SVG a chart, and one page that shows them, index.html. The
same files and the same matplotlib give the same bytes, so committed charts can be checked (the committed ones are of
matplotlib 3.11.2). training.json, of training.py, gives the curves of losses, backward.json the rates of gradients,
e4m3.json rates and errors over e4m3, candle_seed.json, of candle.py, the bars of candle. Files in other forms (of the
tool, of the tests) are named and passed over. Tables of the same figures: bench/measured.py.
"""

import argparse
import html
import io
import pathlib
import re

import matplotlib.pyplot as plt
from charts import OTHERS, joules, speed_up, speed_ups, throughput
from suite import load, short

# In the order of the page.
CHARTS = {
    "speedup": (speed_up, "Speed-ups, case by case"),
    "throughput": (throughput, "Throughput"),
    "joules": (joules, "Energy"),
}


def svg_of(figure):
    """Without comments, blanks between elements, and digits that nobody sees: half the size."""
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plain = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    plain = re.sub(r' transform="rotate\(-0 [^"]*"', "", plain)
    plain = re.sub(r"-?\d+\.\d{4,}", lambda number: f"{float(number[0]):.2f}", plain)
    plain = re.sub(r">\s+<", ">\n<", plain)
    return re.sub(r"\s*\n\s*(?=[^<])", " ", plain).strip() + "\n"


STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
img{max-width:100%}"""


def page(suites, charts, others):
    """charts: {kind: {suite's name: file's name}}; others: names in OTHERS"""
    places = sorted({suite.place() for suite in suites})
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>foveal: measured</title><style>{STYLE}</style>",
        "<h1>foveal beside its peers</h1>",
        '<p><img alt="Speed-ups over the fastest peer, a bar a suite" src="speedups.svg">' if suites else "",
        "<p>The same tensors in one process, interleaved, in an order shuffled every round; ratios are taken inside a",
        f"round. Measured on: {html.escape('; '.join(places))}. Drawn by <code>bench/report.py</code> from the results",
        "files alone; <code>docs/measured/</code> has the same figures as tables.",
    ]
    for kind, (_, title) in CHARTS.items():
        if charts[kind]:
            parts.append(f"<h2>{title}</h2>")
        for suite in suites:
            if suite.name in charts[kind]:
                rows = "; ".join(short(row["case"]) for row in suite.rows)
                alt = html.escape(f"{suite.title}: {title.lower()}. {rows}")
                parts.append(f'<p><img alt="{alt}" src="{charts[kind][suite.name]}">')
    for name in others:
        _, title, alt = OTHERS[name]
        parts.append(f'<h2>{title}</h2>\n<p><img alt="{alt}" src="{name}.svg">')
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with results files")
    parser.add_argument("--out", help="default: FOLDER/charts")
    options = parser.parse_args()
    out = pathlib.Path(options.out or pathlib.Path(options.folder) / "charts")
    out.mkdir(parents=True, exist_ok=True)
    suites, others = load(options.folder)
    drawn = [name for name in others if name in OTHERS]
    if passed_over := [name for name in others if name not in OTHERS]:
        print(f"not of compare.py, passed over: {', '.join(passed_over)}")
    for name in drawn:
        (out / f"{name}.svg").write_text(svg_of(OTHERS[name][0](others[name])))
    if figure := speed_ups(suites):
        (out / "speedups.svg").write_text(svg_of(figure))
    charts = {kind: {} for kind in CHARTS}
    for suite in suites:
        for kind, (draw, _) in CHARTS.items():
            figure = draw(suite)
            if figure is None:
                continue
            charts[kind][suite.name] = f"{suite.name}_{kind}.svg"
            (out / charts[kind][suite.name]).write_text(svg_of(figure))
            plt.close(figure)
    (out / "index.html").write_text(page(suites, charts, drawn))
    count = sum(map(len, charts.values())) + len(drawn)
    print(f"{out}: {count} charts of {len(suites) + len(drawn)} suites, and index.html")


if __name__ == "__main__":
    main()
