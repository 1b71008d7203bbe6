"""What every measured figure rests on: a case's work (cases.py), and what its output should be (reference.py)."""

import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from cases import SUITES, Case  # noqa: E402
from reference import Reference  # noqa: E402

CASES = [
    "b2 s40 hq4 hk2 d64 bf16 causal",
    "b1 s50 h2 d64 dv32 bf16 full",
    "b1 sq90 sk20 h2 d64 bf16 full",
    "b2 sq30 sk70 hq4 hk1 d64 bf16 causal",
    "b1 sq70 sk90 h2 d64 bf16 left20 causal",
    "b1 sq33 sk60 h2 d64 bf16 left5 right9",
    "varlen qlens=9,1,40 klens=30,7,40 hq4 hk2 d64 bf16 causal",
]


def sees(case, i, shift=0):
    """bool [s_q, s_k] of sequence i, from the contract's words: the last query sees the last key. shift: wrongly so."""
    sq, sk = case.lengths_q[i], case.lengths_k[i]
    left, right = case.window
    visible = torch.zeros(sq, sk, dtype=torch.bool)
    for query in range(sq):
        own = query + sk - sq + shift
        for key in range(sk):
            visible[query, key] = (left is None or key >= own - left) and (right is None or key <= own + right)
    return visible


def attend(case, q, k, v, shift=0):
    """The forward, sequence by sequence and head by head."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for i in range(case.batch):
        first_q, first_k = sum(case.lengths_q[:i]), sum(case.lengths_k[:i])
        own_q = slice(first_q, first_q + case.lengths_q[i]) if case.varlen else i
        own_k = slice(first_k, first_k + case.lengths_k[i]) if case.varlen else i
        for head in range(case.heads_q):
            kv = head // (case.heads_q // case.heads_k)
            scores = q[own_q][:, head].double() @ k[own_k][:, kv].double().T * case.head_dim**-0.5
            p = scores.masked_fill(~sees(case, i, shift), float("-inf")).softmax(-1)
            out[own_q][:, head] = (p @ v[own_k][:, kv].double()).to(out.dtype)
    return out


@pytest.mark.parametrize("text", CASES)
def test_flops_count_the_visible_pairs(text):
    case = Case(text)
    pairs = sum(sees(case, i).sum().item() for i in range(case.batch))
    assert case.flops == 2 * (case.head_dim + case.head_dim_v) * case.heads_q * pairs


@pytest.mark.parametrize("text", CASES)
def test_the_reference_accepts_what_is_right_and_nothing_else(text):
    torch.manual_seed(1)
    case = Case(text)
    tensors = case.tensors("cpu")
    reference = Reference(case, *tensors)
    assert reference.accepts(reference.error_of(attend(case, *tensors)))
    if case.window != (None, None):
        assert not reference.accepts(reference.error_of(attend(case, *tensors, shift=1)))
    wrong = attend(case, *tensors)
    wrong.view(-1)[-1] = float("nan")
    assert not reference.accepts(reference.error_of(wrong))


def test_rows_without_keys_are_refused():
    case = Case("b1 sq9 sk5 h1 d64 bf16 causal")
    with pytest.raises(ValueError, match="no key"):
        Reference(case, *case.tensors("cpu"))


def test_every_row_of_every_suite_is_a_case():
    for rows in SUITES.values():
        for text in rows:
            case = Case(text)
            assert case.flops > 0 and case.bytes > 0 and case.batch > 0, text
