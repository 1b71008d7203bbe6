// A case: one attention problem together with its input data, as one line of text. Tests, benchmarks and the command
// line tool all speak of problems in this form, e.g. "b2 sq113 sk203 hq32 hk8 d128 bf16 causal".
//
//   token                        meaning                                                             default
//   b2                           sequences                                                           b1
//   sq113 sk203 | s1024          query and key length of every sequence | both
//   hq32 hk8 | h16               query and key/value heads | both                                    hk = hq
//   d128 dv64                    channels of q and k; of v and out                                   d128, dv = d
//   bf16 | f16 | f32             type of q, k, v, out                                                bf16
//   e4m3                         type of q, k, v; out is bf16 or, with out_f16, f16
//   bf16 kv_e4m3                 type of q and out, and e4m3 of k and v
//   descale | descale1           descales of each sequence and K/V head | one of each tensor in e4m3   none
//   descale_rows                 descales of each row of k and v and of each head; q's as descale      none
//   full | causal | left4 right2 window: unlimited, right = 0, or explicit widths                    full
//   topleft                      window aligned to the first query and key                           bottom right
//   chunk128                     attention chunks of so many positions                               none
//   softcap30                    x becomes 30 tanh(x / 30)                                           none
//   alibi | alibi_b              the paper's slopes, [h_q] | of its own for each sequence, [b, h_q]  none
//   sinks | sinks5               sink logits [h_q]: normal around 0 | around 5                       none
//   bias=bh | bias_f32=1h        additive bias [b or 1, h_q or 1, s_q, s_k], normal; in q's type or  none
//                                in f32; a 1 in place of b or h: shared by all sequences or heads
//   bias=bh1k | bias=11q1        the same, a 1 in place of q or k: shared by all queries or keys
//   bias_inf                     some keys, and all keys of some queries, have the bias -inf
//   mask=b1                      boolean mask, shaped likewise; some queries see nothing             none
//   dropout0.1                   weights are dropped with this probability                           none
//   dropstate=5,7                of dropout: seed and offset                                         from the inputs'
//   seed lse                          the log-sum-exp is asked for scale0.1                     factor on q.k 1/sqrt(d)
//   varlen qlens=3,0 klens=5,2   packed sequences of these lengths (b, sq, sk follow)                dense
//   varlen qlens=3,0 sk100       packed queries, keys [b, sk, ...]; without varlen, klens=5,2: packed keys alone
//   used_q=2,0 used_k=4,1        shortened sequences (seqused)
//   page16                       sk keys of each sequence lie in pages of 16, named by a block_table    no pages
//   csr                          by page_indptr and page_indices instead
//   pool                         k and v share the pages: [pages, 16, 2 h_k, d]
//   common64                     the first 64 keys of all sequences are the same pages               none
//   order7                       in which the sequences have the pages                               order0
//   qoff=5,-3                    query_offset: positions of the sequences' first queries             bottom right
//   tree                         tree_mask: a query sees its ancestors of the sequence's last keys   none
//   seed7                        of the random inputs                                                seed1
//   sd10                         standard deviation of the logits: q is scaled to give it            that of normal q,
//   k sink60@0                     key 0 (@mid, @last) of every sequence 60 nats above the mean logit; may be repeated
//   grow2                        the mean logit rises by 2 nats per 128 keys
//   flat                         all keys of a head equal
//   vmax                         v near the end of its type's range
//   vnan37                       v of key 37 of every sequence is NaN                                none
//   pad                          tensors are views into larger buffers whose padding holds NaN
//   bhsd                         memory order [b, h, s, d] in place of [b, s, h, d]
//   qkv                          q, k and v are views of one buffer [b, s, h_q + 2 h_k, d]
#pragma once

#include <array>
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

// A key that dominates; nothing to do with the sink logits.
struct SinkKey {
    enum class Position { kFirst, kMiddle, kLast };
    double nats = 0;
    Position position = Position::kFirst;

    bool operator==(const SinkKey&) const = default;
};

