#!/bin/sh
# Two audio encoders of transformers turn the masks of attn_implementation="eager" around: they see what is to be hidden.
#
# Versions:  transformers 5.17.0, torch 2.11.0 (PyPI), on the CPU. Seen on 2026-11-28.
# Input:     Gemma4AudioModel and NemotronAsrStreamingEncoder with two layers, random weights from a seed, and the
#            features of a sound without padding.
# Behaviour: "eager" and "sdpa" have to agree to rounding (1e-6). Instead Gemma 4's outputs differ by 0.4 of their norm,
#            and Nemotron's "eager" gives NaN throughout. Both call mask.logical_not(): a mask for "sdpa" is boolean, True
#            where a key is seen; one for "eager" is a number, 0 where a key is seen, so that it comes to the opposite.
#            Gemma4AudioModel computes its attention itself whatever the implementation is; only its mask differs.
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
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import NemotronAsrStreamingEncoder

transformers.logging.set_verbosity_error()


def output(model_class, config, implementation, features):
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=implementation).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    return model(features).last_hidden_state


gemma = transformers.Gemma4AudioConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
nemotron = transformers.NemotronAsrStreamingEncoderConfig(
    hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)
torch.manual_seed(1)
features = torch.randn(2, 128, 128)
eager, sdpa = (output(Gemma4AudioModel, gemma, name, features) for name in ("eager", "sdpa"))
difference = ((eager - sdpa).norm() / sdpa.norm()).item()
print(f"Gemma4AudioModel: eager differs from sdpa by {difference:.2g} of its norm")
features = torch.randn(2, 128, nemotron.num_mel_bins)
eager, sdpa = (output(NemotronAsrStreamingEncoder, nemotron, name, features) for name in ("eager", "sdpa"))
missing = [x.isnan().float().mean().item() for x in (eager, sdpa)]
print(f"NemotronAsrStreamingEncoder: NaN are {missing[0]:.0%} of eager's output, {missing[1]:.0%} of sdpa's")
sys.exit(not (difference > 0.1 and missing == [1.0, 0.0]))
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: eager inverts the masks of Gemma 4's and Nemotron's audio encoders"
