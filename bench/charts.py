"""The charts, matplotlib's figures: of a suite that compare.py has measured, or of another program's results file."""

import re

import matplotlib
from bounds import bound_us
from suite import NAMES, best_ratio, geometric_mean, short

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, told apart by colour-blind readers; a marker of its own for print.
STYLES = {
    "foveal": ("#D55E00", "o"),
    "fa3": ("#0072B2", "s"),
    "cudnn": ("#009E73", "^"),
    "fa2": ("#CC79A7", "v"),
    "efficient": ("#E69F00", "P"),
    "bf16": ("#F0A070", "o"),
    "flashinfer": ("#56B4E9", "D"),
    "torch_cpu": ("#0072B2", "s"),
}
SPARE_COLOURS = ["#000000", "#F0E442", "#999999"]

plt.rcParams.update(
    {
        "font.size": 10,
        "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it; a text names all of the list
        "xtick.bottom": False,
        "ytick.left": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "foveal",  # the same results give the same file
    }
)


def style_of(name, names):
    if name in STYLES:
        return *STYLES[name], NAMES[name]
    unknown = [n for n in names if n not in STYLES]
    return SPARE_COLOURS[unknown.index(name) % len(SPARE_COLOURS)], "X", name


def length_of(case):
    match = re.search(r"\bs(\d+)\b", case)
    return int(match[1]) if match else None


def _title(axes, title, place):
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=22)
    axes.annotate(place, (0, 1), (0, 7), "axes fraction", textcoords="offset points", fontsize=8, color="#555555")


def _place(suite):
    return " · ".join(filter(None, [suite.shared_text(), suite.place()]))


def _peers_of(suites):
    names = dict.fromkeys(name for suite in suites for name in suite.names if name != "foveal")
    texts = [style_of(name, list(names))[2] for name in names]
    return texts[0] if len(texts) == 1 else f"the faster of {' and '.join(texts)}"


