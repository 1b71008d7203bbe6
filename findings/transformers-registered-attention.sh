#!/bin/sh
# An attention function registered with transformers is accepted for every model, also for those that cannot use it.
#
# Versions:  transformers 5.17.0, torch 2.11.0 (PyPI), on the CPU. Seen on 2026-11-28.
# Input:     transformers' own sdpa_attention_forward and sdpa_mask, registered under another name by AttentionInterface
#            and AttentionMaskInterface; BloomForCausalLM and DeepseekV4ForCausalLM with it, two and three layers.
# Behaviour: attn_implementation="sdpa" is an error in both models ("does not support an attention implementation through
#            torch.nn.functional.scaled_dot_product_attention yet"). The same under the other name is no error, nor a
#            warning. Bloom never calls the function, adds the mask (boolean or None) to its scores itself and is no
#            longer causal: another last token changes earlier logits by 2.6. DeepSeek-V4 converts what it appends to the
#            mask (0: seen, -inf: hidden) to booleans, which inverts it: its logits are off by 0.47 of their norm, and by
#            rounding only if eager_mask is registered with the same function (its sinks have no weight here).
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
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

transformers.logging.set_verbosity_error()
calls = []


def registered(*args, **kwargs):
    calls.append(1)
    return sdpa_attention_forward(*args, **kwargs)


transformers.AttentionInterface.register("registered", registered)
transformers.AttentionMaskInterface.register("registered", sdpa_mask)


def model_of(model_class, config, implementation):
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=implementation).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.fill_(-1e4)  # no weight: sdpa_attention_forward has no sinks
        elif parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    return model


def is_refused(model_class, config):
    try:
        model_of(model_class, config, "sdpa")
    except ValueError as error:
        return "does not support" in str(error)
    return False


same = True
bloom = transformers.BloomForCausalLM, transformers.BloomConfig(vocab_size=99, hidden_size=64, n_layer=2, n_head=4)
ids = torch.arange(3, 27)[None]
other = ids.clone()
other[0, -1] = 90
for name in ("eager", "registered"):
    model = model_of(*bloom, name)
    moved = (model(ids).logits - model(other).logits)[:, :-1].abs().max().item()
    print(f"Bloom, {name}: {len(calls)} calls, the last token changes earlier logits by {moved:.2g}")
    same = same and not calls and (moved > 0.01) == (name == "registered")
deepseek = transformers.DeepseekV4ForCausalLM, transformers.DeepseekV4Config(
    vocab_size=99, hidden_size=64, moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, head_dim=16,
    q_lora_rank=16, o_groups=2, o_lora_rank=16, n_routed_experts=4, num_experts_per_tok=2, qk_rope_head_dim=8,
    index_head_dim=16, index_n_heads=2, index_topk=4, sliding_window=8,
    layer_types=["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
)  # fmt: skip
eager = model_of(*deepseek, "eager")(ids, use_cache=False).logits
for mask in (sdpa_mask, eager_mask):
    calls.clear()
    transformers.AttentionMaskInterface.register("registered", mask)
    own = model_of(*deepseek, "registered")(ids, use_cache=False).logits
    difference = ((own - eager).norm() / eager.norm()).item()
    print(f"DeepSeek-V4, registered, {mask.__name__}: {len(calls)} calls, logits off by {difference:.2g} of their norm")
    same = same and len(calls) == 3 and (difference > 0.05 if mask is sdpa_mask else difference < 1e-4)
refused = [is_refused(*bloom), is_refused(*deepseek)]
print("sdpa is refused:", *refused)
sys.exit(not (same and all(refused)))
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: a registered attention is not checked against what a model supports"