// Of a bias or a mask: which dimensions are its own, not shared.
struct ScoreMatrix {
    bool by_sequence = false;
    bool by_head = false;
    bool by_query = true;
    bool by_key = true;

    bool operator==(const ScoreMatrix&) const = default;
};

enum class Alibi { kNone, kByHead, kBySequenceAndHead };

struct Case {
    int64_t batch = 1;
    int64_t rows_q = 0;  // dense: length of every sequence; varlen: total_q
    int64_t rows_k = 0;  // likewise; in pages: of every sequence at most
    int64_t heads_q = 1;
    int64_t heads_k = 1;
    int64_t head_dim = 128;
    int64_t head_dim_v = 128;
    foveal_dtype dtype = FOVEAL_BF16;  // of q
    bool e4m3_keys = false;            // k and v are in e4m3, and q is not
    bool out_f16 = false;              // of q in e4m3
    bool descaled = false, one_descale = false, row_descales = false;

    int64_t window_left = FOVEAL_UNLIMITED;
    int64_t window_right = FOVEAL_UNLIMITED;
    bool top_left = false;
    int64_t chunk = 0;
    bool lse = false;
    std::optional<float> scale;
    float softcap = 0;
    Alibi alibi = Alibi::kNone;
    std::optional<float> sink_logit;  // mean of the heads' sinks
    std::optional<ScoreMatrix> bias;  // dense only
    bool bias_f32 = false;
    bool bias_inf = false;
    std::optional<ScoreMatrix> mask;  // dense only
    float dropout = 0;
    std::optional<std::array<uint64_t, 2>> dropout_seed_and_offset;

    bool varlen = false;                                       // q
    bool varlen_k = false;                                     // k and v
    std::vector<int64_t> lengths_q, lengths_k;                 // varlen, varlen_k only, [batch]
    std::optional<std::vector<int64_t>> seqused_q, seqused_k;  // [batch]

    int64_t page_size = 0;  // 0: k and v are not in pages
    bool lists_pages = false;
    bool pool = false;
    int64_t common = 0;  // keys, whole pages of them
    int64_t page_order = 0;
    std::optional<std::vector<int64_t>> query_offset;  // [batch]
    bool tree = false;

    uint64_t seed = 1;
    std::optional<double> logit_sd;
    std::vector<SinkKey> sink_keys;
    double grow_nats = 0;
    bool flat = false;
    bool vmax = false;
    std::optional<int64_t> nan_value;  // the key whose v is NaN
    bool padded = false;
    bool bhsd = false;
    bool qkv = false;

    bool operator==(const Case&) const = default;

    // Each sequence's own lengths. "used" is what takes part in the computation (contract 1.1).
    int64_t length_q(int64_t sequence) const;
    int64_t length_k(int64_t sequence) const;
    int64_t used_q(int64_t sequence) const;
    int64_t used_k(int64_t sequence) const;
    int64_t first_row_q(int64_t sequence) const;  // varlen: its first token; dense: 0
    int64_t first_row_k(int64_t sequence) const;
    std::optional<int64_t> offset_of(int64_t sequence) const;  // absent: what the alignment says

    int64_t group() const { return heads_q / heads_k; }
    double effective_scale() const;
    std::array<uint64_t, 2> dropout_state() const;
    bool is_e4m3() const { return dtype == FOVEAL_E4M3; }
    foveal_dtype keys_dtype() const { return e4m3_keys ? foveal_dtype{FOVEAL_E4M3} : dtype; }
    foveal_dtype out_dtype() const { return !is_e4m3() ? dtype : out_f16 ? FOVEAL_F16 : FOVEAL_BF16; }
    // To which e4m3 is dequantised, and P is rounded.
    foveal_dtype computed_dtype() const { return is_e4m3() ? foveal_dtype{FOVEAL_F32} : dtype; }
    foveal_dtype bias_dtype() const { return bias_f32 ? foveal_dtype{FOVEAL_F32} : out_dtype(); }

    // (query, key) pairs of one head that window and chunks leave, over all sequences.
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
