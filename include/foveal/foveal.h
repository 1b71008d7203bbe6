/* foveal: fused attention for NVIDIA Hopper GPUs and for CPUs. The C ABI.
 *
 *   out = softmax(scores, masked) * V    scores of query i and key j, in this order:
 *     x = scale * q_i . k_j
 *     x = softcap * tanh(x / softcap)       if softcap > 0
 *     x = x - slope * |i + off - j|         if alibi_slopes is present; off as under alignment
 *     x = x + bias[i, j]                    if bias is present
 *   and a sink adds exp(sink) to the denominator of its head's rows, and nothing to the numerator; dropout takes
 *   weights of the softmax away, if it is asked for.
 *
 * Dense   q [b, s_q, h_q, d]    k [b, s_k, h_k, d]    v [b, s_k, h_k, d_v]    out [b, s_q, h_q, d_v]
 * Varlen  q [total_q, h_q, d]   k [total_k, h_k, d]   v [total_k, h_k, d_v]   out [total_q, h_q, d_v]
 *         with cu_seqlens_q and cu_seqlens_k, int32 [b + 1] each.
 * Paged                         k [pages, page_size, h_k, d]   v [pages, page_size, h_k, d_v]
 *         with block_table, or page_indptr and page_indices, and seqused_k.
 * q (with out and lse) has either of two forms, k and v one of three, and any two go together.
 *
 * q, k, v and out are f32, bf16 or f16, all of one; or k and v are e4m3 and q is
 *   - f32, bf16 or f16, as out: the result is, bit for bit, that of k and v in q's dtype, dequantised: each element
 *     times its descale in fp32, rounded once to q's dtype;
 *   - e4m3 too, and out bf16 or f16: the result is that of the dequantised q, k and v.
 *
 * A call is validated, planned and launched; it allocates no device memory, never synchronises and uses only the
 * caller's stream. What cannot be honoured exactly is refused: the status says how, foveal_last_error() says which
 * argument, with the offending values.
 *
 * Threads: any functions may run at the same time in any threads, with the same arguments and the same plan too, as
 * long as no call writes what another one reads or writes (on a GPU: unless streams order them), and
 * foveal_plan_destroy() comes after the last use of its plan. A call reads its argument structures until it returns and
 * neither writes nor keeps them; the memory that tensors view is in use until the work on the stream is done. The
 * environment (FOVEAL_BACKEND, FOVEAL_NUM_THREADS, OMP_NUM_THREADS) is read by getenv() during calls.
 *
 * This header is C99 and includes nothing but <stddef.h> and <stdint.h>.
 */
#ifndef FOVEAL_FOVEAL_H
#define FOVEAL_FOVEAL_H

#include <stddef.h>
#include <stdint.h>

/* What the shared library exports. */
#if defined(__GNUC__)
#define FOVEAL_API __attribute__((visibility("default")))
#else
#define FOVEAL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FOVEAL_VERSION_MAJOR 0 /* of this header; foveal_version() is the library's */
#define FOVEAL_VERSION_MINOR 1 /* likewise */
#define FOVEAL_VERSION_PATCH 0 /* likewise */

/* Statuses. Values are part of the ABI and never change. Every function that returns one may return FOVEAL_OK,
 * FOVEAL_INVALID_ARGUMENT, FOVEAL_OUT_OF_MEMORY and FOVEAL_INTERNAL_ERROR; which others it may return stands beside it.
 * A refused call (FOVEAL_INVALID_ARGUMENT, FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE) has written nothing; after the other
 * errors results are undefined. What goes wrong on the GPU once the call has returned, CUDA reports to a later one. */
typedef int32_t foveal_status;
enum {
    FOVEAL_OK = 0,
    FOVEAL_INVALID_ARGUMENT = 1, /* not a well-formed problem, whatever the backend */
    FOVEAL_UNSUPPORTED = 2,      /* well-formed, but the backend cannot do it exactly */
    FOVEAL_NO_DEVICE = 3,        /* the sm90 backend was asked for and there is no Hopper GPU, driver, or CUDA build */
    FOVEAL_CUDA_ERROR = 4,       /* the CUDA driver refused; the message carries its reason */
    FOVEAL_OUT_OF_MEMORY = 5,    /* host memory */
    FOVEAL_INTERNAL_ERROR = 6    /* a defect of foveal */
};

