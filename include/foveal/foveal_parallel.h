/* foveal over several devices: one attention problem whose rows lie on several ranks (context parallel).
 *
 * Every rank calls with its own rows of q, k and v, and gets its own rows of out and lse, or of their gradients: what
 * one device that held everything would have computed, within docs/contract.md, 1.10. Spans say which rows those are.
 * How it works, what it costs and where each method wins: docs/parallel.md.
 *
 * foveal_parallel_plan_create() refuses what is wrong or not supported, on every rank alike and before anything is
 * sent. Once foveal_parallel_forward() or foveal_parallel_backward() has begun, whatever fails on one rank aborts its
 * communicator, so that the others return an error too, and do not wait for ever.
 *
 * As in foveal.h: the library allocates no device memory, never synchronises and uses the caller's streams alone; the
 * structures grow by the same rule; any functions may run at the same time in any threads, but a communicator serves
 * one call at a time.
 *
 * This header is C99.
 */
#ifndef FOVEAL_FOVEAL_PARALLEL_H
#define FOVEAL_FOVEAL_PARALLEL_H

#include "foveal/foveal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Which rank has which rows. */

/* Neighbouring rows of one sequence that lie together on one rank. All ranks pass the same list; a rank's spans lie in
 * its tensors one after the other, in the order of the list. The spans of a sequence hold each of its rows once. Dense
 * tensors have one sequence, number 0, that stands for each of the batch; in packed ones ([total, h, d]) sequences are
 * documents, which may cross ranks. */
typedef struct foveal_span {
    int64_t sequence; /* its number */
    int64_t position; /* in the sequence, of the first row */
    int64_t rows;     /* how many */
    int32_t rank;     /* that has them */
    int32_t reserved; /* 0 */
} foveal_span;

/* Usual ways to place rows. */
typedef int32_t foveal_placement;
enum {
    FOVEAL_CONTIGUOUS = 0, /* all rows of all sequences, one after the other, cut into as many parts as ranks */
    FOVEAL_ZIGZAG = 1 /* each sequence cut into 2 * ranks parts, of which rank r has number r and, counted from the end,
                       * number r again: under causal masks all ranks have as much to do */
};

/* The spans of `sequences` sequences of these lengths, ordered by rank. *needed receives their number; spans [capacity]
 * is written as far as it reaches, and may be NULL if capacity is 0. */
FOVEAL_API foveal_status foveal_place(foveal_placement placement, const int64_t* lengths, int64_t sequences,
                                      int32_t ranks, foveal_span* spans, int64_t capacity, int64_t* needed);

/* ---- How ranks reach each other. */

/* What carries bytes between ranks: functions that the caller brings. Between begin and end, messages of one rank to
 * another arrive in the order in which they were sent, and a rank may send to itself. `stream` is the caller's
 * communication stream, NULL on the CPU. Each returns FOVEAL_OK or any other status; message() then says why. */
typedef struct foveal_transport {
    uint32_t struct_size;                  /* sizeof(foveal_transport) as the caller knows it */
    int32_t rank;                          /* of this process or thread, in [0, ranks) */
    int32_t ranks;                         /* how many there are */
    int32_t reserved;                      /* 0 */
    void* context;                         /* the first argument of each function */
    foveal_status (*begin)(void* context); /* messages follow */
    /* These bytes go to rank `peer`. */
    foveal_status (*send)(void* context, const void* data, uint64_t bytes, int32_t peer, void* stream);
    /* So many bytes come from rank `peer`. */
    foveal_status (*recv)(void* context, void* data, uint64_t bytes, int32_t peer, void* stream);
    /* All of it is under way on `stream`, or, where stream is NULL, done. It may be called in place of send and recv's
     * work. A peer that does not come within timeout_seconds is an error. */
    foveal_status (*end)(void* context, void* stream, double timeout_seconds);
    /* Optional, NULL where stream is always NULL: returns when the work on `stream` is done or has failed. */
    foveal_status (*wait)(void* context, void* stream, double timeout_seconds);
    void (*abort_all)(void* context);      /* this rank fails: let the others fail too, as soon as may be */
    const char* (*message)(void* context); /* why the last function failed; valid until the next */
    void (*destroy)(void* context);        /* optional: the communicator goes */
} foveal_transport;

