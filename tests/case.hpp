// A case: one attention problem together with its input data, as one line of text. Tests, benchmarks and the command
// line tool all speak of problems in this form, e.g. "b2 sq113 sk203 hq32 hk8 d128 bf16 causal".
//
//   token                        meaning                                                             default
//   b2                           sequences                                                           b1
//   sq113 sk203 | s1024          query and key length of every sequence | both
//   hq32 hk8 | h16               query and key/value heads | both                                    hk = hq
//   d128 dv64                    channels of q and k; of v and out                                   d128, dv = d
//   bf16 | f16 | f32             type of q, k, v, out                                                bf16
//   full | causal | left4 right2 window: unlimited, right = 0, or explicit widths                    full
//   topleft                      window aligned to the first query and key                           bottom right
//   lse                          the log-sum-exp is asked for
//   scale0.1                     factor on q.k                                                       1/sqrt(d)
//   varlen qlens=3,0 klens=5,2   packed sequences of these lengths (b, sq, sk follow)                dense
//   used_q=2,0 used_k=4,1        shortened sequences (seqused)
//   seed7                        of the random inputs                                                seed1
//   sd10                         standard deviation of the logits: q is scaled to give it            that of normal q,
//   k sink60@0                     key 0 (@mid, @last) of every sequence 60 nats above the mean logit; may be repeated
//   grow2                        the mean logit rises by 2 nats per 128 keys
//   flat                         all keys of a head equal
//   vmax                         v near the end of its type's range
//   pad                          tensors are views into larger buffers whose padding holds NaN
//   bhsd                         memory order [b, h, s, d] in place of [b, s, h, d]
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_testing {

// A text that is no case; the message names the token.
class CaseError : public std::invalid_argument {
   public:
    using std::invalid_argument::invalid_argument;
};

struct Sink {
    enum class Position { kFirst, kMiddle, kLast };
    double nats = 0;
    Position position = Position::kFirst;

    bool operator==(const Sink&) const = default;
};

struct Case {
    int64_t batch = 1;
    int64_t rows_q = 0;  // dense: length of every sequence; varlen: total_q
    int64_t rows_k = 0;
    int64_t heads_q = 1;
    int64_t heads_k = 1;
    int64_t head_dim = 128;
    int64_t head_dim_v = 128;
    foveal_dtype dtype = FOVEAL_BF16;

    int64_t window_left = FOVEAL_UNLIMITED;
    int64_t window_right = FOVEAL_UNLIMITED;
    bool top_left = false;
    bool lse = false;
    std::optional<float> scale;

    bool varlen = false;
    std::vector<int64_t> lengths_q, lengths_k;                 // varlen only, [batch]
    std::optional<std::vector<int64_t>> seqused_q, seqused_k;  // [batch]

    uint64_t seed = 1;
    std::optional<double> logit_sd;
    std::vector<Sink> sinks;
    double grow_nats = 0;
    bool flat = false;
    bool vmax = false;
    bool padded = false;
    bool bhsd = false;

    bool operator==(const Case&) const = default;

    // Each sequence's own lengths. "used" is what takes part in the computation (contract 1.1).
    int64_t length_q(int64_t sequence) const;
    int64_t length_k(int64_t sequence) const;
    int64_t used_q(int64_t sequence) const;
    int64_t used_k(int64_t sequence) const;
    int64_t first_row_q(int64_t sequence) const;  // varlen: its first token; dense: 0
    int64_t first_row_k(int64_t sequence) const;

    int64_t group() const { return heads_q / heads_k; }
    double effective_scale() const;
    int64_t element_bytes() const { return dtype == FOVEAL_F32 ? 4 : 2; }

    // Visible (query, key) pairs of one head, over all sequences.
    double visible_pairs() const;
    // Useful work: a multiply and an add for each channel of each visible pair, in both products.
    double flops() const;
    // What must cross the memory bus at least: every used input row read once, every output row written once.
    double min_bytes() const;
};

// Throws CaseError.
Case parse_case(std::string_view text);
// Canonical text; parse_case(to_text(c)) == c.
std::string to_text(const Case& c);

const char* dtype_name(foveal_dtype dtype);

}  // namespace foveal_testing