/* The type of a tensor's elements. */
typedef int32_t foveal_dtype;
enum {
    FOVEAL_F32 = 1,  /* IEEE 754 binary32 */
    FOVEAL_BF16 = 2, /* bfloat16: the upper half of a binary32 */
    FOVEAL_F16 = 3,  /* IEEE 754 binary16 */
    FOVEAL_I32 = 4,  /* sequence offsets and lengths */
    FOVEAL_BOOL = 5, /* one byte an element: 0 is false, any other value true */
    FOVEAL_I64 = 6,  /* slots and positions */
    FOVEAL_U32 = 7,  /* page numbers */
    FOVEAL_E4M3 = 8  /* OCP FP8 E4M3 (e4m3fn): largest 448, no infinities, NaN is 0x7f and 0xff */
};

/* Who computes. */
typedef int32_t foveal_backend;
enum {
    /* Where q's memory lies; the environment variable FOVEAL_BACKEND=cpu|sm90 overrides it. FOVEAL_BACKEND=cpu beside
     * device memory is FOVEAL_INVALID_ARGUMENT where the build has the sm90 backend; one without cannot know. */
    FOVEAL_BACKEND_AUTO = 0,
    /* Host pointers, which the caller vouches for; the call returns when the result is there; stream must be NULL. */
    FOVEAL_BACKEND_CPU = 1,
    FOVEAL_BACKEND_SM90 = 2 /* device pointers; asynchronous on the caller's stream */
};

/* Which key a query stands at where there are more keys than queries, or fewer. */
typedef int32_t foveal_alignment;
enum {
    FOVEAL_BOTTOM_RIGHT = 0, /* the last query sees the last key: off = s_k - s_q */
    FOVEAL_TOP_LEFT = 1      /* the first query sees the first key: off = 0 */
};

#define FOVEAL_MAX_RANK 4     /* dimensions of a foveal_tensor */
#define FOVEAL_UNLIMITED (-1) /* window_left and window_right: no limit on that side */

/* A strided view of the caller's memory. rank == 0 says that the tensor is absent (optional tensors only).
 * Strides are in elements, and not followed where the dimension has size 1. The last dimension's is 1, the others are
 * not negative. 0 says that a dimension is shared: of tensors that are read, any of those others, and also the last of
 * bias, mask, alibi_slopes, sinks, query_offset and seqused_*. A tensor without elements may have data == NULL.
 * sm90: data and every stride except the last must be multiples of 16 bytes. */
typedef struct foveal_tensor {
    void* data;                      /* the first element, on the host or on the device; the caller's */
    foveal_dtype dtype;              /* of the elements */
    int32_t rank;                    /* 1 ... FOVEAL_MAX_RANK; 0: absent */
    int64_t shape[FOVEAL_MAX_RANK];  /* the first `rank` count */
    int64_t stride[FOVEAL_MAX_RANK]; /* in elements, likewise */
} foveal_tensor;

/* How the structures grow. A library of the same SONAME takes callers that were compiled against any of its headers:
 *   - The structures ..._args grow at their ends alone, without padding; no field moves, changes its meaning or goes.
 * foveal_tensor, FOVEAL_MAX_RANK and the values of enumerations never change.
 *   - A new field's default is all zero bytes, and means what was before that field.
 *   - The caller says how long its structure is: once at ..._args_init_sized(), and in struct_size at every call.
 *   - An older caller's structure is shorter: nothing behind its end is read or written, and the fields that it lacks
 *     have their defaults.
 *   - A newer caller's structure is longer: what the library does not know is zeroed by ..._args_init_sized(), and a
 *     call in which a byte of it is set is refused with FOVEAL_UNSUPPORTED. */

