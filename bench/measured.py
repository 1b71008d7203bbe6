#!/usr/bin/env python3
"""Writes every measured figure of the documents: docs/measured/CARD.md, and the marked tables of README.md and docs/.

    python3 bench/measured.py           # after new files in bench/results/
    python3 bench/measured.py --check   # exit status 1 if a document is not what the results files give

A table in another document stands between "<!-- measured: NAME -->" and "<!-- end measured -->"; NAME is "speed-ups"
(over the fastest peer, a row a card), "speed CARD" (the suites seed and single, a column a case), "candle CARD"
(a sentence), "means" (the geometric mean of each suite on each GPU) or "backward CARD" (bench/backward.py). Needs no
package.
"""

import argparse
import pathlib
import re
import sys

from suite import NAMES, best_ratio, geometric_mean, load, short
from tables import OTHERS, gradient_table, microseconds, table

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "bench/results", ROOT / "docs/measured"
# d 128 from the shortest to the longest: one mean of these is what the log follows
TOGETHER = ("seed", "single", "mha")


def suite_table(suite):
    head = [f"case: {suite.shared_text()} …" if suite.shared_text() else "case"]
    head += [f"{NAMES.get(name, name)}, µs" for name in suite.names] + (
        ["TFLOP/s", "GB/s"] if suite.on_gpu else ["GFLOP/s"]
    )
    with_peers = len(suite.names) > 1
    if with_peers:
        head += ["ratio", "to"]
    rows = []
    for row in suite.rows:
        line = [suite.label(row)]
        line += [microseconds(row["us"][name]) if name in row["us"] else "–" for name in suite.names]
        line.append(f"{suite.rate(row, 'foveal'):.0f}")
        if suite.on_gpu:
            line.append(f"{row['bytes'] / row['us']['foveal'] / 1e3:.0f}")
        if with_peers:
            best = best_ratio(row)
            line += [f"{best[0]:.3f}", NAMES.get(best[1], best[1])] if best else ["–", "–"]
        rows.append(line)
    return table(head, rows)


def mean_row(title, suites):
    """Speed-ups, the least and the most of them, and the mean ratio."""
    ratios = [ratio for suite in suites for ratio in suite.ratios()]
    speed_ups = [f"{1 / ratio:.2f}" for ratio in (geometric_mean(ratios), max(ratios), min(ratios))]
    return [title, *speed_ups, len(ratios), f"{geometric_mean(ratios):.3f}"]


def means(suites):
    """A row a suite with peers, and those of all suites on standard normal data."""
    with_peers = [suite for suite in suites if suite.ratios()]
    normal = [suite for suite in with_peers if suite.is_normal]
    together = [suite for suite in with_peers if suite.name in TOGETHER]
    rows = [mean_row(f"{suite.title} (`{suite.name}`)", [suite]) for suite in with_peers]
    if len(together) == len(TOGETHER):
        rows.append(mean_row("`" + "`, `".join(TOGETHER) + "` together", together))
    if len(normal) > 1:
        rows.append(mean_row("all suites but those of other logits", normal))
    return rows


def source(about):
    """What a file says of its origin, in the order in which it is told."""
    parts = {
        "commit {}": (about.get("commit") or "?")[:12],
        "{}": (about.get("date") or "no date")[:10],
        "{} ": about.get("gpu") or about.get("cpu"),
        "{} threads": about.get("threads"),
        "driver {}": about.get("driver"),
        "CUDA {}": about.get("cuda"),
        "PyTorch {}": about.get("torch"),
    }
    return ", ".join(text.format(value).strip() for text, value in parts.items() if value)


def sources(documents):
    """documents: {file's stem: document}. Files of one run are told together."""
    runs = {}
    for name, about in documents.items():
        runs.setdefault((source(about), about.get("command", "in no file")), []).append(f"`{name}`")
    return "".join(f"- {', '.join(names)}: {text}.\n  `{command}`\n" for (text, command), names in runs.items())


def python_calls(suite):
    calls = suite.about.get("python_call_us") or {}
    if not calls:
        return ""
    text = "; ".join(f"{name} {us:g} µs" for name, us in calls.items())
    work = "" if suite.on_gpu else ", with the work"
    return f"\nA call from Python in this run (b1 s64 h1 d64 bf16 causal, host time{work}): {text}.\n"


INTRO = """Written by `bench/measured.py` from `bench/results/{folder}/`; not edited by hand. Charts:
[`bench/results/{folder}/charts/`](../../bench/results/{folder}/charts/).

"""
HOW = """
## How it was measured

Times are medians over interleaved rounds of the same tensors in one process (`bench/compare.py`). A ratio is foveal's
time over that of the fastest peer, taken inside each round, as the mean without the highest and lowest tenth: below 1
foveal is faster. So it may differ a little from the quotient of the medians. A speed-up is 1 over a ratio. Data are
random normal unless a suite's title says otherwise. Rates are foveal's; GB/s counts each element of q, k, v and out
once. Of a varlen case the number of sequences and the range of their lengths are given; the file has the lengths.
"""


def page(folder):
    suites, others = load(folder)
    abouts = [suite.about for suite in suites] + list(others.values())
    cards = sorted({about.get("gpu") or about.get("cpu") for about in abouts})
    parts = [f"# Measured: {', '.join(cards)}\n\n", INTRO.format(folder=folder.name)]
    if rows := means(suites):
        head = ["suite", "times as fast as the fastest peer", "least", "most", "rows", "mean ratio"]
        parts += ["## Speed-ups\n\n", "Geometric means over a suite's rows.\n\n", table(head, rows)]
    parts.append(HOW)
    for suite in suites:
        about = source(suite.about)
        parts += [
            f"\n## {suite.title} (`{suite.name}`)\n\n",
            about[0].upper() + about[1:] + ".\n\n",
            suite_table(suite),
        ]
        if suite.name in ("seed", "cpu"):
            parts.append(python_calls(suite))
    for name, document in others.items():
        title, text, body = OTHERS.get(name, (None, None, None))
        if title:
            about = source(document)
            parts += [f"\n## {title} (`{name}`)\n\n", about[0].upper() + about[1:] + ".\n\n", text, body(document)]
    parts += ["\n## Commands\n\n", sources({suite.name: suite.about for suite in suites} | others)]
    return "".join(parts)


