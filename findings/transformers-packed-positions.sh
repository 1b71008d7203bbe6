#!/bin/sh
# A batch that transformers' own collator flattened is parted by its position_ids in one call, and not in the next.
#
# Versions:  transformers 5.17.0, torch 2.11.0 (PyPI), on the CPU, attn_implementation="eager". Seen on 2026-11-29.
# Input:     two documents in one row, as DataCollatorWithFlattening() hands them over (input_ids, labels, position_ids
#            that start again); LlamaForCausalLM and GptOssForCausalLM with random weights.
# Behaviour: Llama with use_cache=False: another token in the first document changes nothing in the second. With the
#            default use_cache, or with an attention_mask of ones, it changes the second's logits. gpt-oss: it does in each
#            of these calls, since its masks are made without the position_ids, and lengths that
#            return_flash_attn_kwargs=True adds are not looked at. No error, no warning; the Trainer, which sets
#            use_cache=False, so trains gpt-oss on documents that see each other. (Pull requests 39997 and 46634 there.)
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    transformers==5.17.0 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
SIZE = {
    "vocab_size": 99, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None,
}  # fmt: skip
MODELS = {
    "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZE)),
    "gpt-oss": (
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig(**SIZE, num_local_experts=2, num_experts_per_tok=1, sliding_window=64),
    ),
}
CALLS = {
    "use_cache=False": {"use_cache": False},
    "use_cache=False, lengths": {"use_cache": False},
    "the default": {},
    "use_cache=False, attention_mask of ones": {"use_cache": False, "attention_mask": torch.ones(1, 20).long()},
}


def leak(name, call):
    """How far another first token of the first document moves the logits of the second."""
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    model = model_class._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    collator = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs="lengths" in call)
    logits = []
    for first in (5, 50):
        batch = collator([{"input_ids": [first, *range(10, 17)]}, {"input_ids": list(range(20, 32))}])
        logits.append(model(**batch, **CALLS[call]).logits[:, 8:])
    return (logits[0] - logits[1]).abs().max().item()


leaks = {(name, call): leak(name, call) for name in MODELS for call in CALLS}
for (name, call), moved in leaks.items():
    print(f"{name}, {call}: the second document's logits move by {moved:.2g}")
parted = {key for key, moved in leaks.items() if moved == 0}
sys.exit(parted != {("Llama", "use_cache=False"), ("Llama", "use_cache=False, lengths")})
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: position_ids part the documents of a packed batch in some calls and some models alone"
