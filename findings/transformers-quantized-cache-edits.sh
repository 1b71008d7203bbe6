#!/bin/sh
# transformers' quantised cache crops and reorders only its newest tokens, and counts those that it cropped.
#
# Versions:  transformers 5.17.0, optimum-quanto 0.2.7, torch 2.11.0 (PyPI), on the CPU. Seen on 2026-12-01.
# Input:     QuantizedCache("quanto", config, nbits=4, residual_length=128), two rows in the batch, a key holds its own number
#            (100 more in row 1); a prompt of 10 tokens and a step of 4. Then crop(-3), crop(-6) or reorder_cache() that swaps the
#            rows, and one token more; DynamicCache beside it. A Llama of random weights that goes on after crop(-3).
# Behaviour: the prompt is quantised at once, whatever residual_length is, and only what follows it is changed:
#
#                              DynamicCache            QuantizedCache
#              crop(-3)        11 tokens left          11, but get_seq_length() says 14
#              crop(-6)        8 left                  10 left, get_seq_length() says 14
#              reorder_cache() all keys change places  the 4 newest do: a row is half the one, half the other
#
#            all without an error or a warning, and is_croppable is True. Llama takes the next token for number 14 where it is
#            number 11. If nothing follows the prompt, both raise an IndexError, which is also what beam search and
#            prompt lookup in generate() end with, so that the cache only seems to be guarded against them.
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" transformers==5.17.0 \
    optimum-quanto==0.2.7 torch==2.11.0 >"$scratch/log" 2>&1 ||
    { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def cache_of(kind):
    return DynamicCache() if kind is DynamicCache else QuantizedCache("quanto", config, nbits=4, residual_length=128)


def keys(first, last):
    rows = torch.arange(first, last)[None] + torch.tensor([[0], [100]])
    return rows.float()[:, None, :, None].expand(2, 2, -1, 64).contiguous()


def edited(kind, edit, tokens=14):
    cache = cache_of(kind)
    cache.update(keys(0, 10), keys(0, 10), 0)
    if tokens > 10:
        cache.update(keys(10, tokens), keys(10, tokens), 0)
    edit(cache)
    length = cache.get_seq_length()
    held = cache.update(keys(50, 51), keys(50, 51), 0)[0][:, 0, :-1, 0]
    return length, [[round(key) for key in row] for row in held.tolist()]


def swap(cache):
    cache.reorder_cache(torch.tensor([1, 0]))


first, second = list(range(14)), list(range(100, 114))
cases = {
    "crop(-3)": (lambda cache: cache.crop(-3), (11, [first[:11], second[:11]]), (14, [first[:11], second[:11]])),
    "crop(-6)": (lambda cache: cache.crop(-6), (8, [first[:8], second[:8]]), (14, [first[:10], second[:10]])),
    "reorder_cache()": (swap, (14, [second, first]), (14, [first[:10] + second[10:], second[:10] + first[10:]])),
}
same = cache_of(QuantizedCache).layers[0].is_croppable
for name, (edit, *expected) in cases.items():
    for kind, right in zip((DynamicCache, QuantizedCache), expected):
        length, held = edited(kind, edit)
        print(f"{kind.__name__}, {name}: get_seq_length() {length}, row 0 holds", *held[0])
        same = same and (length, held) == right
for edit in (lambda cache: cache.crop(-3), swap):
    try:
        edited(QuantizedCache, edit, 10)
        same = False
    except IndexError as error:
        print(f"nothing after the prompt: IndexError: {error}")

model = LlamaForCausalLM(config).eval()
positions = []
model.model.rotary_emb.register_forward_pre_hook(
    lambda module, arguments, named: positions.append(named["position_ids"].tolist()), with_kwargs=True
)
ids = torch.randint(64, (1, 15))
with torch.no_grad():
    for kind in (DynamicCache, QuantizedCache):
        cache = cache_of(kind)
        model(ids[:, :10], past_key_values=cache)
        model(ids[:, 10:14], past_key_values=cache)
        cache.crop(-3)
        model(ids[:, 11:12], past_key_values=cache)
        print(f"Llama, {kind.__name__}: the token after crop(-3) has the position {positions[-1][0][0]}")
        same = same and positions[-1] == [[11 if kind is DynamicCache else 14]]
ends = []
for arguments in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
    try:
        model.generate(
            torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4, 1, 2]]), max_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None, cache_implementation="quantized", cache_config={"backend": "quanto"}, **arguments,
        )  # fmt: skip
        ends.append("ended well")
    except IndexError:
        ends.append("IndexError")
print("generate() with beams, with prompt lookup:", *ends)
sys.exit(not (same and ends == ["IndexError", "IndexError"]))
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" 2>"$scratch/log" ||
    { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: crop() and reorder_cache() do not reach what is quantised"
