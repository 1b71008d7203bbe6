#include "parallel/decode.hpp"

#include <string>
#include <vector>

#include "backend/backends.hpp"
#include "foveal/types.hpp"
#include "parallel/exchange.hpp"
#include "parallel/plan.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

[[noreturn]] void refuse_unsupported(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

constexpr char kSeesAll[] = "; of keys that lie in turn on several ranks a query sees all, wherever they stand";

// Which keys a query sees, and what a score is, may not depend on where in the sequence a key stands.
void check_options(const foveal_forward_args& forward) {
    const struct {
        const char* name;
        const foveal_tensor& tensor;
    } places[] = {{"cu_seqlens_q", forward.cu_seqlens_q},
                  {"cu_seqlens_k", forward.cu_seqlens_k},
                  {"seqused_q", forward.seqused_q},
                  {"alibi_slopes", forward.alibi_slopes},
                  {"bias", forward.bias},
                  {"mask", forward.mask},
                  {"query_offset", forward.query_offset},
                  {"tree_mask", forward.tree_mask}};
    for (const auto& [name, tensor] : places)
        if (tensor.rank != 0) refuse_unsupported(std::string("forward.") + name + " is present" + kSeesAll);
    if (forward.window_left != FOVEAL_UNLIMITED)
        refuse_unsupported("forward.window_left is " + std::to_string(forward.window_left) + kSeesAll);
    if (forward.dropout_p != 0)
        refuse_unsupported("forward.dropout_p is " + std::to_string(forward.dropout_p) +
                           "; over several ranks it must be 0");
    if (forward.chunk != 0) refuse_unsupported("forward.chunk is " + std::to_string(forward.chunk) + kSeesAll);
    if (forward.alignment == FOVEAL_TOP_LEFT && forward.window_right != FOVEAL_UNLIMITED)
        refuse_unsupported("forward.alignment is top-left and window_right is " + std::to_string(forward.window_right) +
                           kSeesAll);
}

ForwardProblem problem_of(const foveal_forward_args& forward, int32_t ranks) {
    if (ranks < 1 || ranks > FOVEAL_MAX_MERGE_PARTS)
        refuse("ranks is " + std::to_string(ranks) + "; decoding is over 1 to " +
               std::to_string(FOVEAL_MAX_MERGE_PARTS));
    if (forward.backend != FOVEAL_BACKEND_CPU && forward.backend != FOVEAL_BACKEND_SM90)
        refuse("forward.backend is " + std::to_string(forward.backend) + "; decoding over ranks is for cpu or sm90");
    check_options(forward);
    const ForwardProblem problem = validate(forward);
    if (problem.rows_q != 1)
        refuse_unsupported("forward.q has " + std::to_string(problem.rows_q) +
                           " rows a sequence; decoding over ranks takes one (more are sequences of their own, with the "
                           "same pages)");
    backend_of(forward.backend).check_supported(problem);
    return problem;
}

// sm90's kernels for few queries write q's type; those that write f32 read a cache too slowly.
DType decode_part_dtype_of(const foveal_forward_args& forward) {
    return forward.backend == FOVEAL_BACKEND_SM90 ? dtype_of(forward.q) : part_dtype_of(forward);
}

struct DecodeRegions {
    Region zeros;        // plan.hpp; nothing here reads them
    Region parts, lses;  // [ranks] of out and lse
    uint64_t total_bytes = 0;
};

DecodeRegions regions_of(const ForwardProblem& p, DType part_dtype, int32_t ranks) {
    DecodeRegions regions;
    Allocation from;
    const int64_t rows = p.batch * p.heads_q;
    regions.zeros = from.take(kMostSequences, sizeof(int32_t));
    regions.parts = from.take(ranks * rows * p.head_dim_v, bytes_of(part_dtype));
    regions.lses = from.take(ranks * rows, sizeof(float));
    regions.total_bytes = from.end();
    return regions;
}

class Decode {
   public:
    Decode(Communicator& communicator, const foveal_parallel_decode_args& args, const foveal_forward_args& forward,
           const ForwardProblem& problem, void* stream)
        : communicator_(communicator),
          forward_(forward),
          problem_(problem),
          part_dtype_(decode_part_dtype_of(forward)),
          regions_(regions_of(problem, part_dtype_, communicator.ranks())),
          base_(static_cast<std::byte*>(args.workspace)),
          stream_(stream) {}

    void run() {
        answer();
        exchange();
        merge();
    }

   private:
    foveal_tensor out_of(int32_t rank) const {
        return packed_tensor(base_ + regions_.parts.offset, static_cast<foveal_dtype>(part_dtype_),
                             rank * problem_.batch * problem_.heads_q * problem_.head_dim_v,
                             {problem_.batch, 1, problem_.heads_q, problem_.head_dim_v});
    }
    foveal_tensor lse_of(int32_t rank) const {
        return packed_tensor(base_ + regions_.lses.offset, FOVEAL_F32, rank * problem_.batch * problem_.heads_q,
                             {problem_.batch, problem_.heads_q, 1});
    }

    // With this rank's keys. The sink counts once.
    void answer() {
        foveal_forward_args args = forward_;
        args.out = out_of(communicator_.rank());
        args.lse = lse_of(communicator_.rank());
        if (communicator_.rank() != 0) args.sinks = {};
        check(foveal_forward(&args, stream_));
    }

    void exchange() {
        const auto out_bytes =
            static_cast<uint64_t>(problem_.batch * problem_.heads_q * problem_.head_dim_v * bytes_of(part_dtype_));
        const uint64_t lse_bytes = bytes_of_lses(problem_.batch * problem_.heads_q);
        const int32_t rank = communicator_.rank();
        communicator_.begin();
        for (int32_t peer = 0; peer < communicator_.ranks(); ++peer) {
            if (peer == rank) continue;
            communicator_.send(out_of(rank).data, out_bytes, peer, stream_);
            communicator_.send(lse_of(rank).data, lse_bytes, peer, stream_);
            communicator_.recv(out_of(peer).data, out_bytes, peer, stream_);
            communicator_.recv(lse_of(peer).data, lse_bytes, peer, stream_);
        }
        communicator_.end(stream_);
    }

    void merge() {
        std::vector<foveal_tensor> outs, lses;
        for (int32_t rank = 0; rank < communicator_.ranks(); ++rank) {
            outs.push_back(out_of(rank));
            lses.push_back(lse_of(rank));
        }
        foveal_merge_args args;
        foveal_merge_args_init(&args);
        args.backend = forward_.backend;
        args.parts = communicator_.ranks();
        args.outs = outs.data();
        args.lses = lses.data();
        args.out = forward_.out;
        args.lse = forward_.lse;
        check(foveal_merge(&args, stream_));
    }

    Communicator& communicator_;
    const foveal_forward_args& forward_;
    const ForwardProblem& problem_;
    const DType part_dtype_;
    const DecodeRegions regions_;
    std::byte* const base_;
    void* const stream_;
};

}  // namespace

uint64_t decode_workspace_bytes(const foveal_forward_args& forward, int32_t ranks) {
    const ForwardProblem problem = problem_of(forward, ranks);
    return regions_of(problem, decode_part_dtype_of(forward), ranks).total_bytes;
}

void decode(Communicator& communicator, const foveal_parallel_decode_args& args, const foveal_forward_args& forward,
            void* stream) {
    if (args.reserved != 0) refuse("reserved is " + std::to_string(args.reserved) + "; it must be 0");
    const ForwardProblem problem = problem_of(forward, communicator.ranks());
    pointers_of(forward);
    require_workspace(args.workspace, args.workspace_bytes, decode_workspace_bytes(forward, communicator.ranks()));
    Decode(communicator, args, forward, problem, stream).run();
}

}  // namespace foveal::parallel
