// What a call writes lies apart from all that it reads and from what else it writes, or the call is refused by name and
// writes nothing: contract 1.9.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_testing {
namespace {

constexpr int64_t kBatch = 2, kRowsQ = 4, kRowsK = 8, kHeadsQ = 4, kHeadsK = 2, kDim = 8;
constexpr size_t kAlignment = 4;  // of every element; every tensor below is a multiple of it

size_t element_bytes(foveal_dtype dtype) {
    return dtype == FOVEAL_BOOL ? 1 : dtype == FOVEAL_F32 || dtype == FOVEAL_I32 ? 4 : 2;
}

size_t bytes_of(const foveal_tensor& t) {
    size_t bytes = element_bytes(t.dtype);
    for (int i = 0; i < t.rank; ++i) bytes *= static_cast<size_t>(t.shape[i]);
    return bytes;
}

// Tensors in one piece of memory, far enough apart for any of them to lie between any two.
class Arena {
   public:
    foveal_tensor packed(foveal_dtype dtype, std::initializer_list<int64_t> shape) {
        foveal_tensor t{};
        t.dtype = dtype;
        for (const int64_t n : shape) t.shape[t.rank++] = n;
        int64_t stride = 1;
        for (int i = t.rank - 1; i >= 0; --i) {
            t.stride[i] = stride;
            stride *= t.shape[i];
        }
        t.data = memory_.data() + next_;
        next_ += kGap + bytes_of(t);
        EXPECT_LE(next_, memory_.size());
        return t;
    }
    foveal_tensor lengths(std::initializer_list<int32_t> values) {
        const foveal_tensor t = packed(FOVEAL_I32, {static_cast<int64_t>(values.size())});
        std::copy(values.begin(), values.end(), static_cast<int32_t*>(t.data));
        return t;
    }
    const std::vector<char>& memory() const { return memory_; }