/* One forward call. Call foveal_forward_args_init() first: it sets struct_size and the defaults named here. */
typedef struct foveal_forward_args {
    uint32_t struct_size;   /* sizeof(foveal_forward_args) as the caller knows it */
    foveal_backend backend; /* default FOVEAL_BACKEND_AUTO */

    foveal_tensor q;   /* rank 4 dense, rank 3 varlen */
    foveal_tensor k;   /* h_q must be a multiple of h_k */
    foveal_tensor v;   /* d_v may differ from d */
    foveal_tensor out; /* the dtype of q (of e4m3: bf16 or f16), or f32: unrounded, for merging; written only */
    foveal_tensor lse; /* optional: f32 [b, h_q, s_q], varlen [h_q, total_q]; natural logarithm of the sum of exp */

    /* Values of cu_seqlens ascend from 0 to total, those of seqused lie between 0 and their sequence's length. The CPU
     * backend refuses others, and page numbers out of range, naming the entry; on sm90 they are device memory, which
     * the host does not read and the kernel trusts: what others do there is undefined. */
    foveal_tensor cu_seqlens_q; /* i32 [b + 1]; present: q, out and lse are varlen; absent: dense */
    foveal_tensor cu_seqlens_k; /* i32 [b + 1]; present: k and v are varlen. Beside a varlen q dense ones need
                                 * seqused_k */
    foveal_tensor seqused_q; /* optional i32 [b]: only the first seqused_q[i] rows of sequence i take part; the rows of
                              * out and lse behind them are not written */
    foveal_tensor seqused_k; /* optional i32 [b] */

    float scale;                /* factor on Q*K^T; NaN (the default) stands for 1/sqrt(d) */
    foveal_alignment alignment; /* default FOVEAL_BOTTOM_RIGHT */
    /* Key j is visible to query i iff i + off - window_left <= j <= i + off + window_right.
     * FOVEAL_UNLIMITED (the default) lifts a side. Causal: window_right = 0. */
    int64_t window_left;
    int64_t window_right; /* see window_left */

    /* Positions i + off and j are cut into chunks of this many; a query sees keys of its own chunk only (Llama 4's
     * local layers). The window applies as well. 0 (the default): no chunks. */
    int64_t chunk;
    float softcap;    /* c > 0: x becomes c * tanh(x / c). 0 (the default): none */
    int32_t reserved; /* 0 */

    foveal_tensor alibi_slopes; /* optional f32 [h_q] or [b, h_q] */
    foveal_tensor sinks;        /* optional f32 [h_q]: a logit without a value, in natural units (not scaled) */
    /* Optional, dense only, of a shape that broadcasts to [b, h_q, s_q, s_k] as in NumPy: rank 1 to 4, right-aligned; a
     * dimension of size 1, one of stride 0 and one that is missing on the left is shared. Beside pages s_k is any
     * number, and no sequence uses more keys. */
    foveal_tensor
        bias; /* q's dtype (of e4m3: bf16 or f16) or f32; added to the score. A key whose bias is -inf is not seen */
    foveal_tensor mask; /* FOVEAL_BOOL: where it is false, the key is not seen */

    /* Pages: key j of sequence i is row j % page_size of a page of k and v, the page that entry j / page_size of the
     * sequence's own names. Entries of pages that hold a sequence's keys lie in [0, pages); those behind are not read
     * and may hold anything. seqused_k, which pages need, is at most what the sequence has entries for. Either ... */
    foveal_tensor block_table; /* i32 or u32 [b, max_pages] */
    /* ... or both of these: a sequence's entries are page_indices[page_indptr[i]] to [page_indptr[i + 1] - 1]. */
    foveal_tensor page_indptr;  /* i32 [b + 1], ascending from 0 */
    foveal_tensor page_indices; /* i32 or u32 [n] */

    /* Optional i32 [b]: off of each sequence, in place of what alignment says, which is then the default. Any sign; at
     * most 2^29 - 1 in size. */
    foveal_tensor query_offset;

    /* Optional u32 [b, s_q, words], varlen [total_q, words]: which of a sequence's last keys a query sees, as the nodes
     * of a speculative tree do. Of a sequence with n queries and s_k keys, bit m % 32 of a query's word m / 32 is for
     * key s_k - n + m, 0 <= m < n: where it is 0, the key is not seen. Keys before those, and those for which there are
     * no words, are seen as window and chunks say, which apply to all keys. All heads share it. */
    foveal_tensor tree_mask;

    /* Memory for a launch's intermediate results: foveal_plan_workspace_bytes() says how much makes the call fast.
     * Zeroed once, by who allocates it. One serves calls of all shapes (foveal_backward's is another); calls that may
     * run at the same time have one each. On the device for sm90. Without it a call computes all the same. */
    void* workspace;          /* aligned to 16 bytes; NULL: none */
    uint64_t workspace_bytes; /* 0 if and only if workspace is NULL */

    /* Optional f32 [b, h_k], strides 0 allowed: what an element of an e4m3 tensor, of that sequence and K/V head, is
     * multiplied by, in fp32. Absent: 1. Only beside e4m3 tensors. */
    foveal_tensor q_descale; /* of the query heads that share the K/V head */
    foveal_tensor k_descale; /* see q_descale; or, of k of rank 4, k's shape but the last: each row's own */
    foveal_tensor v_descale; /* the same of v */

    /* Dropout: of the softmax's weights P, each is dropped with probability p and the others are divided by 1 - p,
     *   out_i = sum over j of m(i, j) / (1 - p) * P_ij * v_j    with m 0 or 1,
     * where P and lse are those without dropout, and p is dropout_p to the nearest multiple of 2^-16, halves up, and at
     * most 1 - 2^-16: a dropout_p below 2^-17 drops nothing. Which weights are kept follows from dropout_state and from
     * the weight's sequence, head, query and key alone (docs/contract.md, 1.16; foveal_dropout_mask() writes it down).
     * A gradient drops those that its forward call dropped. A dropped key counts as seen: 0 times a NaN in v is NaN. */
    float dropout_p;    /* in [0, 1); 0 (the default): none is dropped, and dropout_state is NULL */
    int32_t reserved_2; /* 0 */
    /* [2]: seed, offset, any values. In the memory of q's device and read by the work on the stream, so that a captured
     * graph may be replayed with others; aligned to 8 bytes. Present if and only if dropout_p > 0. */
    const uint64_t* dropout_state;
} foveal_forward_args;