/* A transport with a timeout. One call at a time; after a failure or an abort every call fails. */
typedef struct foveal_communicator foveal_communicator;

/* Over the caller's own transport, which is copied. timeout_seconds > 0: how long a rank waits for another. */
FOVEAL_API foveal_status foveal_communicator_create(const foveal_transport* transport, double timeout_seconds,
                                                    foveal_communicator** communicator);

/* Over NCCL: nccl_comm is the caller's ncclComm_t, which stays the caller's and outlives the communicator, unless that
 * is aborted: then ncclCommAbort() has freed it. NCCL is loaded here, at its first use: `library`, or libnccl.so.2
 * where that is NULL; 2.14 or newer. The timeout reaches what NCCL does in the background (a communicator made with
 * config.blocking = 0, and work on streams, see foveal_communicator_wait()); a blocking ncclGroupEnd() cannot be timed.
 *
 * Also returns FOVEAL_UNSUPPORTED (there is no such library, or it lacks a function), FOVEAL_CUDA_ERROR (from NCCL). */
FOVEAL_API foveal_status foveal_communicator_create_nccl(void* nccl_comm, const char* library, double timeout_seconds,
                                                         foveal_communicator** communicator);

/* Over the memory of this process: as many communicators as ranks, each for a thread of its own. For host memory. */
FOVEAL_API foveal_status foveal_communicator_create_in_process(int32_t ranks, double timeout_seconds,
                                                               foveal_communicator** communicators);

/* Returns when the work on `stream` is done, or fails: with NCCL's error, or after the timeout, in which case the
 * communicator is aborted and so is what hangs on the device. In place of the stream's synchronisation, which would
 * hang with it. The one function of this header that waits for a device. On the CPU there is nothing to wait for.
 *
 * Also returns FOVEAL_CUDA_ERROR, and what the transport says. */
FOVEAL_API foveal_status foveal_communicator_wait(foveal_communicator* communicator, void* stream);

/* This rank has failed elsewhere: the others are told. From any thread. */
FOVEAL_API foveal_status foveal_communicator_abort(foveal_communicator* communicator);
FOVEAL_API void foveal_communicator_destroy(foveal_communicator* communicator); /* NULL is ignored */

/* ---- The problem. */

/* How keys and queries meet. */
typedef int32_t foveal_parallel_method;
enum {
    FOVEAL_PARALLEL_AUTO = 0,       /* the fastest by the plan's model */
    FOVEAL_PARALLEL_RING = 1,       /* k and v of one other rank after the other, sent when the last ones are used */
    FOVEAL_PARALLEL_ALL_GATHER = 2, /* all that this rank's queries see, sent at once */
    FOVEAL_PARALLEL_ULYSSES = 3 /* ranks exchange rows for heads: head_ranks of them have all rows of h_q / head_ranks
                                 * heads; where that are not all ranks, the rest goes by ring */
};