   private:
    static constexpr size_t kGap = 4096;
    std::vector<char> memory_ = std::vector<char>(1 << 17);
    size_t next_ = kGap;
};

// A call with everything that may be there; every input is zeros, true or a proper length.
struct Call {
    Arena arena;
    foveal_forward_args args;
};

std::unique_ptr<Call> make_call(foveal_dtype dtype, bool varlen) {
    auto call = std::make_unique<Call>();
    Arena& arena = call->arena;
    foveal_forward_args& args = call->args;
    foveal_forward_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    if (varlen) {
        args.q = arena.packed(dtype, {kBatch * kRowsQ, kHeadsQ, kDim});
        args.k = arena.packed(dtype, {kBatch * kRowsK, kHeadsK, kDim});
        args.v = arena.packed(dtype, {kBatch * kRowsK, kHeadsK, kDim});
        args.out = arena.packed(dtype, {kBatch * kRowsQ, kHeadsQ, kDim});
        args.lse = arena.packed(FOVEAL_F32, {kHeadsQ, kBatch * kRowsQ});
        args.cu_seqlens_q = arena.lengths({0, kRowsQ, 2 * kRowsQ});
        args.cu_seqlens_k = arena.lengths({0, kRowsK, 2 * kRowsK});
    } else {
        args.q = arena.packed(dtype, {kBatch, kRowsQ, kHeadsQ, kDim});
        args.k = arena.packed(dtype, {kBatch, kRowsK, kHeadsK, kDim});
        args.v = arena.packed(dtype, {kBatch, kRowsK, kHeadsK, kDim});
        args.out = arena.packed(dtype, {kBatch, kRowsQ, kHeadsQ, kDim});
        args.lse = arena.packed(FOVEAL_F32, {kBatch, kHeadsQ, kRowsQ});
        args.bias = arena.packed(dtype, {1, kHeadsQ, kRowsQ, kRowsK});
        args.mask = arena.packed(FOVEAL_BOOL, {kBatch, 1, kRowsQ, kRowsK});
        std::memset(args.mask.data, 1, bytes_of(args.mask));
    }
    args.seqused_q = arena.lengths({2, 3});
    args.seqused_k = arena.lengths({5, 1});
    args.alibi_slopes = arena.packed(FOVEAL_F32, {kBatch, kHeadsQ});
    args.sinks = arena.packed(FOVEAL_F32, {kHeadsQ});
    return call;
}

struct Named {
    const char* name;
    foveal_tensor foveal_forward_args::*tensor;
};
constexpr Named kWritten[] = {{"out", &foveal_forward_args::out}, {"lse", &foveal_forward_args::lse}};
constexpr Named kAll[] = {{"q", &foveal_forward_args::q},
                          {"k", &foveal_forward_args::k},
                          {"v", &foveal_forward_args::v},
                          {"out", &foveal_forward_args::out},
                          {"lse", &foveal_forward_args::lse},
                          {"cu_seqlens_q", &foveal_forward_args::cu_seqlens_q},
                          {"cu_seqlens_k", &foveal_forward_args::cu_seqlens_k},
                          {"seqused_q", &foveal_forward_args::seqused_q},
                          {"seqused_k", &foveal_forward_args::seqused_k},
                          {"alibi_slopes", &foveal_forward_args::alibi_slopes},
                          {"sinks", &foveal_forward_args::sinks},
                          {"bias", &foveal_forward_args::bias},
                          {"mask", &foveal_forward_args::mask}};

// Where `moved` is put relative to `fixed`.
enum class Place { just_before, over_first, same_start, over_last, just_behind };

void* place(const foveal_tensor& moved, const foveal_tensor& fixed, Place where) {
    char* const begin = static_cast<char*>(fixed.data);
    switch (where) {
        case Place::just_before:
            return begin - bytes_of(moved);
        case Place::over_first:
            return begin - bytes_of(moved) + kAlignment;
        case Place::same_start:
            return begin;
        case Place::over_last:
            return begin + bytes_of(fixed) - kAlignment;
        case Place::just_behind:
            return begin + bytes_of(fixed);
    }
    return nullptr;
}

void expect_overlap_refused(const Call& call, foveal_status status, const char* written, const char* other) {
    EXPECT_EQ(status, FOVEAL_INVALID_ARGUMENT);
    const std::string message = foveal_last_error();
    const bool named = message.find(std::string(written) + " overlaps " + other) == 0 ||
                       message.find(std::string(other) + " overlaps " + written) == 0;
    EXPECT_TRUE(named) << message;
    EXPECT_TRUE(call.arena.memory() == make_call(call.args.q.dtype, call.args.q.rank == 3)->arena.memory())
        << "a refused call wrote";
}

// run(call) for each pair of what is written and what else there is, in each form and type, at each of these places.
template <class Run>
void for_each_pair(std::initializer_list<Place> places, Run&& run) {
    for (const foveal_dtype dtype : {FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16})
        for (const bool varlen : {false, true})
            for (const Named& written : kWritten)
                for (const Named& other : kAll)
                    for (const Place where : places) {
                        const auto call = make_call(dtype, varlen);
                        foveal_tensor &moved = call->args.*written.tensor, &fixed = call->args.*other.tensor;
                        if (&moved == &fixed || fixed.rank == 0) continue;
                        moved.data = place(moved, fixed, where);
                        SCOPED_TRACE(std::string(written.name) + " and " + other.name + (varlen ? " varlen" : "") +
                                     " dtype " + std::to_string(dtype) + " place " +
                                     std::to_string(static_cast<int>(where)));
                        run(*call, written.name, other.name);
                    }
}

TEST(Contract_1_9, ResultsOverAnythingElseAreRefused) {
    for_each_pair({Place::over_first, Place::same_start, Place::over_last},
                  [](const Call& call, const char* written, const char* other) {
                      expect_overlap_refused(call, foveal_forward(&call.args, nullptr), written, other);
                      // Where the data lie is no part of the problem.
                      EXPECT_EQ(foveal_supports(&call.args), FOVEAL_OK);
                  });
}

TEST(Contract_1_9, ResultsOverAnythingElseAreRefusedOfAKeptPlan) {
    for_each_pair({Place::over_last}, [](const Call& call, const char* written, const char* other) {
        foveal_plan* plan = nullptr;
        ASSERT_EQ(foveal_plan_create(&call.args, -1, &plan), FOVEAL_OK) << foveal_last_error();
        expect_overlap_refused(call, foveal_plan_launch(plan, &call.args, nullptr), written, other);
        foveal_plan_destroy(plan);
    });
}

TEST(Contract_1_9, ResultsBesideAnythingElseAreNot) {
    for_each_pair({Place::just_before, Place::just_behind}, [](const Call& call, const char*, const char*) {
        EXPECT_EQ(foveal_forward(&call.args, nullptr), FOVEAL_OK) << foveal_last_error();
    });
}

TEST(Contract_1_9, WhatHasNoElementOverlapsNothing) {
    const auto call = make_call(FOVEAL_F32, false);
    foveal_forward_args& args = call->args;
    args.seqused_q.rank = 0;
    args.q.shape[1] = args.out.shape[1] = args.lse.shape[2] = args.bias.shape[2] = args.mask.shape[2] = 0;
    args.out.data = args.lse.data = args.k.data;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
}

// q, k, v and out side by side in one buffer: [b, s, parts, h, d], [b, s, h, parts, d] or [parts, b, s, h, d].
struct Fused {
    const char* name;
    int64_t part, batch, row, head;  // strides
};
constexpr int64_t kRows = 6, kHeads = 3, kParts = 4, kSize = kParts * kBatch * kRows * kHeads * kDim;
constexpr Fused kFused[] = {
    {"parts of a row", kHeads* kDim, kRows* kParts* kHeads* kDim, kParts* kHeads* kDim, kDim},
    {"parts of a head", kDim, kRows* kParts* kHeads* kDim, kParts* kHeads* kDim, kParts* kDim},
    {"parts of the batch", kRows* kHeads* kDim, kParts* kRows* kHeads* kDim, kHeads* kDim, kDim},
};

foveal_tensor part_of(std::vector<float>& buffer, const Fused& fused, int64_t part, bool varlen) {
    foveal_tensor t{buffer.data() + part * fused.part, FOVEAL_F32, 4, {kBatch, kRows, kHeads, kDim}, {}};
    const int64_t strides[] = {fused.batch, fused.row, fused.head, 1};
    std::copy(strides, strides + 4, t.stride);
    if (!varlen) return t;
    t.rank = 3;
    std::copy(t.shape + 1, t.shape + 4, t.shape);
    std::copy(t.stride + 1, t.stride + 4, t.stride);
    if (fused.batch == kRows * fused.row) t.shape[0] *= kBatch;  // else: the first sequence's rows
    return t;
}

foveal_forward_args fused_args(std::vector<float>& buffer, const Fused& fused, bool varlen) {
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.q = part_of(buffer, fused, 0, varlen);
    args.k = part_of(buffer, fused, 1, varlen);
    args.v = part_of(buffer, fused, 2, varlen);
    args.out = part_of(buffer, fused, 3, varlen);
    return args;
}

std::vector<float> fused_values() {
    std::vector<float> values(static_cast<size_t>(kSize));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 37 + i / 11) % 17) / 8 - 1;
    return values;
}

