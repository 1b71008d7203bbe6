"""What every measured figure rests on: a case's work (cases.py), and what its output should be (reference.py)."""

import json
import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import bounds  # noqa: E402
import cases  # noqa: E402
import tool  # noqa: E402
from cache_cases import case_of  # noqa: E402
from cases import Case, NotMeasured, suite, suite_names  # noqa: E402
from reference import REFERENCE_OPTIONS, Reference  # noqa: E402

RESULTS = pathlib.Path(__file__).parents[1] / "results"

CASES = [
    "b2 s40 hq4 hk2 d64 bf16 causal",
    "b1 s50 h2 d64 dv32 bf16 full",
    "b1 sq90 sk20 h2 d64 bf16 full",
    "b2 sq30 sk70 hq4 hk1 d64 bf16 causal",
    "b1 sq70 sk90 h2 d64 bf16 left20 causal",
    "b1 sq33 sk60 h2 d64 bf16 left5 right9",
    "varlen qlens=9,1,40 klens=30,7,40 hq4 hk2 d64 bf16 causal",
    "b3 sq1 sk70 hq4 hk2 d64 bf16 causal page16",
    "b3 sq2 sk70 hq4 hk2 d64 bf16 causal used_k=70,2,33 page16 csr",
    "b3 sq2 sk70 hq4 hk2 d64 bf16 causal used_k=70,52,49 page16 common48",
    "b2 sq1 klens=30,7 hq4 hk2 d64 bf16 causal",
    "varlen qlens=9,1 sk40 hq4 hk2 d64 bf16 causal used_k=30,40 page8",
    "varlen qlens=9,1 sk40 hq4 hk2 d64 bf16 causal used_k=30,40",
]


def sees(case, i, shift=0):
    """bool [s_q, s_k] of sequence i, from the contract's words: the last query sees the last key. shift: wrongly so."""
    sq, sk = case.lengths_q[i], case.used_k[i]
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
        first_q = sum(case.lengths_q[:i])
        own_q = slice(first_q, first_q + case.lengths_q[i]) if case.varlen else i
        own_k, own_v = case.rows_k(i, k), case.rows_k(i, v)
        for head in range(case.heads_q):
            kv = head // (case.heads_q // case.heads_k)
            scores = q[own_q][:, head].double() @ own_k[:, kv].double().T * case.head_dim**-0.5
            p = scores.masked_fill(~sees(case, i, shift), float("-inf")).softmax(-1)
            out[own_q][:, head] = (p @ own_v[:, kv].double()).to(out.dtype)
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
    with pytest.raises(NotMeasured, match="no key"):
        Reference(case, *case.tensors("cpu"))


def test_a_word_that_is_not_known_is_an_error():
    for text in ("b1 s9 h1 frob", "b1 s9 h1 causal causal5", "b1 s9"):
        with pytest.raises(tool.ToolError, match="foveal: case token"):
            Case(text)


@pytest.mark.parametrize("word", ["alibi", "sinks", "mask=11", "bias=bh", "chunk4", "topleft", "lse", "scale0.5",
                                  "qoff=0", "tree", "pad", "qkv", "seed7", "sd10", "sink60@0", "flat"])  # fmt: skip
def test_an_option_that_is_not_handled_is_named(word):
    case = Case(f"b1 s9 h1 d64 bf16 causal {word}")
    with pytest.raises(NotMeasured, match="cannot do"):
        case.require(REFERENCE_OPTIONS, "compare.py")
    with pytest.raises(NotMeasured, match="cannot do"):
        Reference(case, *case.tensors("cpu"))


def makers():
    pytest.importorskip("foveal")
    import implementations

    every = {name: make for peers in implementations.PEERS.values() for name, make in peers.items()}
    return every | {"foveal": lambda *arguments: implementations.foveal_build("", *arguments)}


def test_every_implementation_refuses_an_option_that_it_has_never_heard_of():
    case = Case("b1 s9 h1 d512 bf16 full")
    case.fields = case.fields | {"brand_new": 3, "options": ["brand_new"]}
    for make in makers().values():
        with pytest.raises(NotMeasured, match="cannot do brand_new 3"):
            make(case, None, None, None)


def test_no_implementation_times_alibi_as_a_plain_call():
    case = Case("b1 s9 h1 d512 bf16 causal alibi")
    for make in makers().values():
        with pytest.raises(NotMeasured, match="alibi"):
            make(case, None, None, None)


