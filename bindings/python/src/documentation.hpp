// Signatures and docstrings of the functions that the extension makes. Python reads a signature up to the line "--".
#pragma once

namespace foveal::python {

inline constexpr char kAttentionDoc[] =
    "attention(q, k, v, *, scale=None, causal=False, window=(None, None), align='bottom_right', "
    "softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, bias=None, mask=None, seqused_q=None, "
    "seqused_k=None, block_table=None, page_indptr=None, page_indices=None, query_offset=None, tree_mask=None, "
    "workspace=None, dropout_p=0.0, dropout_state=None, q_descale=None, k_descale=None, v_descale=None, uint8_as=None, "
    "return_lse=False, out=None)\n--\n\n"
    R"(softmax(scores, masked) @ v, as one fused kernel, on the device and current stream of q.

Score of query i and key j, in this order (off = s_k - s_q for align="bottom_right", 0 for "top_left"):
    x = scale * (q_i . k_j)                     scaled dot product: arXiv:1706.03762, section 3.2.1
    x = softcap * tanh(x / softcap)             if softcap > 0: arXiv:2408.00118 (Gemma 2), section 2
    x = x - alibi_slopes[h] * |i + off - j|     ALiBi: arXiv:2108.12409, section 3
    x = x + bias[b, h, i, j]
Key j is seen iff i + off - window[0] <= j <= i + off + window[1], it is in the chunk of i + off, its mask is true
and its bias is not -inf. A sink adds exp(sinks[h]) to the denominator alone (arXiv:2508.10925, gpt-oss, section
2.2). A row that sees no key gives out = 0 and lse = -inf (with a sink: lse = sink).

Args:
    q: [b, s_q, h_q, d], bfloat16, float16, float32 or float8_e4m3fn, of PyTorch, NumPy (with ml_dtypes), CuPy, JAX or
        another library with DLPack. Used where it lies, never copied; the last stride is 1. All inputs may be expanded
        (stride 0).
    k: [b, s_k, h_k, d], q's dtype; h_q is a multiple of h_k. float8_e4m3fn beside any q: the result is, bit for bit,
        that of k and v dequantised and rounded to q's dtype.
    v: [b, s_k, h_k, d_v], k's dtype.
    scale: factor on the dot products; None: 1/sqrt(d).
    causal: the same as window = (window[0], 0).
    window: (left, right), how many keys before and after a query's own position it sees; None: no limit.
    align: "bottom_right": the last query sees the last key. "top_left": the first sees the first.
    softcap: bound of the scores; 0: none.
    chunk: positions are cut into chunks of this many, and a query sees keys of its own only; 0: none.
    alibi_slopes: float32 [h_q] or [b, h_q].
    sinks: float32 [h_q], logits in natural units, not scaled.
    bias: q's dtype or float32, of a shape that broadcasts to [b, h_q, s_q, s_k] as in NumPy: dimensions of size 1 are
        shared, and those that are missing on the left.
    mask: bool, of such a shape; where it is False, the key is not seen. [b, 1, 1, s_k] says which keys are padding.
    seqused_q, seqused_k: int32 [b]; only so many rows of each sequence take part. The others of q give out = 0 and
        lse = -inf where foveal allocates the result, and are left as they are in the caller's out.
    block_table: int32 or uint32 [b, max_pages]: k and v are pages, [pages, page_size, h_k, d] and [pages, page_size,
        h_k, d_v], and key j of sequence i is row j % page_size of page block_table[i, j // page_size]. Needs seqused_k.
        Entries behind a sequence's last key may hold anything.
    page_indptr, page_indices: int32 [b + 1] and int32 or uint32 [n], in place of block_table: the pages of sequence i are
        page_indices[page_indptr[i]:page_indptr[i + 1]].
    query_offset: int32 [b]: off of each sequence, in place of align.
    tree_mask: uint32 (or int32, as bits) [b, s_q, words]: of a sequence with n queries, bit m % 32 of a query's word
        m // 32 says whether it sees key s_k - n + m, as far as the window lets it.
    workspace: foveal.Workspace, or a packed tensor of zeros on q's device: memory that plan() says makes a call fast.
    dropout_p: probability, in [0, 1), with which a weight of the softmax is dropped; the others are divided by
        1 - dropout_p (arXiv:1706.03762, section 5.4). Rounded to a multiple of 2**-16. lse is that without dropout.
    dropout_state: which weights those are, (seed, offset): two integers of 64 bits, or an int64 (or uint64) [2] on q's
        device. None, for PyTorch's tensors: drawn from PyTorch's generator of q's device. The same state drops the same
        weights, whatever else the call says: foveal.dropout_mask() shows which.
    q_descale, k_descale, v_descale: float32 [b, h_k], may be expanded: what elements of q, k and v in float8_e4m3fn are
        multiplied by, of that sequence and K/V head. None: 1. Of k and v, but for packed ones, also the shape of k without
        d, such as [pages, page_size, h_k]: each row's own.
    uint8_as: "float8_e4m3fn": q, k and v of dtype uint8 hold elements of that type.
    return_lse: return (out, lse).
    out: where to write, [b, s_q, h_q, d_v], apart from all inputs; None: a new tensor of q's library. Not for JAX,
        and not where PyTorch records operators.

Returns:
    out [b, s_q, h_q, d_v], of q's dtype (of float8_e4m3fn: bfloat16, or what `out` is); with return_lse also lse,
    float32 [b, h_q, s_q]: the natural logarithm of the sum of exp(score) over the keys that are seen. In PyTorch both
    have gradients with respect to q, k, v, sinks, bias and alibi_slopes, where they require one (out is None then);
    attention_backward() is for other libraries.

Raises:
    InvalidArgument: not a well-formed problem. UnsupportedError: the backend cannot do it exactly, or has no
    gradient where one is recorded; a tensor has a tangent. NoDeviceError, CudaError: the GPU is at fault. TypeError: an argument of
    the wrong type. The message names the argument.
)";

inline constexpr char kVarlenDoc[] =
    "attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, scale=None, causal=False, window=(None, "
    "None), align='bottom_right', softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, seqused_q=None, "
    "seqused_k=None, block_table=None, page_indptr=None, page_indices=None, query_offset=None, tree_mask=None, "
    "workspace=None, dropout_p=0.0, dropout_state=None, q_descale=None, k_descale=None, v_descale=None, uint8_as=None, "
    "return_lse=False, out=None)\n--\n\n"
    R"(attention() of sequences of different lengths, one after the other without padding.

Args:
    q: [total_q, h_q, d]. k: [total_k, h_k, d]. v: [total_k, h_k, d_v].
    cu_seqlens_q, cu_seqlens_k: int32 [b + 1] on q's device: sequence i is rows cu_seqlens[i] to
        cu_seqlens[i + 1] - 1. They ascend from 0 to total: checked on the CPU, trusted on a GPU. There is no
        max_seqlen. cu_seqlens_k None: k and v are dense, [b, s_k, h_k, d], or pages, with seqused_k.
    tree_mask: [total_q, words].
    The others are those of attention().

Returns:
    out [total_q, h_q, d_v]; with return_lse also lse, float32 [h_q, total_q].

Raises:
    As attention().
)";

