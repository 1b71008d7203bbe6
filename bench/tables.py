"""Tables of results files, a function a program of bench/ but compare.py; measured.py places them."""

import statistics

from suite import NAMES, short


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def microseconds(us):
    return f"{us:.2f}" if us < 100 else f"{us:.1f}" if us < 10000 else f"{us:.0f}"


def option_tables(document):
    """bench/options.py: each call alone in blocks."""
    names = list(dict.fromkeys(name for row in document["rows"] for name in row["options"]))
    rows = []
    for name in names:
        line = [name]
        for row in document["rows"]:
            option = row["options"].get(name)
            line.append(f"{option['over_plain']:.3f} ({microseconds(option['us'])} µs)" if option else "–")
        rows.append(line)
    return table(["option"] + [row["case"] for row in document["rows"]], rows)


def tests_text(document):
    """bench/gpu_tests.py: the whole test list on the card."""
    parts = ["- Comparisons with the oracle (`foveal check`): "]
    parts.append(
        "; ".join(f"{c['suite']} {c['passed']} passed, {c['failed']} failed, {c['unsupported']} not supported"
                  for c in document["check"]) + ".\n"
    )  # fmt: skip
    programs = {key: value for key, value in document.items() if isinstance(value, dict) and "passed" in value}
    parts += [
        f"`{key}`: {v['passed']} passed, {v['failed']} failed, {v['skipped']} skipped.\n" for key, v in programs.items()
    ]
    for tool, found in document.get("sanitizer", {}).items():
        parts.append(f"- compute-sanitizer's {tool}: {found['cases']} cases, {found['found']} findings.\n")
    rows = [[case, us["call"], us["empty_kernel_launch"]] for case, us in document.get("host_us", {}).items()]
    if rows:
        head = ["host time", "a call, µs", "launch of an empty kernel, µs"]
        parts += ["\n", table(head, rows)]
    if "ncu" in document:
        metrics = document["ncu"]["metrics"]
        parts.append(f"\nOne launch of `{document['ncu']['case']}` under `{document['ncu']['command']}`:\n\n")
        parts.append(table(["metric", "value"], [[f"`{name}`", f"{value:,g}" if value < 1e6 else f"{value:,.0f}"]
                                                 for name, value in metrics.items()]))  # fmt: skip
    return "".join(parts)


def sgemm_table(document):
    """bench/cpu_sgemm_ratio.cpp: the CPU backend's rate over that of OpenBLAS' sgemm."""
    rows = [[row["case"], microseconds(row["us"]), f"{row['gflops']:.0f}", f"{row['ratio_to_sgemm']:.3f}"]
            for row in document["rows"]]  # fmt: skip
    peer = f"{document['openblas']}, {document['openblas_threads']} threads"
    about = f"{peer}, 2048³: {document['sgemm_gflops']:.0f} GFLOP/s; "
    about += f"foveal's instructions: {document['simd']}.\n\n"
    return about + table(["case", "foveal, µs", "GFLOP/s", "of sgemm's rate"], rows)


def training_table(document):
    """bench/training.py: a row a model and a type."""

    def span(numbers):
        return f"{statistics.median(numbers):.2g} ({min(numbers):.2g} to {max(numbers):.2g})"

    head = ["model", "type", "loss at first", "at last, foveal", "eager", "from exact, foveal", "eager"]
    head += ["foveal from eager", "chance", "same bits twice"]
    rows = []
    for row in document["rows"]:
        last = [f"{row['last_loss'][name]:.4f}" for name in ("foveal", "eager")]
        apart = [span(numbers) for numbers in (row["distance"]["foveal"], row["distance"]["eager"], row["between"])]
        bits = "yes" if row["same_bits_twice"] else "no"
        chance = f"{row['chance']:.2g}"
        rows.append([row["model"], row["dtype"], f"{row['first_loss']:.4f}", *last, *apart, chance, bits])
    about = f"{document['steps']} steps of AdamW, transformers {document['transformers']}, {document['runs']} runs of "
    about += "each kind, from weights moved by one unit in the last place; bf16 by autocast. Exact is attention in "
    about += "float64. A distance is the mean over all steps of the difference of two losses: the median of the runs, "
    about += "and their range. Chance: that foveal's distances from exact would rank as high beside eager's if both "
    about += f"were drawn alike; below {document['level']:g} divided by the number of rows it is not taken for noise. "
    return about + "At last: the mean of the last tenth of the steps.\n\n" + table(head, rows)


def gradient_table(document):
    """bench/backward.py: a row a case, of the gradients alone or of a step; joules of a step; what cuDNN refuses."""
    head = ["bf16", "cuDNN, µs", "foveal, µs", "TFLOP/s", "times as fast as cuDNN", "error", ""]
    rows = []
    for row in document["rows"]:
        us, note = row["us"], ", ".join(f"{NAMES[name]} {joule:.3g} J" for name, joule in row.get("joules", {}).items())
        peer = [microseconds(us["cudnn"]), f"{1 / row['ratio']['cudnn']:.2f}"] if "cudnn" in us else ["–", "–"]
        if beside := row.get("beside"):
            other = f"{short(beside['case'])}, {microseconds(us['beside'])} µs"
            note = f"{beside['over_share']:.2f} of its share ({beside['share']:g}) of {beside['of']} of {other}"
        elif "cudnn" in row["refused"]:
            note = "cuDNN: " + row["refused"]["cudnn"].replace("|", " ")
        label = ("forward and backward: " if row["kind"] == "step" else "") + short(row["case"]).replace(" bf16", "")
        rate = f"{row['useful_flops'] / us['foveal'] / 1e6:.0f}"
        rows.append([label, peer[0], microseconds(us["foveal"]), rate, peer[1], f"{row['errors']['foveal']:.1e}", note])
    return table(head, rows)


def e4m3_tables(document):
    """bench/e4m3.py: times beside bf16's and cuDNN's fp8, and the error over the length of the keys."""
    names = [name for name in ("bf16", "cudnn") if any(name in row.get("us", ()) for row in document["rows"])]
    unit, per_us = ("TFLOP/s", 1e6) if document["gpu"] else ("GFLOP/s", 1e3)
    head = ["case", "in e4m3", "foveal, µs", unit, *(f"of {NAMES[name]}'s time" for name in names), "error", ""]
    rows, curve = [], {}
    for row in document["rows"]:
        case, errors = short(row["case"]).replace(" bf16", ""), row["errors"]
        if row["kind"] == "curve":
            curve[case] = errors
            continue
        us, ratio = row["us"]["foveal"], row["ratio"]
        beside = [f"{ratio[name]:.3f}" if name in ratio else "–" for name in names]
        what = {"all": "q, k, v", "cache": "k, v"}[row["kind"]]
        note = "; ".join(f"{NAMES[name]}: {why}" for name, why in row["refused"].items()).replace("|", " ")
        rate = f"{row['useful_flops'] / us / per_us:.4g}"
        rows.append([case, what, microseconds(us), rate, *beside, f"{errors['foveal']:.1e}", note])
    text = table(head, rows)
    if curve:
        shown = [name for name in ("foveal", "cudnn") if any(name in errors for errors in curve.values())]
        lines = [[case, *(f"{errors[name]:.4f}" if name in errors else "–" for name in shown)]
                 for case, errors in curve.items()]  # fmt: skip
        text += "\nRelative error with q, k and v in e4m3:\n\n"
        text += table(["case", *(NAMES[name] for name in shown)], lines)
    return text


def parallel_tables(document):
    """bench/parallel.py: one sequence on two GPUs."""
    names = list(dict.fromkeys(name for row in document["rows"] for name in row["two_ms"]))
    head = ["case", "one GPU, ms", "TFLOP/s"] + [f"{name}, ms (times one GPU)" for name in names]
    rows = []
    for row in document["rows"]:
        one = min(row["one_ms"])
        line = [row["case"], f"{one:.4g}", f"{row['flops'] / one / 1e9:.0f}"]
        for name in names:
            ms = row["two_ms"].get(name)
            line.append(f"{ms:.4g} ({row['speed_up'][name]:.2f})" if ms else "–")
        rows.append(line + [_span(row["one_sm_mhz"]), _span(row["sm_mhz"].values()), _span(row["watts"].values())])
    text = table([*head, "SM clock of one, MHz", "of two", "watts of each of two"], rows)
    rows = [[f"{link['bytes'] / 2**20:g}", f"{link['us']:.1f}", f"{link['bytes_per_second'] / 1e9:.0f}"]
            for link in document["link"]]  # fmt: skip
    text += "\nNCCL's send and receive, both ways at once:\n\n" + table(["MiB each way", "µs", "GB/s each way"], rows)
    rows = [
        [row["case"], name, f"{ms:.4g}" if isinstance(ms, float) else ms.replace("|", " ").split("\n")[0]]
        for row in document["torch_context_parallel"]
        for name, ms in row["two_ms"].items()
    ]
    if rows:
        text += "\ntorch's experimental context_parallel on the same GPUs:\n\n" + table(["case", "backend", "ms"], rows)
    return text


def candle_table(document):
    """bench/candle.py: candle-foveal beside FlashAttention-3, and what was published of candle-flash-attn-v3."""
    names, rows = list(document["rows"][0]["us"]), []
    for row in document["rows"]:
        ratios = [f"{row['ratios'][how]:.3f}" for how in ("interleaved", "alone")]
        rows.append([row["case"], *(microseconds(row["us"][name]) for name in names), *ratios])
    head = ["case", *(f"{NAMES[name]}, µs" for name in names), "ratio to FlashAttention-3, interleaved", "alone"]
    return table(head, rows) + f"\nHost time of a call through candle: {document['candle_call_us']:g} µs.\n"


def _span(values):
    values = [v for value in values for v in (value if isinstance(value, list) else [value]) if v is not None]
    if not values:
        return "–"
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


OTHERS = {
    "backward": ("Gradients", "Medians; error: of a gradient's norm, from float32's textbook.\n\n", gradient_table),
    "e4m3": (
        "e4m3",
        "Medians; ratios of each round. Error: of the norm of attention in float64 on the same rounded numbers.\n\n",
        e4m3_tables,
    ),
    "parallel": (
        "One sequence on two GPUs",
        "Medians; the faster GPU alone with everything, beside both with their shards (the slower one's time).\n\n",
        parallel_tables,
    ),
    "candle_seed": (
        "From Rust, through candle",
        "FlashAttention-3's time is the lower of two: interleaved by CUDA events, and alone by the clock.\n\n",
        candle_table,
    ),
    "option_cost": (
        "What an option costs",
        "Time over that of the plain call, each alone in blocks.\n\n",
        option_tables,
    ),
    "tests": ("Tests on the card", "", tests_text),
    "sgemm_ratio": ("CPU beside sgemm", "", sgemm_table),
    "training": ("Training: foveal beside eager", "", training_table),
    "sgemm_ratio_avx2": ("CPU beside sgemm, both with AVX2 alone", "", sgemm_table),
}
