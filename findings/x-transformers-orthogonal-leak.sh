#!/bin/sh
# An option of x-transformers makes a causal decoder see what follows: it projects values off the whole sequence, not off each token.
#
# Versions:  x-transformers 2.31.10, torch 2.11.0 (PyPI, with the versions of its dependencies below), on the CPU. Seen on 2026-12-01.
# Input:     Attention(32, causal=True) and a Decoder of two layers with orthog_projected_values=True (and with
#            orthog_projected_values_per_head=True), random weights, 12 tokens; the same with another last token; the same a token
#            at a time with the cache that the model says it can use.
# Behaviour: of each token's result the part along its own value is to be taken away. What is taken away is one projection of the
#            matrix of all tokens and heads on that of all values: its factor, one number, has the tokens after in it, and
#            the per-head option, which should differ, gives the same. By option, another last token moves earlier outputs by
#
#              none                               0
#              orthog_projected_values            0.1
#              orthog_projected_values_per_head   0.1
#
#            and decoding with the cache is off by 1.7 from one call. So training sees the targets, through a scalar. Padding and the
#            length of a prompt move its tokens in the same way.
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    x-transformers==2.31.10 einops==0.8.2 einx==0.4.3 torch-einops-utils==0.2.0 >"$scratch/log" 2>&1 ||
    { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import torch
from x_transformers import Decoder, TransformerWrapper
from x_transformers.x_transformers import Attention

torch.set_grad_enabled(False)
torch.manual_seed(0)
OPTIONS = {
    "none": {},
    "orthog_projected_values": {"orthog_projected_values": True},
    "orthog_projected_values_per_head": {"orthog_projected_values_per_head": True},
}


def of_one_layer(options):
    """How far Attention is from a float64 computation with one projection of everything, and with one for each token (and head)."""
    layer = Attention(32, causal=True, heads=2, dim_head=16, **options).double()
    x = torch.randn(1, 12, 32, dtype=torch.float64)
    q, k, v = ((x @ w.weight.T)[0].view(12, 2, 16).transpose(0, 1) for w in (layer.to_q, layer.to_k, layer.to_v))
    scores = (q @ k.transpose(1, 2) / 4).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    out, v = (t.transpose(0, 1) for t in (scores.softmax(-1) @ v, v))
    offs = []
    for dims in ((0, 1, 2), (2,) if "orthog_projected_values_per_head" in options else (1, 2)):
        factor = (out * v).sum(dims, keepdim=True) / (v * v).sum(dims, keepdim=True)
        offs.append((layer.to_out((out - factor * v).reshape(12, 32)) - layer(x)[0]).abs().max().item())
    return offs


def of_decoder(options):
    """How far another last token moves earlier logits, and how far the cache's last logits are from one call's."""
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, **{f"attn_{key}": value for key, value in options.items()})
    model = TransformerWrapper(num_tokens=50, max_seq_len=32, attn_layers=layers).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    assert model.can_cache_kv
    tokens = torch.randint(0, 50, (1, 12))
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % 50
    whole = model(tokens)
    cache = None
    for end in range(6, 13):
        last, cache = model(tokens[:, :end], cache=cache, return_intermediates=True)
    return (model(other) - whole)[:, :-1].abs().max().item(), (last[:, -1] - whole[:, -1]).abs().max().item()


same = True
for name, options in OPTIONS.items():
    moved, off = of_decoder(options)
    print(f"{name}: earlier logits move by {moved:.2g}, the cache's are off by {off:.2g}")
    if options:
        one, each = of_one_layer(options)
        print(f"  one projection of all tokens explains Attention to {one:.1g}, one for each to {each:.2g}")
        same = same and moved > 0.01 and off > 0.1 and one < 1e-6 and each > 0.01
    else:
        same = same and moved == 0 and off < 1e-4
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: orthog_projected_values makes x-transformers' causal decoder depend on later tokens"