/* One problem. Call foveal_parallel_args_init() first. */
typedef struct foveal_parallel_args {
    uint32_t struct_size;          /* sizeof(foveal_parallel_args) as the caller knows it */
    foveal_parallel_method method; /* default FOVEAL_PARALLEL_AUTO */
    int32_t rank;                  /* this one */
    int32_t ranks;                 /* how many there are */
    int32_t
        head_ranks; /* ulysses: divides ranks, h_q, and one of h_k and head_ranks the other; 0 (the default): chosen */
    int32_t reserved; /* 0 */

    /* This rank's tensors, and the options, which are the same on all ranks. q, out [b, s, h_q, d], k and v alike, or
     * packed [total, h, d], whose cu_seqlens are what the spans say, and absent. k and v have no gaps. Alignment,
     * windows and chunks are those of the whole sequences. bias and mask (beside one sequence) have this rank's
     * rows and every key. Lengths, pages, query_offset, tree_mask, dropout and its workspace are absent. The backend is
     * named. */
    const foveal_forward_args* forward;
    const foveal_span* spans_q; /* [spans_q_count] */
    int64_t spans_q_count;      /* how many */
    const foveal_span* spans_k; /* [spans_k_count]; NULL and 0: those of q */
    int64_t spans_k_count;      /* how many */

    double link_bytes_per_second; /* what a rank sends to the others, for the model; 0: NVLink's of an H200 */

    /* Of one call: */
    void* workspace;            /* foreign k and v, and partial results. Aligned to 256 bytes, filled with zeros once */
    uint64_t workspace_bytes;   /* at least foveal_parallel_plan_workspace_bytes() */
    const int32_t* offsets;     /* sm90 with alibi_slopes: foveal_parallel_plan_offsets(), copied to the device */
    void* communication_stream; /* sm90: a second stream, on which k and v travel. NULL: the first does it */
} foveal_parallel_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_parallel_args_init_sized(foveal_parallel_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_parallel_args_init(foveal_parallel_args* args) {
    foveal_parallel_args_init_sized(args, sizeof *args);
}

/* Who sends what to whom, and which problems this rank solves, of a forward or of a backward call. Immutable; usable
 * from several threads. */
typedef struct foveal_parallel_plan foveal_parallel_plan;

/* Looks at no data, needs no GPU, and talks to nobody. *plan is written if the status is FOVEAL_OK.
 *
 * Also returns FOVEAL_UNSUPPORTED. */
FOVEAL_API foveal_status foveal_parallel_plan_create(const foveal_parallel_args* args, foveal_parallel_plan** plan);
FOVEAL_API void foveal_parallel_plan_destroy(foveal_parallel_plan* plan); /* NULL is ignored */

/* The plan of the gradients of that call, which args->forward describes with its out and lse. gradients->forward is
 * args->forward; dout, dlse, dq, dk and dv have this rank's rows, and which gradients are asked is the same on all
 * ranks. dsinks and dalibi_slopes are those of the whole, on every rank. dbias has this rank's rows and every key, as
 * forward.bias has; where that has one row for all, the whole's is on every rank. Refused by name: dbias where a rank
 * of several has a single row (nobody could tell whether the others share its bias's), a workspace beside that of args,
 * and sm90 (sums over ranks are in f32, which it does not write yet). The method is chosen as for the forward call, and
 * need not be that call's.
 *
 * Also returns FOVEAL_UNSUPPORTED. */
FOVEAL_API foveal_status foveal_parallel_backward_plan_create(const foveal_parallel_args* args,
                                                              const foveal_backward_args* gradients,
                                                              foveal_parallel_plan** plan);

/* Which method and why, what is sent and computed, as foveal_plan_describe(). */
FOVEAL_API foveal_status foveal_parallel_plan_describe(const foveal_parallel_plan* plan, char* text, size_t size,
                                                       size_t* needed);
/* Bytes of workspace that a call needs. NULL: 0. */
FOVEAL_API size_t foveal_parallel_plan_workspace_bytes(const foveal_parallel_plan* plan);
/* What `offsets` of a call on sm90 holds, on the host: *count values, valid as long as the plan. *count is 0, and the
 * values NULL, unless alibi_slopes are present. */
FOVEAL_API const int32_t* foveal_parallel_plan_offsets(const foveal_parallel_plan* plan, int64_t* count);

/* out (and lse) of this rank. Every rank of the communicator calls, with plans of the same problem. args->forward
 * describes the problem that the plan was made for; pointers may differ. Asynchronous on sm90. The same bits in every
 * run. Whatever fails aborts the communicator.
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR, and what the transport says. */
FOVEAL_API foveal_status foveal_parallel_forward(const foveal_parallel_plan* plan, foveal_communicator* communicator,
                                                 const foveal_parallel_args* args, void* stream);

/* Those of dq, dk, dv, dsinks and dalibi_slopes that are asked, as foveal_backward() writes them: what one device that
 * held everything would compute from the same out and lse, within docs/contract.md, 1.10. plan: one of
 * foveal_parallel_backward_plan_create(). As foveal_parallel_forward().
 *
 * Also returns FOVEAL_UNSUPPORTED, and what the transport says. */
FOVEAL_API foveal_status foveal_parallel_backward(const foveal_parallel_plan* plan, foveal_communicator* communicator,
                                                  const foveal_parallel_args* args,
                                                  const foveal_backward_args* gradients, void* stream);

/* ---- Decoding: few queries over caches whose keys lie in turn on all ranks. */

/* The keys of each sequence are dealt out to the ranks in turn, `span` at a time: key j lies on rank
 * (j / span) % ranks, behind those that this rank already has. How many of the first `length` keys rank `rank` has; 0
 * if an argument makes no sense. */
FOVEAL_API int64_t foveal_dealt_keys(int64_t length, int64_t span, int32_t rank, int32_t ranks);

/* One rank's call. Call foveal_parallel_decode_args_init() first. */
typedef struct foveal_parallel_decode_args {
    uint32_t struct_size; /* sizeof(foveal_parallel_decode_args) as the caller knows it */
    int32_t reserved;     /* 0 */

    /* q [b, 1, h_q, d] is the same on all ranks, and so are out and lse (optional), whole: what one device that held
     * all keys would have computed, the same bits on every rank. k and v, in pages or dense, have this rank's keys, of
     * which each sequence uses seqused_k: foveal_dealt_keys() of its length. A query sees all of them: options that ask
     * where a key stands (a left window, chunks, alignment, slopes, bias, mask, offset, tree) are refused by name, and
     * so are several rows a sequence; those of a speculative step are sequences of their own, with the same pages and
     * lengths of their own. Scale, softcap and sinks are the same on all ranks; a sink counts once. The backend is
     * named. */
    const foveal_forward_args* forward;

    void* workspace;          /* partial results. Aligned to 256 bytes, filled with zeros once */
    uint64_t workspace_bytes; /* at least foveal_parallel_decode_workspace_bytes() */
} foveal_parallel_decode_args;

/* As foveal_forward_args_init_sized() and foveal_forward_args_init(). */
FOVEAL_API void foveal_parallel_decode_args_init_sized(foveal_parallel_decode_args* args, size_t size);
/* The same with the size that this header knows. */
static inline void foveal_parallel_decode_args_init(foveal_parallel_decode_args* args) {
    foveal_parallel_decode_args_init_sized(args, sizeof *args);
}

/* How much workspace a call over so many ranks needs. Looks at no data, needs no GPU, and talks to nobody.
 *
 * Also returns FOVEAL_UNSUPPORTED. */
FOVEAL_API foveal_status foveal_parallel_decode_workspace_bytes(const foveal_parallel_decode_args* args, int32_t ranks,
                                                                uint64_t* bytes);

/* out (and lse) of all keys: every rank of the communicator, at most 32, calls. Each computes with its own keys, sends
 * the result to all others, and merges all of them in the order of ranks. Asynchronous on sm90, where partial results
 * are rounded to q's type. Whatever fails aborts the communicator.
 *
 * Also returns FOVEAL_UNSUPPORTED, FOVEAL_NO_DEVICE, FOVEAL_CUDA_ERROR, and what the transport says. */
FOVEAL_API foveal_status foveal_parallel_decode(foveal_communicator* communicator,
                                                const foveal_parallel_decode_args* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif
