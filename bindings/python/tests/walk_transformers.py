"""Every architecture of transformers, made small with random weights: attn_implementation="foveal" against "eager".

    python bindings/python/tests/walk_transformers.py                     all of them, and docs/measured/transformers.md
    python bindings/python/tests/walk_transformers.py llama doge          these, and nothing is written

In float32 on the CPU, each architecture plain, padded, packed (two sequences told apart by their positions), continued
(several tokens behind a cache) and generating (a dynamic and a static cache), as far as "eager" can. Windows and chunks
are shorter than the sequences. Rows of padding are not compared: there "eager" gives the mean of V, foveal 0.
"""

import argparse
import ast
import collections
import contextlib
import datetime
import inspect
import io
import logging
import multiprocessing
import pathlib
import signal
import sys
import time
import warnings

import foveal
import foveal.compat.transformers
import torch
import transformers
from small_transformers import OWN, ROWS, VARIANTS, candidates, class_of, small_model
from transformers.models.auto import configuration_auto

REPORT = pathlib.Path(__file__).parents[3] / "docs/measured/transformers.md"
TOLERANCE = 2e-4  # of the norm; a wrong mask is off by 1e-2 and more
SECONDS = 90  # for one architecture

# Where "eager" is not what it should be (findings/transformers-eager-masks.sh): Gemma 4's and Nemotron's encoders
# invert its masks, which are numbers, and Moshi makes no mask at all without padding.
REFERENCES = {
    "gemma4_audio": "sdpa",
    "gemma4_unified_audio": "sdpa",
    "moshi": "sdpa",
    "nemotron3_5_asr": "sdpa",
    "nemotron_asr_streaming_encoder": "sdpa",
    "nemotron_asr_streaming": "sdpa",
}


# ---- What is run -----------------------------------------------------------------------------------------------------


def main_output(output):
    for name in ("logits", "last_hidden_state", "logits_per_image", "sequences"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    for value in output.values() if hasattr(output, "values") else [output]:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise TypeError("there is no floating tensor among the outputs")


def plain(model, inputs):
    return main_output(model(**inputs, **without_cache(model)))


def without_cache(model):
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def padded(model, inputs):
    seen = torch.ones_like(inputs["input_ids"])
    is_decoder = "CausalLM" in type(model).__name__
    seen[0, slice(0, 5) if is_decoder else slice(-5, None)] = 0
    seen[1, -3:] = 0
    output = main_output(model(**inputs, attention_mask=seen, **without_cache(model)))
    if "decoder_input_ids" in inputs or output.shape[:2] != seen.shape:
        return output
    return output[seen.bool()]


def packed(model, inputs):
    positions = torch.cat([torch.arange(9), torch.arange(ROWS - 9)])[None].expand(2, -1)
    return main_output(model(**inputs, position_ids=positions, **without_cache(model)))


def continued(model, inputs):
    ids = inputs["input_ids"]
    first = model(input_ids=ids[:, :15], use_cache=True)
    second = model(input_ids=ids[:, 15:], past_key_values=first.past_key_values, use_cache=True)
    return torch.cat([first.logits, second.logits], 1)


def generating(model, inputs, **options):
    seen = torch.ones_like(inputs["input_ids"])
    seen[0, :5] = 0
    output = model.generate(
        input_ids=inputs["input_ids"], attention_mask=seen, max_new_tokens=5, do_sample=False, num_beams=1,
        output_logits=True, return_dict_in_generate=True, disable_compile=True, **options,
    )  # fmt: skip
    return torch.stack(output.logits, 1)


def generating_static(model, inputs):
    return generating(model, inputs, cache_implementation="static")


def scenes_for(model, inputs):
    """(name, function) that this model can be asked for."""
    takes = inspect.signature(model.forward).parameters
    scenes = [plain]
    if "input_ids" in inputs:
        scenes += [padded] if "attention_mask" in takes else []
        if "decoder_input_ids" not in inputs:
            scenes += [packed] if "position_ids" in takes else []
            scenes += [continued] if "past_key_values" in takes and "CausalLM" in type(model).__name__ else []
        if model.can_generate():
            scenes += [generating] + ([generating_static] if getattr(model, "_can_compile_fullgraph", False) else [])
    return scenes


# ---- Comparing -------------------------------------------------------------------------------------------------------


def difference(actual, expected):
    if actual.shape != expected.shape or not torch.equal(actual.isnan(), expected.isnan()):
        return float("inf")
    actual, expected = (x.double().nan_to_num(0, 0, 0) for x in (actual, expected))
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def said(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def running_eager(model_class, config_class, own, reference):
    """(model, variant, inputs) of the first variant of which a model runs, or why none does."""
    why = None
    for variant in VARIANTS:
        try:
            model = small_model(model_class, config_class, own, variant, reference)
        except Exception as error:
            why = why or said(error)
            continue
        for inputs in candidates(model):
            try:
                plain(model, inputs)
                return model, variant, inputs
            except Exception as error:
                why = why or f"{model_class.__name__} does not run: {said(error)}"
        why = why or f"{model_class.__name__}: inputs unknown to this script"
    return why


def compare(model_type):
    """{"state": right | refused | wrong | not made, "why", "scenes": {name: outcome}, "calls"} of one architecture."""
    config_class = configuration_auto.CONFIG_MAPPING[model_type]
    model_class, own = class_of(model_type, config_class), OWN.get(model_type, {})
    if model_class is None:
        return {"state": "not made", "why": "no model class of its own"}
    try:
        foveal.compat.transformers._check_model(model_class, "foveal")
    except foveal.UnsupportedError as error:
        return {"state": "refused", "why": said(error)}
    found = running_eager(model_class, config_class, own, REFERENCES.get(model_type, "eager"))
    if isinstance(found, str):
        return {"state": "not made", "why": found}
    eager, variant, inputs = found
    try:
        model = small_model(model_class, config_class, own, variant, "foveal")
    except foveal.UnsupportedError as error:
        return {"state": "refused", "why": said(error)}
    except Exception as error:
        return {"state": "wrong", "why": said(error)}
    return compare_scenes(eager, model, inputs, lambda: small_model(model_class, config_class, own, variant, "sdpa"))


def compare_scenes(eager, model, inputs, make_sdpa):
    calls, outcomes, states = [], {}, []
    function = foveal.compat.transformers.attention
    foveal.compat.transformers.attention = lambda *a, **k: calls.append(1) or function(*a, **k)
    for scene in scenes_for(eager, inputs):
        name = scene.__name__
        try:
            torch.manual_seed(3)
            expected = scene(eager, inputs)
        except Exception as error:
            outcomes[name] = f"eager cannot: {said(error)}"
            continue
        try:
            torch.manual_seed(3)
            error = difference(scene(model, inputs), expected)
            states.append("right" if error <= TOLERANCE else "wrong")
            outcomes[name] = f"{states[-1]} ({error:.0e})"
            if states[-1] == "wrong":
                with contextlib.suppress(Exception):
                    torch.manual_seed(3)
                    outcomes[name] += f", sdpa {difference(scene(make_sdpa(), inputs), expected):.0e}"
        except foveal.UnsupportedError as error:
            states.append("refused")
            outcomes[name] = said(error)
        except Exception as error:
            states.append("wrong")
            outcomes[name] = said(error)
    foveal.compat.transformers.attention = function
    state = "wrong" if "wrong" in states else "refused" if "refused" in states else "right" if states else "not made"
    return {"state": state, "why": "", "scenes": outcomes, "calls": len(calls)}


# ---- The walk --------------------------------------------------------------------------------------------------------


def quiet():
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    foveal.compat.transformers.register()


def in_a_child(model_type, pipe):
    signal.alarm(SECONDS)
    sys.stderr = sys.stdout = io.StringIO()
    try:
        with torch.no_grad():
            pipe.send(compare(model_type))
    except Exception as error:
        pipe.send({"state": "not made", "why": said(error)})


def walk(model_types, at_once):
    """Yields (architecture, result); each in a process of its own, for some end theirs."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(model_types), []
    while waiting or running:
        while waiting and len(running) < at_once:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=in_a_child, args=(waiting[0], sender))
            child.start()
            sender.close()
            running.append((waiting.pop(0), child, receiver))
        for entry in [entry for entry in running if entry[2].poll() or not entry[1].is_alive()]:
            model_type, child, receiver = entry
            try:
                result = receiver.recv()
            except EOFError:
                result = {"state": "not made", "why": f"its process ended by itself, or took more than {SECONDS} s"}
            child.join()
            running.remove(entry)
            yield model_type, result
        time.sleep(0.02)


def report(results, not_run=()):
    """docs/measured/transformers.md; not_run: architectures that a run which was cut off has not come to."""
    states = collections.Counter(result["state"] for result in results.values())
    lines = [
        "# transformers: every architecture against eager", "",
        "Written by `python bindings/python/tests/walk_transformers.py`, whose first lines say what is done.", "",
        f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on the CPU, "
        f"{datetime.date.today().isoformat()}.", "",
        "| right | refused | wrong | not made | architectures |", "|---|---|---|---|---|",
        f"| {states['right']} | {states['refused']} | {states['wrong']} | {states['not made']} | {len(results)} |", "",
    ]  # fmt: skip
    scenes = collections.Counter(
        (name, outcome.split(" (")[0] if outcome.startswith(("right", "wrong")) else "refused")
        for result in results.values()
        for name, outcome in result.get("scenes", {}).items()
        if not outcome.startswith("eager cannot")
    )
    names = list(dict.fromkeys(name for name, _ in scenes))
    lines += ["| runs | right | refused | wrong |", "|---|---|---|---|"]
    lines += [f"| {n} | {scenes[n, 'right']} | {scenes[n, 'refused']} | {scenes[n, 'wrong']} |" for n in names]
    for state, title in (("wrong", "Wrong"), ("refused", "Refused"), ("right", "Right"), ("not made", "Not made")):
        chosen = {name: result for name, result in sorted(results.items()) if result["state"] == state}
        lines += ["", f"## {title}", ""]
        if state == "right":
            without = [name for name, result in chosen.items() if not result["calls"]]
            lines += ["Calling foveal: " + ", ".join(name for name in chosen if name not in without) + ".", ""]
            lines += ["Without a call (no attention, or none through the interface): " + ", ".join(without) + "."]
            continue
        for name, result in chosen.items():
            outcomes = [f"{scene}: {outcome}" for scene, outcome in result.get("scenes", {}).items()]
            lines.append(f"- {name}: {result['why'] or '; '.join(outcomes)}")
    if not_run:
        lines += ["", "## Not run", "", "The run was cut off before these: " + ", ".join(not_run) + "."]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def made_before(log):
    lines = (line.split(" ", 1) for line in log.read_text().splitlines() if " {'state': " in line)
    results = {model_type: ast.literal_eval(text) for model_type, text in lines}
    return {model_type: result for model_type, result in results.items() if result["state"] in ("right", "refused")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "architectures", nargs="*", help="model types, e.g. llama; default: all, and the report is written"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--after", type=pathlib.Path, help="what a run printed: what was made then is not run again")
    arguments = parser.parse_args()
    quiet()
    results = made_before(arguments.after) if arguments.after else {}
    model_types = arguments.architectures or sorted(set(configuration_auto.CONFIG_MAPPING_NAMES) - set(results))
    for model_type, result in walk(model_types, arguments.jobs):
        results[model_type] = result
        print(model_type, result, flush=True)
    if not arguments.architectures:
        REPORT.write_text(report(results))
    states = collections.Counter(result["state"] for result in results.values())
    print(dict(states))
    sys.exit(1 if states["wrong"] else 0)


if __name__ == "__main__":
    main()