/* Sets struct_size and all defaults; every tensor becomes absent. size: sizeof(foveal_forward_args) as the caller knows
 * it; not a byte behind that is written. NULL is ignored. */
FOVEAL_API void foveal_forward_args_init_sized(foveal_forward_args* args, size_t size);

/* The same with the size that this header knows. Not part of the library, and of internal linkage in C++ too: were it
 * shared between objects that were compiled against different headers, one would get the other's size. */
static inline void foveal_forward_args_init(foveal_forward_args* args) {
    foveal_forward_args_init_sized(args, sizeof *args);
}

/* out (and lse) from q, k, v. No byte of out or lse may belong to another tensor of the call, not even where out lies
 * exactly over q; views of one buffer that share no byte may interleave. `stream` is a cudaStream_t for sm90, NULL for
 * the CPU. The sm90 kernel may be set up while the one before it in the stream ends (programmatic dependent launch),
 * and touches memory only after that end. A row that sees no key gets out = 0 and lse = -inf (with a sink: lse = sink).
 *
 * k and v may hold anything, NaN too, at keys behind a used length and at those that window, alignment and chunks leave
 * to no row of their sequence. Elsewhere a NaN or an infinity in v makes rows NaN that see the key, by these alone,
 * whatever bias or mask say, and may make others of the same 128 rows so (docs/contract.md, 1.6).
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_forward(const foveal_forward_args* args, void* stream);

/* Would foveal_forward accept this problem? Looks at shapes, strides, dtypes and options, not at data pointers or
 * devices, so it answers on any machine. FOVEAL_BACKEND_AUTO asks: does any backend of this build accept it?
 *
 * FOVEAL_OK: yes. FOVEAL_INVALID_ARGUMENT: no backend ever would. Also returns FOVEAL_UNSUPPORTED. */
FOVEAL_API foveal_status foveal_supports(const foveal_forward_args* args);

/* A plan: which kernel, tile, grid and order of work a problem gets, of a forward or of a backward call. Immutable;
 * usable from several threads. */
typedef struct foveal_plan foveal_plan;

/* Plans for CUDA device `device`; -1: a generic H200, no GPU needed. Data pointers are not looked at.
 * args->backend must not be AUTO. *plan is written if the status is FOVEAL_OK.
 *
 * Also returns FOVEAL_UNSUPPORTED and, unless device is -1, FOVEAL_NO_DEVICE and FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_plan_create(const foveal_forward_args* args, int32_t device, foveal_plan** plan);
FOVEAL_API void foveal_plan_destroy(foveal_plan* plan); /* NULL is ignored */

/* Human-readable description, NUL-terminated, into text[0 .. size). *needed (may be NULL) receives the full size with
 * the NUL; a smaller buffer gets a truncated text. text may be NULL if size is 0. */
FOVEAL_API foveal_status foveal_plan_describe(const foveal_plan* plan, char* text, size_t size, size_t* needed);

/* Bytes of device workspace with which a launch of this plan is fast (foveal_forward_args.workspace). 0: it needs none,
 * as all plans but those for few queries on sm90. NULL: 0. */