TEST(Contract_1_9, PartsOfOneBufferThatShareNoByteAreTaken) {
    for (const Fused& fused : kFused) {
        for (const bool varlen : {false, true}) {
            SCOPED_TRACE(std::string(fused.name) + (varlen ? " varlen" : ""));
            std::vector<float> buffer = fused_values(), elsewhere = buffer;
            foveal_forward_args args = fused_args(buffer, fused, varlen);
            std::array<int32_t, 2> ends{0, static_cast<int32_t>(args.q.shape[0])};
            if (varlen) args.cu_seqlens_q = {ends.data(), FOVEAL_I32, 1, {2}, {1}};
            if (varlen) args.cu_seqlens_k = args.cu_seqlens_q;
            ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();

            // The same with out in a buffer of its own; there only out's part differs afterwards.
            const std::vector<float> inputs = fused_values();
            std::vector<float> copy = inputs;
            const std::vector<float> result = buffer;
            args = fused_args(copy, fused, varlen);
            if (varlen) args.cu_seqlens_q = args.cu_seqlens_k = {ends.data(), FOVEAL_I32, 1, {2}, {1}};
            args.out = part_of(elsewhere, fused, 3, varlen);
            ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
            EXPECT_EQ(copy, inputs);
            EXPECT_EQ(result, elsewhere);
        }
    }
}

