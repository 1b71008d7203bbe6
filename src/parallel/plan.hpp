// A plan of one rank: the problem, the method, what it sends, receives and computes, and where its workspace's parts
// lie.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "parallel/schedule.hpp"
#include "problem/backward.hpp"
#include "problem/forward.hpp"

namespace foveal::parallel {

// The same on all ranks, but for `rank` and `local`.
struct Problem {
    int32_t rank = 0;
    int32_t ranks = 1;
    ForwardProblem local;                      // this rank's q, k and v, as [b, rows, heads, channels]
    std::optional<BackwardProblem> gradients;  // of `local`, if the plan is of a backward call
    Layout q, k;
    Visibility visibility;
    double link_bytes_per_second = 0;
};

// head_ranks neighbouring ranks are a crew: each has all the crew's rows of its part of the heads. 1: no ulysses.
// Crews meet as single ranks would.
struct Method {
    bool gathers = false;  // all_gather among the crews; else ring
    int32_t head_ranks = 1;
};

// The part of the heads that a rank of a crew has.
struct HeadPart {
    int64_t first_q = 0, heads_q = 0;
    int64_t first_k = 0, heads_k = 0;
};
HeadPart head_part(const Problem& problem, const Method& method, int32_t member);

// Schedules of all crews.
struct CrewSchedules {
    Layout q, k;
    std::vector<Schedule> of_crew;
};
CrewSchedules schedule_crews(const Problem& problem, const Method& method);

// What the model says of the slowest rank.
struct Estimate {
    Method method;
    double seconds = 0;        // of the whole
    double compute = 0;        // thereof kernels
    double communication = 0;  // the rest
    double bytes = 0;          // received by the rank that receives most
};
Estimate estimate(const Problem& problem, const Method& method);

// Part of the workspace, in bytes from its beginning.
struct Region {
    uint64_t offset = 0;
    uint64_t bytes = 0;
};

// Parts of the workspace, one behind the other.
class Allocation {
   public:
    Region take(int64_t elements, int64_t element_bytes) {
        constexpr uint64_t kAlignment = 256;
        const Region region{end_, static_cast<uint64_t>(elements) * static_cast<uint64_t>(element_bytes)};
        end_ += (region.bytes + kAlignment - 1) / kAlignment * kAlignment;
        return region;
    }
    uint64_t end() const { return end_; }

   private:
    uint64_t end_ = 0;
};

inline constexpr int32_t kParts = 4;  // partial results that are merged at once

// Of a backward call; all f32 [b, rows, heads, channels] but for dout's.
struct GradientRegions {
    Region dq, dk, dv;                 // sums of the crew's rows
    Region cell_dq, cell_dk, cell_dv;  // what one cell adds to them
    Region hop_dk, hop_dv;             // sums of a hop's foreign rows
    Region home_dk, home_dv;           // what other crews have summed of this one's rows in a hop
    Region crew_dout, crew_dlse, packed_dout, packed_dq, packed_dk, packed_dv;  // as those of the forward call
};

// Every workspace, of calls of all kinds and shapes, begins with as many zeros (i32), which none overwrites: so one
// that was filled with zeros once serves them all, one after the other.
inline constexpr int64_t kMostSequences = 65536;

struct Regions {
    Region zeros;                                       // i32 [kMostSequences]
    Region keys, values;                                // of other ranks, one hop's
    Region parts, part_lses;                            // [kParts] of out and lse
    Region sums, sum_lses;                              // f32 [2] of out and lse, where there are more parts
    Region crew_q, crew_k, crew_v, crew_out, crew_lse;  // all rows of the crew, this rank's heads
    Region packed_q, packed_k, packed_v, packed_out;    // this rank's rows, a block for each of the crew's heads
    GradientRegions gradients;
    uint64_t total_bytes = 0;
};

struct Send {
    int32_t crew = 0;
    int64_t row = 0;
    int64_t rows = 0;
};

struct Plan {
    Problem problem;
    Method method;
    std::vector<Estimate> considered;    // the one taken first
    Layout q, k;                         // of crews
    std::vector<Move> moves_q, moves_k;  // of this rank's crew
    Schedule schedule;
    DType part_dtype = DType::f32;         // of partial results: f32 where the backend writes that, else q's
    std::vector<std::vector<Send>> sends;  // [hops]
    Regions regions;
    std::vector<int32_t> offsets;  // of each cell, in order, if there are slopes

    int32_t crew() const { return problem.rank / method.head_ranks; }
    int32_t member() const { return problem.rank % method.head_ranks; }
    HeadPart heads() const { return head_part(problem, method, member()); }
    int64_t crew_rows_q() const { return q.rows_of_rank[static_cast<size_t>(crew())]; }
    int64_t crew_rows_k() const { return k.rows_of_rank[static_cast<size_t>(crew())]; }
};

// The caller's tensors as [b, rows, heads, channels] (lse: [b, heads, rows]), with what belongs to the whole problem
// (alignment, window, chunk, bias, mask) as given. Throws Error, naming what has no place beside spans.
foveal_forward_args local_args(const foveal_forward_args& given);
// [total, heads, d] as [1, total, heads, d], where packed_rank is 3; [heads, total] as [1, heads, total], where it
// is 2.
void add_batch(foveal_tensor& t, int32_t packed_rank);
// local_args() without window, chunk, bias and mask, and with slopes of one document: what any backend's checks take.
foveal_forward_args plain_args(const foveal_forward_args& local);
// The problem of local_args(), whose window, chunk, bias and mask do not count.
ForwardProblem local_problem(const foveal_forward_args& local);

// Of partial results: f32 where the backend writes that, else q's. Rounded twice, out would be less exact than one
// device's (contract 1.10).
DType part_dtype_of(const foveal_forward_args& local);

// The call of one cell, without q, k, v, out and lse: windows, alignment and the parts of bias, mask, slopes and sinks.
// first: the one of a stretch's cells that counts the sinks. offset: where a device finds cell.offset.
foveal_forward_args cell_args(const Plan& plan, const foveal_forward_args& local, const Stretch& stretch,
                              const Cell& cell, bool first, const int32_t* offset);

// Rows [row, row + rows) and keys [first, first + keys) of a bias, a mask or a bias's gradient; of a dimension that is
// shared, what there is.
foveal_tensor part_of_matrix(foveal_tensor t, int64_t row, int64_t rows, int64_t first, int64_t keys);

// The same of gradients, whose forward arguments `local` are; their `forward` points to it. Throws Error likewise.
foveal_backward_args local_gradients(const foveal_backward_args& given, const foveal_forward_args& local);
BackwardProblem gradient_problem(const foveal_backward_args& gradients);
void take_gradient_regions(const Plan& plan, Allocation& from, GradientRegions& regions);

// gradients: NULL of a forward call. Throws Error(INVALID_ARGUMENT or UNSUPPORTED).
Plan make_plan(const foveal_parallel_args& args, const foveal_backward_args* gradients = nullptr);
std::string describe(const Plan& plan);

}  // namespace foveal::parallel