def speed(card):
    """A column a case of seed and single."""
    suites = [suite for suite in load(RESULTS / card)[0] if suite.name in ("seed", "single")]
    rows = [row for suite in suites for row in suite.rows]
    names = list(dict.fromkeys(name for suite in suites for name in suite.names))
    shared = set.intersection(*(set(row["case"].split()) for row in rows))

    def label(row):
        return " ".join(token for token in row["case"].split() if token not in shared)

    def cell(row, name):
        return f"{row['us'][name]:.3g}" if row["us"][name] < 1000 else f"{row['us'][name]:.0f}"

    lines = [[f"{NAMES.get(name, name)}, µs"] + [cell(row, name) for row in rows] for name in names]
    lines.append(["foveal, TFLOP/s"] + [f"{suite.rate(row, 'foveal'):.0f}" for suite in suites for row in suite.rows])
    lines.append(["ratio to the faster peer"] + [f"{best_ratio(row)[0]:.3f}" for row in rows])
    common = " ".join(token for token in short(rows[0]["case"]).split() if token in shared)
    return f"{suites[0].place()}; {common}:\n\n" + table(["", *map(label, rows)], lines)


def speed_ups():
    """A row a card: over the fastest peer, with the row where foveal does worst."""
    lines = []
    for folder in sorted(RESULTS.iterdir(), key=lambda at: (at.name.startswith("cpu"), at.name != "h200", at.name)):
        suites = [suite for suite in load(folder)[0] if suite.ratios() and suite.is_normal]
        if not suites:
            continue
        rows = [row for suite in suites for row in suite.rows if best_ratio(row)]
        worst = max(rows, key=best_ratio)
        peers = sorted({NAMES.get(name, name) for suite in suites for name in suite.names if name != "foveal"})
        dates = sorted({suite.about["date"][:10] for suite in suites})
        _, mean, least, most, count, _ = mean_row("", suites)
        days = " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))
        place = f"[{suites[0].card()}](docs/measured/{folder.name}.md), {days}"
        lines.append([place, " and ".join(peers), mean, f"{least} (`{short(worst['case'])}`)", most, count])
    return table(["on", "beside", "times as fast as the faster", "where least", "most", "rows"], lines)


def all_means():
    """A row a GPU, a column a suite: the mean speed-up; then of all rows, and the least and the most of them."""
    names, lines = [], []
    for folder in sorted(RESULTS.iterdir(), reverse=True):
        suites = [suite for suite in load(folder)[0] if suite.ratios() and suite.on_gpu]
        normal = [suite for suite in suites if suite.is_normal]
        if not normal:
            continue
        columns = {", ".join(TOGETHER): [suite for suite in normal if suite.name in TOGETHER]}
        columns |= {suite.name: [suite] for suite in normal if suite.name not in TOGETHER}
        columns |= {"all": normal}
        rows = {name: mean_row(name, of) for name, of in columns.items() if of}
        names += [name for name in rows if name not in names]
        cells = {name: row[1] for name, row in rows.items()}
        cells["all"] = "{1} ({2}–{3}; {4} rows)".format(*rows["all"])
        lines.append((folder.name.upper(), cells))
    names.sort(key=lambda name: name == "all")
    return table(["card", *names], [[card] + [cells.get(name, "–") for name in names] for card, cells in lines])


def candle(card):
    """How long a forward through candle takes, in a sentence."""
    document = load(RESULTS / card)[1]["candle_seed"]
    ratios = [row["ratio"]["fa3"] for row in document["rows"]]
    us = ", ".join(microseconds(row["us"]["candle_foveal"]) for row in document["rows"])
    about = f"{document['gpu']} ({document['date']}, commit {document['commit'][:7]})"
    text = f"On an {about} the four forwards of candle's pull request 3597 take\n{us} µs through candle-foveal, "
    text += f"{min(ratios):.3f} to {max(ratios):.3f} of FlashAttention-3's kernel time"
    return f"{text} ([table](docs/measured/{card}.md)).\n"


def backward(card):
    document = load(RESULTS / card)[1].get("backward")
    return f"{source(document)}.\n\n{gradient_table(document)}" if document else "No results file yet.\n"


BLOCKS = {"backward": backward, "candle": candle, "speed": speed, "speed-ups": speed_ups, "means": all_means}
BLOCK = re.compile(r"(<!-- measured: ([\w -]+?) -->\n).*?(<!-- end measured -->)", re.DOTALL)


def with_blocks(text):
    def block(match):
        name, *arguments = match[2].split()
        return f"{match[1]}{BLOCKS[name](*arguments)}{match[3]}"

    return BLOCK.sub(block, text)


def documents():
    """{path: text that the results files give}"""
    texts = {PAGES / f"{folder.name}.md": page(folder) for folder in sorted(RESULTS.iterdir()) if folder.is_dir()}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path not in texts and "<!-- measured:" in path.read_text():
            texts[path] = with_blocks(path.read_text())
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a document would change")
    options = parser.parse_args()
    texts = documents()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not what bench/results/ gives' if options.check else 'written'}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path])
    if not stale:
        print(f"{len(texts)} documents have the figures of bench/results/")
    elif options.check:
        print("rewrite them: python3 bench/measured.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