FOVEAL_API size_t foveal_plan_workspace_bytes(const foveal_plan* plan);

/* foveal_forward with a kept plan. args must describe the problem that the plan was made for; pointers may differ.
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_plan_launch(const foveal_plan* plan, const foveal_forward_args* args, void* stream);

/* The gradient of one forward call. With x the score of query i and key j as above, after softcap, slopes and bias,
 *   p  = exp(x - lse[i])                                  D = sum(dout[i] * out[i]) - dlse[i]
 *   dx = p * (dout[i] . v_j - D)                          0 where query i does not see key j
 *   ds = scale * dx * (1 - (tanh of the softcap)^2)       that factor only where there is a softcap
 *   dq_i = sum over j of ds * k_j      dk_j = sum over i of ds * q_i      dv_j = sum over i of p * dout_i
 * (under dropout, dout[i] . v_j in dx and p in dv_j are m(i, j) / (1 - dropout_p) times that, m as in the forward call)
 *   dbias = dx      dalibi_slopes = -sum of dx * |i + off - j|      dsinks = -sum over i of exp(sink - lse[i]) * D
 * where dk and dv are sums over the query heads that share a K/V head too. Sums are in fp32 and in a fixed order: the
 * same inputs give the same bits. Call foveal_backward_args_init() first. */