def test_merges_are_not_cases_of_attention():
    for make in (Case, lambda text: case_of(text, Case)):
        with pytest.raises(NotMeasured, match="foveal bench"):
            make("merge parts2 b1 s9 h1")


PAGED = [
    "b3 sq1 sk70 hq4 hk2 d64 bf16 causal page16",
    "b3 sq2 sk70 hq4 hk2 d64 f32 causal used_k=70,52,49 page16 common48",
]


@pytest.mark.parametrize("text", [*PAGED, *CASES[-3:]])
def test_foveal_and_its_two_calls_are_right(text):
    pytest.importorskip("foveal")
    case = Case(text)
    tensors = case.tensors("cpu")
    reference, calls = case.reference(*tensors), {}
    for name, make in case.makers({"foveal": ""}, "cpu", ()).items():
        try:
            calls[name] = make(case, *tensors)
        except NotMeasured:
            continue
        assert reference.accepts(reference.error_of(calls[name]())), name
    assert "foveal" in calls and ("two_calls" in calls) == bool(case.common)


def test_common_keys_lie_in_the_same_pages():
    case = Case(PAGED[1])
    pages = case.pages
    assert [own[:3] for own in pages] == [pages[0][:3]] * 3 and len(set(sum(pages, []))) == 3 + 2 + 1 + 1
    assert case.tensors("cpu")[1].shape[0] == 7
    whole = Case(PAGED[1].replace(" common48", ""))
    assert whole.bytes - case.bytes == 2 * 48 * 2 * (64 + 64) * 4 and whole.flops == case.flops


@pytest.mark.parametrize(
    "text",
    ["append b3 s5 hq4 hk2 d64 bf16 page8", "copy_pages n5 hk2 d64 f16 page4", "gather b3 s20 hk2 d64 f32 page8"],
)
def test_operations_on_a_cache_are_those_of_pytorch(text):
    pytest.importorskip("foveal")
    case = case_of(text, Case)
    (given,) = case.tensors("cpu")
    reference = case.reference(given)
    for name, make in case.makers({"foveal": ""}, "cpu", ()).items():
        assert reference.accepts(reference.error_of(make(case, given)())), name
    wrong = [x.clone() for x in reference.expected]
    wrong[0].view(-1)[3] += 1
    assert not reference.accepts(reference.error_of(wrong))


def test_every_row_of_every_suite_is_a_case():
    for name in suite_names():
        for text in suite(name):
            assert text.startswith("merge ") or case_of(text, Case).text == text, name
    assert set(cases.QUICK) <= set(suite_names())
    with pytest.raises(NotMeasured, match="foveal check"):
        suite("correctness")
    with pytest.raises(tool.ToolError, match="no suite is called 'nope'"):
        suite("nope")


def committed_rows():
    for path in sorted(RESULTS.glob("*/*.json")):
        for row in json.loads(path.read_text()).get("rows") or []:
            if {"case", "flops", "bytes"} <= row.keys():
                yield path, row


def test_committed_results_are_of_cases_that_the_tool_knows():
    """The same text, FLOPs and bytes: a chart would otherwise draw another problem than was measured."""
    rows = list(committed_rows())
    assert len(rows) > 50
    for path, row in rows:
        fields = tool.ask("case", row["case"])
        assert fields["text"] == row["case"], path
        assert (fields["flops"], fields["bytes"]) == (row["flops"], row["bytes"]), (path, row["case"])


def test_the_bound_is_that_of_the_slower_of_products_and_bytes():
    flops, bytes_ = 791e12, 4.27e12
    assert bounds.bound_us("NVIDIA H200", {"flops": flops, "bytes": 1}) == pytest.approx(1e6)
    assert bounds.bound_us("NVIDIA H200", {"flops": 1, "bytes": 2 * bytes_}) == pytest.approx(2e6)
    assert bounds.bound_us("NVIDIA H100 NVL", {"flops": 1, "bytes": 1}) is None
    assert bounds.bound_us(None, {"flops": 1, "bytes": 1}) is None


def test_without_the_tool_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEAL_TOOL", str(tmp_path / "nothing"))
    with pytest.raises(tool.ToolError, match="FOVEAL_TOOL.*nothing.*cmake"):
        tool.program()
    monkeypatch.delenv("FOVEAL_TOOL")
    monkeypatch.setattr(tool, "_BUILD_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tool.ToolError, match="PATH"):
        tool.program()