def _speed_up_axis(axes, labels, values, texts):
    colours = [STYLES["foveal"][0] if value >= 1 else "#7F7F7F" for value in values]
    axes.barh(range(len(values)), values, color=colours, height=0.62)
    axes.axvline(1, color="#333333", linewidth=1)
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.text(max(value, 1) + 0.03, i, text, va="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, max(values) * 1.45)
    axes.grid(axis="y", visible=False)


def speed_ups(suites):
    """Of all suites: a bar a suite."""
    suites = [suite for suite in suites if suite.ratios()]
    if not suites:
        return None
    speeds = [[1 / ratio for ratio in suite.ratios()] for suite in suites]
    means = [geometric_mean(of_suite) for of_suite in speeds]
    texts = [f"{mean:.2f} ({min(all_):.2f} to {max(all_):.2f})" for mean, all_ in zip(means, speeds, strict=True)]
    figure, axes = plt.subplots(figsize=(8.4, 1.5 + 0.34 * len(suites)))
    _speed_up_axis(axes, [suite.title for suite in suites], means, texts)
    axes.set_xlabel(
        "times as fast, the geometric mean of a suite's cases (least to most);\n"
        "the title's is of all cases with logits of standard deviation 1"
    )
    normal = [speed for suite, of_suite in zip(suites, speeds, strict=True) if suite.is_normal for speed in of_suite]
    places = " · ".join(dict.fromkeys(suite.place() for suite in suites))
    _title(axes, f"foveal is {geometric_mean(normal):.2f} times as fast as {_peers_of(suites)}", places)
    figure.tight_layout()
    return figure


def speed_up(suite):
    """The fastest peer's time over foveal's, a bar a case."""
    rows = [(row, *best_ratio(row)) for row in suite.rows if best_ratio(row)]
    if not rows:
        return None
    values = [1 / ratio for _, ratio, _ in rows]
    figure, axes = plt.subplots(figsize=(7.4, 1.5 + 0.34 * len(rows)))
    texts = [f"{1 / ratio:.2f} × {style_of(peer, suite.names)[2]}" for _, ratio, peer in rows]
    _speed_up_axis(axes, [suite.label(row) for row, _, _ in rows], values, texts)
    axes.set_xlabel("times as fast as the fastest peer: its time ÷ foveal's")
    _title(axes, f"{suite.title}: {geometric_mean(values):.2f} times as fast", _place(suite))
    figure.tight_layout()
    return figure


def panels_of(suite):
    """Rows that differ in b and s alone, by what they share. Two lengths make no line."""
    if any(length_of(row["case"]) is None for row in suite.rows):
        return {}
    panels = {}
    for row in suite.rows:
        key = " ".join(t for t in suite.label(row).split() if not re.fullmatch(r"[bs]\d+", t))
        panels.setdefault(key, []).append(row)
    return {k: sorted(rows, key=lambda row: length_of(row["case"])) for k, rows in panels.items() if len(rows) > 2}


def throughput(suite):
    """Rate over sequence length, one line an implementation; several masks or shapes of a length: panels."""
    groups = panels_of(suite)
    if not groups or len(suite.names) < 2:
        return None
    figure, panels = plt.subplots(1, len(groups), figsize=(3 + 4.2 * len(groups), 4.4), sharey=True, squeeze=False)
    for axes, (key, rows) in zip(panels[0], groups.items(), strict=True):
        lengths = [length_of(row["case"]) for row in rows]
        bounds = [bound_us(suite.about.get("gpu"), row) for row in rows]
        if all(bounds):
            roof = [row["flops"] / bound / 1e6 for row, bound in zip(rows, bounds, strict=True)]
            axes.plot(range(len(rows)), roof, color="#888888", linestyle="--", linewidth=1.2, label="bound of the card")
        for name in suite.names:
            colour, marker, label = style_of(name, suite.names)
            points = [(i, suite.rate(row, name)) for i, row in enumerate(rows) if name in row["us"]]
            width = 2.2 if name == "foveal" else 1.4
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=colour, marker=marker, linewidth=width, markersize=6, label=label)
        batches = [re.search(r"\bb(\d+)\b", row["case"]) for row in rows]
        ticks = [f"{s}\nb{b[1]}" if b else str(s) for s, b in zip(lengths, batches, strict=True)]
        axes.set_xticks(range(len(rows)), ticks)
        axes.set_xlabel("sequence length, and batch")
        axes.set_ylim(bottom=0)
        if len(groups) > 1:
            axes.text(0.97, 0.04, key, transform=axes.transAxes, ha="right", fontweight="bold")
    panels[0][0].set_ylabel("TFLOP/s" if suite.on_gpu else "GFLOP/s")
    _title(panels[0][0], f"{suite.title}: useful work a second (higher is better)", _place(suite))
    lines = {}  # a peer may be in one panel only
    for axes in panels[0]:
        lines |= {line.get_label(): line for line in axes.get_lines()}
    panels[0][-1].legend(lines.values(), lines.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5))
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
    _title(axes, f"{suite.title}: energy of a forward (lower is better)", _place(suite))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def training(document):
    """bench/training.py: a model a column: its losses, and how far they are from those of attention in float64."""
    names = list(dict.fromkeys(row["model"] for row in document["rows"]))
    dtypes = list(dict.fromkeys(row["dtype"] for row in document["rows"]))
    grid = {"nrows": 2 * len(dtypes), "ncols": len(names), "sharex": True, "sharey": "row", "squeeze": False}
    figure, panels = plt.subplots(**grid, figsize=(2.6 * len(names) + 1, 3.4 * len(dtypes) + 0.6))
    ours, eager = STYLES["foveal"][0], STYLES["fa3"][0]
    for row in document["rows"]:
        column, line = names.index(row["model"]), 2 * dtypes.index(row["dtype"])
        steps = range(0, document["steps"], document["every"])
        losses, apart = panels[line][column], panels[line + 1][column]
        losses.plot(steps, row["loss"]["eager"], color=eager, linewidth=4, alpha=0.45, label="eager")
        losses.plot(steps, row["loss"]["foveal"], color=ours, linewidth=1.4, label="foveal")
        for kind, colour, dashes in (("eager", eager, "--"), ("foveal", ours, "-")):
            span = row["apart"][kind]
            apart.fill_between(steps, span["least"], span["most"], color=colour, alpha=0.2, linewidth=0)
            apart.plot(steps, span["median"], color=colour, linewidth=1.4, linestyle=dashes, label=kind)
        apart.set_yscale("log")
        apart.set_ylim(bottom=1e-7)  # half the last place of a loss of 2; below is 0
        losses.set_title(f"{row['model']}, {row['dtype']}", fontsize=10)
    for line, axes in enumerate(panels[:, 0]):
        axes.set_ylabel("loss" if line % 2 == 0 else "|loss − exact's|")
    for axes in panels[-1]:
        axes.set_xlabel("step")
    panels[0][-1].legend(loc="upper right", fontsize=8)
    runs = f"median and range of {document['runs']} runs"
    panels[1][-1].legend(loc="upper left", fontsize=8, title=runs, title_fontsize=8)
    about = f"{document.get('gpu') or document['cpu']}, {document['date']}, commit {document['commit'][:7]}"
    figure.suptitle(f"Trained by foveal and by eager: {about}", x=0.02, ha="left", fontweight="bold", fontsize=11)
    figure.tight_layout()
    return figure


