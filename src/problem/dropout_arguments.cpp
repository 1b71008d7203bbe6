#include "problem/dropout_arguments.hpp"

#include <sstream>
#include <string>

#include "problem/argument.hpp"
#include "problem/dropout.hpp"
#include "problem/mask.hpp"

namespace foveal {
namespace {

std::string text_of(float p) {
    std::ostringstream text;
    text << "dropout_p is " << p;
    return text.str();
}

void check_size(const char* name, int64_t size, int64_t most) {
    if (size < 0 || size > most)
        refuse(std::string(name) + " is " + std::to_string(size) + "; it must lie in [0, " + std::to_string(most) +
               "]");
}

}  // namespace

void check_dropout(float dropout_p, int64_t batch, int64_t heads_q) {
    if (!(dropout_p >= 0 && dropout_p < 1)) refuse(text_of(dropout_p) + "; it must lie in [0, 1)");
    constexpr int64_t kMostHeads = int64_t{1} << 32;
    if (dropout_p > 0 && batch > 0 && heads_q > kMostHeads / batch)
        refuse("there are " + std::to_string(batch) + " sequences of " + std::to_string(heads_q) +
               " query heads; beside dropout_p, at most 2^32 heads in all are supported");
}

const uint64_t* dropout_state_of(const foveal_forward_args& args) {
    if (args.dropout_p > 0 && args.dropout_state == nullptr)
        refuse("dropout_state is NULL and " + text_of(args.dropout_p) + "; it must hold a seed and an offset");
    if (args.dropout_p == 0 && args.dropout_state != nullptr)
        refuse("dropout_state is present and dropout_p is 0; there are both or neither");
    if (reinterpret_cast<uintptr_t>(args.dropout_state) % alignof(uint64_t) != 0)
        refuse("dropout_state is not aligned to " + std::to_string(alignof(uint64_t)) + " bytes");
    return args.dropout_state;
}

foveal_tensor tensor_of_dropout_state(const uint64_t* state) {
    foveal_tensor tensor{};
    tensor.data = const_cast<uint64_t*>(state);
    tensor.dtype = FOVEAL_I64;
    tensor.rank = state != nullptr ? 1 : 0;
    tensor.shape[0] = 2;
    tensor.stride[0] = 1;
    return tensor;
}

void fill_dropout_mask(int64_t batch, int64_t heads_q, int64_t rows_q, int64_t rows_k, float dropout_p,
                       const uint64_t* state, uint8_t* mask) {
    constexpr int64_t kMostHeads = int64_t{1} << 32;
    check_size("b", batch, kMostHeads);
    check_size("h_q", heads_q, kMostHeads);
    check_size("s_q", rows_q, kMaxSequenceLength);
    check_size("s_k", rows_k, kMaxSequenceLength);
    check_dropout(dropout_p, batch, heads_q);
    if (batch == 0 || heads_q == 0 || rows_q == 0 || rows_k == 0) return;
    if (dropout_p > 0 && state == nullptr) refuse("dropout_state is NULL and " + text_of(dropout_p));
    if (mask == nullptr) refuse("mask is NULL");
    const uint32_t threshold = dropout_threshold(dropout_p);
    const PhiloxKey key = threshold > 0 ? dropout_key(state) : PhiloxKey{};
    for (int64_t head = 0; head < batch * heads_q; ++head)
        for (int64_t row = 0; row < rows_q; ++row)
            for (int64_t first = 0; first < rows_k; first += 32) {
                const uint32_t kept = dropout_kept_keys(key, threshold, static_cast<uint32_t>(head),
                                                        static_cast<uint32_t>(row), static_cast<uint32_t>(first / 32));
                for (int64_t j = 0; j < 32 && first + j < rows_k; ++j) *mask++ = kept >> j & 1;
            }
}

}  // namespace foveal
