#!/bin/sh
# Two decoders of transformers are causal or not by attn_implementation: Doge under "sdpa" and Moshi under "eager" are not.
#
# Versions:  transformers 5.17.0, torch 2.11.0 (PyPI), on the CPU. Seen on 2026-11-28.
# Input:     DogeForCausalLM and MoshiForCausalLM with two layers, random weights and 12 tokens, without padding: input_ids
#            alone. The same again with another last token.
# Behaviour: no logit before the last may change. By attn_implementation they change by
#
#              Doge:  eager 0, sdpa 4.0 (also with an attention_mask of ones; 0 where another row of the batch is padded)
#              Moshi: eager 5.8 (0 with an attention_mask of ones), sdpa 0
#
#            Doge adds a mask of its own to that of transformers, which for "sdpa" is None where it is plainly causal; what
#            then reaches the attention is a mask without causality. Moshi makes no mask unless it is given one, and
#            "eager" knows of no causality but the mask's. "sdpa" is the default of both.
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
SIZE = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "Doge": transformers.DogeConfig(**SIZE, intermediate_size=64, num_key_value_heads=2),
    "Moshi": transformers.MoshiConfig(**SIZE, ffn_dim=64, num_key_value_heads=4, head_dim=16),
}


def moved(name, implementation, seen):
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name}ForCausalLM")
    model = model_class._from_config(CONFIGS[name], attn_implementation=implementation).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.2)
    ids = torch.arange(3, 15)[None].repeat(2, 1)
    other = ids.clone()
    other[:, -1] = 90
    logits, others = (model(x, attention_mask=seen, use_cache=False).logits[0] for x in (ids, other))
    return (logits - others)[:-1].abs().max().item()


ones = torch.ones(2, 12, dtype=torch.int64)
padded = ones.clone()
padded[1, :3] = 0
expected = {  # is it causal: without a mask, with one of ones, with one of a padded batch
    ("Doge", "eager"): (True, True, True),
    ("Doge", "sdpa"): (False, False, True),
    ("Moshi", "eager"): (False, True, True),
    ("Moshi", "sdpa"): (True, True, True),
}
same = True
for (name, implementation), causal in expected.items():
    changes = [moved(name, implementation, seen) for seen in (None, ones, padded)]
    print(f"{name}, {implementation}: earlier logits change by", *(f"{change:.3g}" for change in changes))
    same = same and tuple(change == 0 for change in changes) == causal
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: Doge under sdpa and Moshi under eager let earlier tokens see later ones"