def gradients(document):
    """bench/backward.py: the rate of each row, foveal's and cuDNN's."""
    rows, names = document["rows"], ("foveal", "cudnn")
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.42 * len(rows)))
    for name, lower in zip(names, (-0.38, 0), strict=True):
        colour, _, label = style_of(name, names)
        places = [i for i, row in enumerate(rows) if name in row["us"]]
        rates = [rows[i]["useful_flops"] / rows[i]["us"][name] / 1e6 for i in places]
        axes.barh([i + lower + 0.19 for i in places], rates, color=colour, height=0.36, label=label)
        for i, rate in zip(places, rates, strict=True):
            axes.text(rate, i + lower + 0.19, f" {rate:.3g}", va="center", fontsize=8)
    kinds = {"gradients": "", "step": "forward and backward: "}
    axes.set_yticks(range(len(rows)), [kinds[row["kind"]] + short(row["case"]).replace(" bf16", "") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("TFLOP/s (higher is better)")
    about = f"{document.get('gpu') or document['cpu']}, {document['date']}, commit {document['commit'][:7]}"
    _title(axes, "Gradients, bf16: useful work a second", about)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def e4m3(document):
    """bench/e4m3.py: rates, a bar each; and the error over the length of the keys."""
    timed = [row for row in document["rows"] if row["kind"] != "curve"]
    curve = [row for row in document["rows"] if row["kind"] == "curve"]
    figure, (rates, errors) = plt.subplots(2, figsize=(9, 4.2 + 0.5 * len(timed)), height_ratios=[len(timed) + 1, 6])
    names, per_us = [name for name in ("foveal", "bf16", "cudnn") if any(name in row["us"] for row in timed)], 1e6
    for name in names:
        colour, _, label = style_of(name, names)
        places = [i for i, row in enumerate(timed) if name in row["us"]]
        values = [timed[i]["useful_flops"] / timed[i]["us"][name] / per_us for i in places]
        at = [i + (names.index(name) - (len(names) - 1) / 2) * 0.27 for i in places]
        rates.barh(at, values, color=colour, height=0.25, label=label)
        for y, value in zip(at, values, strict=True):
            rates.text(value, y, f" {value:.3g}", va="center", fontsize=7)
    kinds = {"all": "", "cache": "caches: "}
    rates.set_yticks(range(len(timed)), [kinds[row["kind"]] + short(row["case"]).replace(" bf16", "") for row in timed])
    rates.set_ylim(len(timed) - 0.4, -0.6)
    rates.grid(axis="y", visible=False)
    rates.set_xlabel("TFLOP/s (higher is better)")
    about = f"{document.get('gpu') or document['cpu']}, {document['date']}, commit {document['commit'][:7]}"
    _title(rates, "q, k and v, or caches alone, in e4m3: useful work a second", about)
    rates.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for name in names:
        points = [
            (int(re.search(r"\bsk(\d+)", row["case"])[1]), row["errors"][name])
            for row in curve
            if name in row["errors"]
        ]
        if points:
            colour, marker, label = style_of(name, names)
            errors.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    errors.set_xscale("log", base=2)
    errors.set_ylim(bottom=0)
    errors.set_xlabel("keys")
    errors.set_ylabel("relative error")
    figure.tight_layout()
    return figure


def _kind(name):
    """Which row of a timeline a kernel has, and its colour."""
    if "nccl" in name.lower():
        return "NCCL", "#0072B2"
    return ("forward", "#D55E00") if "forward" in name else ("merge", "#009E73")


def parallel(document):
    """bench/parallel.py: what each GPU does, call after call."""
    timelines = document["timelines"]
    figure, panels = plt.subplots(max(1, len(timelines)), 1, figsize=(9, 0.8 + 2.3 * len(timelines)), squeeze=False)
    for axes, timeline in zip(panels[:, 0], timelines, strict=True):
        kinds = ["forward", "merge", "NCCL"]
        labels = [f"GPU {rank}: {kind}" for rank in range(len(timeline["ranks"])) for kind in kinds]
        for rank, events in enumerate(timeline["ranks"]):
            # Clocks of processes are not alike: each begins with its first kernel.
            begin = min((event[2] for event in events), default=0)
            for name, _, at, us in events:
                kind, colour = _kind(name)
                axes.broken_barh([((at - begin) / 1e3, us / 1e3)], (labels.index(f"GPU {rank}: {kind}") - 0.4, 0.8),
                                 facecolor=colour, edgecolor="white", linewidth=0.3)  # fmt: skip
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_title(f"{timeline['method']}, {timeline['case']}: three calls", loc="left", fontsize=10)
        axes.set_xlabel("ms since the first kernel")
    about = f"{document['gpu']}, NCCL {document['nccl']}, {document['date']}, commit {document['commit'][:7]}"
    figure.suptitle(f"One sequence on two GPUs: {about}", x=0.02, ha="left", fontweight="bold", fontsize=11)
    figure.tight_layout()
    return figure


CANDLE = {"published_before": "#BBBBBB", "published_after": "#7F7F7F", "fa3": STYLES["fa3"][0],
          "candle_foveal": STYLES["foveal"][0]}  # fmt: skip


def candle(document):
    """bench/candle.py: a panel a length, each on a scale of its own; what others published is hatched."""
    rows = document["rows"]
    figure, panels = plt.subplots(2, -(-len(rows) // 2), figsize=(10.5, 4.6), squeeze=False)
    for row, axes in zip(rows, panels.flat, strict=False):
        fa3 = row["us"]["fa3"]
        for i, (name, colour) in enumerate(CANDLE.items()):
            us, published = row["us"][name], name.startswith("published")
            axes.barh(i, us, color=colour, hatch="///" * published, edgecolor="white", linewidth=0, height=0.7)
            text = f"{us:.1f} µs" if us < 1000 else f"{us / 1e3:#.3g}".rstrip(".") + " ms"
            text += "" if published else f", {us / fa3:.3f} ×"  # times of two cards make no ratio
            axes.text(us, i, f" {text}", va="center", fontsize=8)
        axes.set_yticks(range(len(CANDLE)), [NAMES[name].replace(" (published)", "") for name in CANDLE], fontsize=8)
        axes.set_ylim(len(CANDLE) - 0.4, -0.6)
        axes.set_xlim(0, 1.4 * max(row["us"].values()))
        axes.set_title(f"s {length_of(row['case'])}", loc="left", fontsize=10)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.label_outer()
    ratios = [row["us"]["candle_foveal"] / row["us"]["fa3"] for row in rows]
    span = f"{min(ratios):.3f} to {max(ratios):.3f}"
    title = f"A forward through candle takes {span} of FlashAttention-3's kernel time"
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=11)
    about = f"{document['gpu']}, {document['date']}, commit {document['commit'][:7]}; × FlashAttention-3's time\n"
    about += "b128 hq32 hk8 d128 bf16 causal; hatched: published in candle's pull request 3597, "
    about += "of another H200 whose clocks are not known"
    figure.text(0.02, 0.93, about, va="top", fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    return figure


OTHERS = {
    "backward": (gradients, "Gradients", "Rates of the gradients, a pair of bars a case: foveal and cuDNN"),
    "candle_seed": (candle, "From Rust, through candle", "Times of a forward through candle, a panel a length"),
    "e4m3": (e4m3, "e4m3", "Rates over e4m3 beside bf16 and cuDNN's fp8, and the error over the number of keys"),
    "parallel": (parallel, "One sequence on two GPUs", "A timeline of kernels and of NCCL's on each GPU"),
    "training": (training, "Training", "Losses of small models trained with foveal and with eager, step by step"),
}