inline constexpr char kMergeDoc[] =
    "merge(outs, lses, *, out=None, lse=None)\n--\n\n"
    R"(Merges attention over disjoint sets of keys, from each set's out and lse.

    lse = log(sum_n exp(lses[n]))    out = sum_n exp(lses[n] - lse) * outs[n]
The rescaling is that of the online softmax (arXiv:1805.02867). A part whose lse is -inf counts nothing; if all are,
out = 0 and lse = -inf.

Args:
    outs: 1 to 32 tensors [b, s_q, h_q, d_v] or [total_q, h_q, d_v], of one dtype.
    lses: as many, float32 [b, h_q, s_q] or [h_q, total_q].
    out: where to write, float32 or the dtype of outs; may be one of outs. None: a new tensor of outs' dtype.
    lse: where to write, float32; may be one of lses. None: a new tensor.

Returns:
    (out, lse)

Raises:
    As attention().
)";

inline constexpr char kAppendDoc[] =
    "append(k, v, k_cache, v_cache, *, slot_mapping=None, cache_lengths=None, cu_seqlens=None, block_table=None, "
    "cos=None, sin=None, positions=None, interleaved=False, q=None, q_out=None, k_scale=None, v_scale=None, "
    "k_scale_out=None, v_scale_out=None, uint8_as=None)\n--\n\n"
    R"(Writes new rows of k and v to a cache of pages, turned by a rotary embedding on the way; turns rows of q alike.

    A pair (x, y) becomes (x cos - y sin, y cos + x sin), the rotary embedding of arXiv:2104.09864, in fp32 with each
    operation rounded for itself; then, in the cache, it is divided by the scale; then rounded once.