typedef struct foveal_backward_args {
    uint32_t struct_size; /* sizeof(foveal_backward_args) as the caller knows it */
    int32_t reserved;     /* 0 */

    /* The call whose gradient is asked, as it was: backend, q, k, v and every option. Its out and lse, which is
     * required here, hold what that call wrote, and are read. Its workspace is not looked at. The caller keeps the
     * structure until the call returns. */
    const foveal_forward_args* forward;

    foveal_tensor dout; /* shape and dtype of out: the gradient of what follows with respect to out; read */
    foveal_tensor dlse; /* optional: f32, shape of lse: the same with respect to lse, where that is used. Of a row whose
                         * lse is -inf it counts nothing; read */

    /* What is asked, at least one of these; absent: not computed. Written, not added to. Rows of dq, and of dk and dv,
     * outside every used length are not written; rows and keys inside that have no partner get exact zeros. The other
     * three are written whole. */
    foveal_tensor dq;            /* shape of q; its dtype, or f32 (cpu): unrounded, for summing */
    foveal_tensor dk;            /* likewise of k */
    foveal_tensor dv;            /* likewise of v */
    foveal_tensor dsinks;        /* f32 [h_q]; needs sinks */
    foveal_tensor dbias;         /* shape of bias, each dimension of size 1 (and each that bias lacks) summed over; f32
                                  * or bias's dtype; needs bias */
    foveal_tensor dalibi_slopes; /* f32, shape of alibi_slopes, which it needs: [h_q], summed over the batch, or
                                  * [b, h_q] */

    /* Memory for intermediate results, at least foveal_plan_workspace_bytes() of foveal_backward_plan_create()'s plan,
     * or the call is refused. Filled with zeros once, by who allocates it; calls that may run at the same time have one
     * each. On the device for sm90. */
    void* workspace;          /* aligned to 16 bytes; NULL: none */
    uint64_t workspace_bytes; /* 0 if and only if workspace is NULL */
} foveal_backward_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_backward_args_init_sized(foveal_backward_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_backward_args_init(foveal_backward_args* args) {
    foveal_backward_args_init_sized(args, sizeof *args);
}

/* The gradients. No byte of what is written, workspace included, may belong to another tensor of the call; views of one
 * buffer that share no byte may interleave (dq, dk and dv of a packed projection). Where in the forward call k and v
 * may hold anything, they may here, and q and dout at rows behind a used length too. `stream` is as for
 * foveal_forward().
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_backward(const foveal_backward_args* args, void* stream);

/* Would foveal_backward accept this problem? As foveal_supports(). */
FOVEAL_API foveal_status foveal_backward_supports(const foveal_backward_args* args);

/* As foveal_plan_create(), foveal_plan_workspace_bytes() included: how much a call needs, from shapes and options
 * alone. args->forward->backend must not be AUTO. */
FOVEAL_API foveal_status foveal_backward_plan_create(const foveal_backward_args* args, int32_t device,
                                                     foveal_plan** plan);

/* foveal_backward with a kept plan, one of foveal_backward_plan_create(). As foveal_plan_launch(). */
FOVEAL_API foveal_status foveal_backward_plan_launch(const foveal_plan* plan, const foveal_backward_args* args,
                                                     void* stream);

#define FOVEAL_MAX_MERGE_PARTS 32 /* partial results of one foveal_merge() */

/* Merging of partial results: attention over disjoint sets of keys, from each set's out and lse.
 *   lse = log(sum_n exp(lses[n]))    out = sum_n exp(lses[n] - lse) * outs[n]
 * A part whose lse is -inf counts nothing, whatever its out holds; if all are, out = 0 and lse = -inf.
 * Call foveal_merge_args_init() first. */
typedef struct foveal_merge_args {
    uint32_t struct_size;   /* sizeof(foveal_merge_args) as the caller knows it */
    foveal_backend backend; /* AUTO: where outs[0]'s memory lies */
    int32_t parts;          /* 1 ... FOVEAL_MAX_MERGE_PARTS; more are merged in several calls */
    int32_t reserved;       /* 0 */
    const foveal_tensor*
        outs; /* [parts], each [b, s_q, h_q, d_v] or [total_q, h_q, d_v]: f32, bf16 or f16, one dtype */
    const foveal_tensor* lses; /* [parts], each f32 [b, h_q, s_q] or [h_q, total_q] */
    foveal_tensor out; /* shape of outs[n]; f32 or outs' dtype (f32: any); may be one of outs, not overlap in part */
    foveal_tensor lse; /* optional f32; may be one of lses */
} foveal_merge_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_merge_args_init_sized(foveal_merge_args* args, size_t size);
/* The same with the size that this header knows; see foveal_forward_args_init(). */
static inline void foveal_merge_args_init(foveal_merge_args* args) { foveal_merge_args_init_sized(args, sizeof *args); }

/* Arithmetic in fp32; asynchronous on `stream` for sm90, which needs no alignment beyond the elements' own.
 * out shares no byte with lse or lses, lse none with outs.
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_merge(const foveal_merge_args* args, void* stream);

/* Which elements of a row turn together. */
typedef int32_t foveal_rotary_layout;
enum {
    FOVEAL_ROTARY_HALF_SPLIT = 0, /* element i with element i + rot/2 */
    FOVEAL_ROTARY_INTERLEAVED = 1 /* element 2i with element 2i + 1 */
};

/* Append: new rows of k and v go into a cache of pages, turned by a rotary embedding on the way if cos and sin are
 * present, and rows of q are turned alike. A pair (x, y) of elements turned by angle i of a row's position becomes
 *   (x * cos[position, i] - y * sin[position, i],  y * cos[position, i] + x * sin[position, i])
 * in fp32, each operation rounded for itself; then, in the cache, divided by the scale; then rounded once to the type
 * that is written. v does not turn. Elements behind the first rot of a row are only converted. (The rotary embedding:
 * Su et al., RoFormer, 2021.)
 *
 * New rows are dense, [b, s_new, heads, d], or ragged, [total_new, heads, d]. Each of the pairs k and k_cache, v and
 * v_cache, q and q_out may be absent; at least one is there. Call foveal_append_args_init() first. */
typedef struct foveal_append_args {
    uint32_t struct_size;   /* sizeof(foveal_append_args) as the caller knows it */
    foveal_backend backend; /* AUTO: where the first of k, v and q that is present lies */

    foveal_tensor k; /* [b, s_new, h_k, d] or [total_new, h_k, d]: f32, bf16 or f16 */
    foveal_tensor v; /* [b, s_new, h_k, d_v] or [total_new, h_k, d_v], k's dtype */
    /* [pages, page_size, h_k, d]: f32, bf16, f16 or e4m3, of which the largest number is what larger ones and
     * infinities become, and NaN stays NaN. Only the new rows are written. */
    foveal_tensor k_cache;
    foveal_tensor v_cache; /* [pages, page_size, h_k, d_v], k_cache's dtype */

    /* Where the rows go: either to slots ... */
    foveal_tensor slot_mapping; /* i64 [b, s_new] or [total_new]: page * page_size + row of the page; negative: the row
                                 * is not written. No two rows have the same slot */
    /* ... or behind what the cache holds: row n of sequence i becomes its key number cache_lengths[i] + n. */
    foveal_tensor cache_lengths; /* i32 [b] */
    foveal_tensor cu_seqlens;    /* i32 [b + 1]: ragged rows' sequences, ascending from 0 to total_new */
    foveal_tensor
        block_table; /* i32 or u32 [b, max_pages]: the sequences' pages. Absent: page i is all of sequence i */

    /* Rotary embedding of k and q; cos and sin both or neither. */
    foveal_tensor cos;       /* [positions, rot/2], f32 or k's dtype; rot is even and at most d */
    foveal_tensor sin;       /* as cos */
    foveal_tensor positions; /* i32 or i64 [b, s_new] or [total_new]. Absent: the number that a row gets as a key */
    foveal_rotary_layout rotary_layout; /* default FOVEAL_ROTARY_HALF_SPLIT */
    int32_t reserved;                   /* 0 */
    foveal_tensor q;                    /* [b, s_new, h_q, d] or [total_new, h_q, d], k's dtype */
    foveal_tensor q_out;                /* shape and dtype of q; may be q */

    /* f32 [1] or [h_k]: k_cache holds x / scale. Absent: 1. Beside e4m3 a scale is positive and finite. */
    foveal_tensor k_scale;
    foveal_tensor v_scale; /* the same of v_cache */

    /* Optional, of e4m3 caches and in place of k_scale: f32, written. The scale is worked out: the largest finite
     * magnitude, turned, over 448; 1 where that is 0. [h_k]: of all rows of the call that are written, head by head (1
     * where there are none), which is meant for a cache that holds no others; [pages, page_size, h_k]: of each row, at
     * its place in the cache. */
    foveal_tensor k_scale_out;
    foveal_tensor v_scale_out; /* the same of v_cache */
} foveal_append_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_append_args_init_sized(foveal_append_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_append_args_init(foveal_append_args* args) {
    foveal_append_args_init_sized(args, sizeof *args);
}

/* Asynchronous on `stream` for sm90, which needs no alignment beyond the elements' own. No byte of the caches or of
 * q_out belongs to another tensor of the call, but that q_out may lie exactly over q, and that the caches may
 * interleave. The CPU backend refuses slots, lengths, pages and positions that are out of range, naming the entry,
 * before it writes anything; on sm90 they are device memory, which the host does not read and the kernel trusts.
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR. */
FOVEAL_API foveal_status foveal_append(const foveal_append_args* args, void* stream);

/* Copy pages: for each pair all of page src of k_cache goes to page dst, bit for bit, and of v_cache likewise. One of
 * the caches may be absent. Call foveal_copy_pages_args_init() first. */
typedef struct foveal_copy_pages_args {
    uint32_t struct_size;   /* sizeof(foveal_copy_pages_args) as the caller knows it */
    foveal_backend backend; /* AUTO: where the first of k_cache and v_cache that is present lies */
    foveal_tensor k_cache;  /* [pages, page_size, h_k, d]: f32, bf16, f16 or e4m3 */
    foveal_tensor v_cache;  /* [pages, page_size, h_k, d_v], k_cache's dtype */
    foveal_tensor pairs; /* i32 or i64 [n, 2]: src, dst. Nothing is copied where one of them is negative. No page is the
                          * dst of two pairs, nor the dst of one and the src of another */
} foveal_copy_pages_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_copy_pages_args_init_sized(foveal_copy_pages_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_copy_pages_args_init(foveal_copy_pages_args* args) {
    foveal_copy_pages_args_init_sized(args, sizeof *args);
}

/* Streams, alignment, errors: as foveal_append(). The caches may interleave, but share no byte with each other nor with
 * pairs. The CPU backend refuses pages that are out of range, written twice, or written and read, naming the entry. */
FOVEAL_API foveal_status foveal_copy_pages(const foveal_copy_pages_args* args, void* stream);

/* Gather: the keys and values of sequences in pages, one sequence behind the other without gaps, bit for bit: the form
 * in which foveal_forward() takes them as varlen k and v. Row cu_seqlens_k[i] + j is key j of sequence i. Each of the
 * pairs k_cache and k, v_cache and v may be absent; one is there. Call foveal_gather_args_init() first. */
typedef struct foveal_gather_args {
    uint32_t struct_size;       /* sizeof(foveal_gather_args) as the caller knows it */
    foveal_backend backend;     /* AUTO: where the first of k_cache and v_cache that is present lies */
    foveal_tensor k_cache;      /* [pages, page_size, h_k, d]: f32, bf16, f16 or e4m3 */
    foveal_tensor v_cache;      /* [pages, page_size, h_k, d_v], k_cache's dtype */
    foveal_tensor k;            /* [total_k, h_k, d], k_cache's dtype; written */
    foveal_tensor v;            /* [total_k, h_k, d_v], likewise */
    foveal_tensor cu_seqlens_k; /* i32 [b + 1], ascending from 0 to total_k */
    foveal_tensor seqused_k;    /* optional i32 [b]: only the first seqused_k[i] rows of sequence i are written */
    foveal_tensor block_table;  /* i32 or u32 [b, max_pages], as that of foveal_forward_args; or both of these: */
    foveal_tensor page_indptr;  /* i32 [b + 1] */
    foveal_tensor page_indices; /* i32 or u32 [n] */
} foveal_gather_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_gather_args_init_sized(foveal_gather_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_gather_args_init(foveal_gather_args* args) {
    foveal_gather_args_init_sized(args, sizeof *args);
}

/* Streams, alignment, errors: as foveal_append(). k and v share no byte with each other nor with what is read. Entries
 * of a table behind a sequence's last row are not read. */
FOVEAL_API foveal_status foveal_gather(const foveal_gather_args* args, void* stream);

/* Which weights dropout keeps: mask[((i * h_q + h) * s_q + r) * s_k + j] becomes 1 if a call with this dropout_p and
 * dropout_state keeps that of sequence i, query head h, query r of its sequence and key j of its sequence, else 0.
 * Computed on the host, whatever the backend of the call. mask [b, h_q, s_q, s_k] and dropout_state [2] are host
 * memory; mask may be NULL where it has no elements. Sizes are not negative, s_q and s_k below 2^29, and b * h_q at
 * most 2^32; dropout_p as in foveal_forward_args (of 0, all are kept, and dropout_state may be NULL). */
FOVEAL_API foveal_status foveal_dropout_mask(int64_t b, int64_t h_q, int64_t s_q, int64_t s_k, float dropout_p,
                                             const uint64_t* dropout_state, uint8_t* mask);

/* The message of the last call of this thread that failed; "" if none has. Valid until this thread's next call. */
FOVEAL_API const char* foveal_last_error(void);
FOVEAL_API const char* foveal_status_name(foveal_status status); /* "FOVEAL_OK", ... */
FOVEAL_API const char* foveal_version(void);                     /* "0.1.0" */

/* Is the backend part of this build? (FOVEAL_BACKEND_CPU always is.) 1 or 0. */
FOVEAL_API int32_t foveal_backend_built(foveal_backend backend);

/* Threads that a call on the CPU may use at most, the caller's included; too small a problem uses fewer. Results do not
 * depend on it. In this order: what foveal_set_num_threads() said; the environment's FOVEAL_NUM_THREADS, an integer in
 * [1, 4096]; else the CPUs that the calling thread may run on, but no more than its cgroups' quota allows nor than
 * OMP_NUM_THREADS. The library's threads sleep between calls.
 *
 * Set: for all threads of the process, from their next call on. threads: in [1, 4096]; 0 (the default) takes it back;
 * else FOVEAL_INVALID_ARGUMENT. */
FOVEAL_API foveal_status foveal_set_num_threads(int32_t threads);
/* Get: what this thread's next call may use; -1, with a message, if FOVEAL_NUM_THREADS is asked and malformed. */
FOVEAL_API int32_t foveal_get_num_threads(void);

/* Another pool's threads in place of the library's own: those of OpenMP, say, which look for work for milliseconds
 * after each region and would share the CPUs with the library's. A runner calls work(job) on the calling thread and on
 * up to threads - 1 others, and returns when all of its calls have. Each call of work does what the others have left,
 * so fewer calls are slower, not wrong. work throws nothing; a runner must not throw either. OpenMP's is
 * GOMP_parallel(work, job, threads, 0), of GNU's runtime and of LLVM's. */
typedef void (*foveal_thread_runner)(void (*work)(void* job), void* job, int32_t threads, void* context);
/* For all threads of the process, from their next call on the CPU on; runner null (the default): the library's own
 * threads. context is handed to the runner, and outlives the calls that begin before another runner is set. A child of
 * fork() has the library's own until it sets a runner itself. */
FOVEAL_API void foveal_set_thread_runner(foveal_thread_runner runner, void* context);

#ifdef __cplusplus
}
#endif
#endif