TEST(Contract_1_9, PartsOfOneBufferThatShareAByteAreRefused) {
    for (const Fused& fused : kFused) {
        SCOPED_TRACE(fused.name);
        std::vector<float> buffer = fused_values();
        foveal_forward_args args = fused_args(buffer, fused, false);
        args.out.data = static_cast<float*>(args.out.data) - 1;
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find("out overlaps v"), std::string::npos) << foveal_last_error();
        EXPECT_EQ(buffer, fused_values());
    }
}

// ---- merging

struct MergeCall {
    Arena arena;
    std::array<foveal_tensor, 2> outs, lses;
    foveal_merge_args args;
};

std::unique_ptr<MergeCall> make_merge(foveal_dtype dtype, bool varlen) {
    auto call = std::make_unique<MergeCall>();
    const auto values = [&] {
        return varlen ? call->arena.packed(dtype, {kRowsQ, kHeadsQ, kDim})
                      : call->arena.packed(dtype, {kBatch, kRowsQ, kHeadsQ, kDim});
    };
    const auto sums = [&] {
        return varlen ? call->arena.packed(FOVEAL_F32, {kHeadsQ, kRowsQ})
                      : call->arena.packed(FOVEAL_F32, {kBatch, kHeadsQ, kRowsQ});
    };
    foveal_merge_args_init(&call->args);
    call->args.backend = FOVEAL_BACKEND_CPU;
    call->args.parts = 2;
    call->outs = {values(), values()};
    call->lses = {sums(), sums()};
    call->args.outs = call->outs.data();
    call->args.lses = call->lses.data();
    call->args.out = values();
    call->args.lse = sums();
    return call;
}

TEST(Contract_1_9, MergedResultsReplaceTheirOwnKindOrLieApart) {
    for (const foveal_dtype dtype : {FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16})
        for (const bool varlen : {false, true})
            for (const bool moves_out : {true, false})
                for (int other = 0; other < 5; ++other)
                    for (const Place where : {Place::just_before, Place::over_first, Place::same_start,
                                              Place::over_last, Place::just_behind}) {
                        const auto call = make_merge(dtype, varlen);
                        foveal_tensor& moved = moves_out ? call->args.out : call->args.lse;
                        const foveal_tensor* const others[] = {&call->outs[0], &call->outs[1], &call->lses[0],
                                                               &call->lses[1],
                                                               moves_out ? &call->args.lse : &call->args.out};
                        moved.data = place(moved, *others[other], where);
                        const bool apart = where == Place::just_before || where == Place::just_behind;
                        const bool in_place = where == Place::same_start && (moves_out ? other < 2 : other / 2 == 1);
                        const foveal_status expected = apart || in_place ? FOVEAL_OK : FOVEAL_INVALID_ARGUMENT;
                        EXPECT_EQ(foveal_merge(&call->args, nullptr), expected)
                            << (moves_out ? "out" : "lse") << " at " << other << " place " << static_cast<int>(where)
                            << " dtype " << dtype << (varlen ? " varlen: " : ": ") << foveal_last_error();
                        if (expected == FOVEAL_OK) continue;
                        EXPECT_NE(std::string(foveal_last_error()).find("overlaps"), std::string::npos)
                            << foveal_last_error();
                        EXPECT_TRUE(call->arena.memory() == make_merge(dtype, varlen)->arena.memory())
                            << "a refused call wrote";
                    }
}

}  // namespace
}  // namespace foveal_testing