Args:
    k, v: [b, s_new, h_k, d] and [b, s_new, h_k, d_v], or ragged [total_new, h_k, d] and [total_new, h_k, d_v]; float32,
        bfloat16 or float16. None, with its cache: not appended.
    k_cache, v_cache: [pages, page_size, h_k, d] and [pages, page_size, h_k, d_v], of any float type or
        float8_e4m3fn, whose largest number, 448, is what becomes of larger ones; written, nothing in them but the new
        rows. Any strides but the last: heads before rows, or both in one pool.
    slot_mapping: int64 [b, s_new] or [total_new]: row i goes to row slot % page_size of page slot // page_size;
        negative: nowhere. Or:
    cache_lengths: int32 [b]: row n of a sequence becomes its key number cache_lengths + n.
    cu_seqlens: int32 [b + 1], with cache_lengths and ragged rows: rows cu_seqlens[i] to cu_seqlens[i + 1] - 1 are
        sequence i's.
    block_table: int32 or uint32 [b, max_pages], with cache_lengths: the pages of each sequence. None: page i is all of
        sequence i.
    cos, sin: [positions, rot / 2], float32 or k's dtype; the first rot <= d elements of rows of k and q turn.
    positions: int32 or int64 [b, s_new] or [total_new]. None, with cache_lengths: the number of the row as a key.
    interleaved: pairs are elements 2 i and 2 i + 1; else i and i + rot / 2.
    q: [b, s_new, h_q, d] or [total_new, h_q, d], k's dtype.
    q_out: where q goes, of its shape and dtype; may be q. None: a new tensor.
    k_scale, v_scale: float32 [1] or [h_k]: the cache holds x / scale. None: 1. Positive and finite beside float8_e4m3fn.
    k_scale_out, v_scale_out: float32, written, of caches in float8_e4m3fn and in place of k_scale and v_scale: the scale
        is worked out, the largest finite magnitude, turned, over 448; 1 where that is 0. [h_k]: of all rows of the call
        that are written, head by head, for a cache that holds no others; [pages, page_size, h_k]: of each row, at its
        place in the cache.
    uint8_as: "float8_e4m3fn": caches of dtype uint8 hold elements of that type.

Returns:
    q_out; None without q.

Raises:
    As attention(). Slots, lengths, pages and positions out of range: checked on the CPU, trusted on a GPU.
)";

inline constexpr char kCopyPagesDoc[] =
    "copy_pages(k_cache, v_cache, pairs)\n--\n\n"
    R"(Copies whole pages of a cache, bit for bit: for each pair all of page src goes to page dst, as a cache that shares
pages does before it writes to one.

Args:
    k_cache, v_cache: [pages, page_size, h_k, d] and [pages, page_size, h_k, d_v]: float32, bfloat16, float16 or (on the
        CPU) float8_e4m3fn, any strides but the last; written. None: not copied.
    pairs: int32 or int64 [n, 2], src and dst; where one of them is negative, nothing is copied. No page is the dst of two
        pairs, nor the dst of one and the src of another.

Raises:
    As attention(). Pages out of range, or written twice: checked on the CPU, trusted on a GPU.
)";

inline constexpr char kGatherDoc[] =
    "gather(k_cache, v_cache, cu_seqlens_k, *, total_k=None, seqused_k=None, block_table=None, page_indptr=None, "
    "page_indices=None, k=None, v=None)\n--\n\n"
    R"(Writes the keys and values of sequences in pages one sequence behind the other, bit for bit: as attention_varlen()
takes them.

Args:
    k_cache, v_cache: [pages, page_size, h_k, d] and [pages, page_size, h_k, d_v]: float32, bfloat16, float16
        or (on the CPU) float8_e4m3fn.
    cu_seqlens_k: int32 [b + 1], ascending from 0 to total_k: row cu_seqlens_k[i] + j becomes key j of sequence i.
    total_k: how many rows there are; not asked where k and v are given.
    seqused_k: int32 [b]; only so many rows of each sequence are written. The others are 0 where foveal allocates the
        result, and left as they are in the caller's.
    block_table: int32 or uint32 [b, max_pages]; or page_indptr, int32 [b + 1], and page_indices, int32 or uint32 [n]: as in
        attention().
    k, v: where to write, [total_k, h_k, d] and [total_k, h_k, d_v] of the caches' dtype; None: new tensors. Not for JAX,
        and not where PyTorch records operators.

Returns:
    (k, v)

Raises:
    As attention(). Lengths and pages out of range: checked on the CPU, trusted on a GPU.
)";

}  // namespace foveal::python
