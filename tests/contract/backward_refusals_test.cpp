// What a gradient call refuses, and how that is said (contract 1.9).
#include <functional>
#include <string>
#include <vector>

#include "tests/contract/backward_fixture.hpp"

namespace foveal_testing {
namespace {

class BackwardRefusals : public BackwardTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, BackwardRefusals, testing::Values(FOVEAL_BACKEND_CPU));

const char* const kText = "b2 sq30 sk40 hq4 hk2 d64 f32 causal alibi sinks bias=1h dlse";

TEST_P(BackwardRefusals, NameTheArgument) {
    using Args = foveal_backward_args;
    const struct {
        std::function<void(Args&)> spoil;
        const char* message;
    } cases[] = {
        {[](Args& a) { a.dout.rank = 0; }, "dout is absent"},
        {[](Args& a) { a.reserved = 1; }, "reserved is 1"},
        {[](Args& a) { a.dq.shape[1] = 29; }, "dq.shape[1] is 29 but q.shape[1] is 30"},
        {[](Args& a) { a.dk.shape[2] = 4; }, "dk.shape[2] is 4 but k.shape[2] is 2"},
        {[](Args& a) { a.dv.dtype = FOVEAL_BF16; }, "dv.dtype is bf16; v's dtype (or f32) needs f32"},
        {[](Args& a) { a.dout.dtype = FOVEAL_F16; }, "dout.dtype is f16; out's dtype needs f32"},
        {[](Args& a) { a.dlse.rank = 2; }, "dlse.rank is 2; lse's rank needs 3"},
        {[](Args& a) { a.dsinks.shape[0] = 3; }, "dsinks.shape[0] is 3 but sinks.shape[0] is 4"},
        {[](Args& a) { a.dbias.dtype = FOVEAL_BF16; }, "dbias.dtype is bf16; bias's dtype (or f32) needs f32"},
        {[](Args& a) { a.dbias.shape[0] = 2; }, "dbias.shape[0] is 2 but bias.shape[0] is 1"},
        {[](Args& a) { a.dq.stride[1] = 0; }, "dq.stride[1] is 0"},
        {[](Args& a) { a.dq.rank = 7; }, "dq.rank is 7"},
        {[](Args& a) { a.dk.data = a.dv.data; }, "dv overlaps dk"},
        {[](Args& a) { a.dq.data = a.forward->q.data; }, "dq overlaps q"},
        {[](Args& a) { a.dq.data = a.dout.data; }, "dq overlaps dout"},
        {[](Args& a) { a.dv.data = a.forward->out.data; }, "dv overlaps out"},
        {[](Args& a) { a.dv.data = nullptr; }, "dv.data is NULL"},
        {[](Args& a) { a.workspace_bytes = 16; }, "workspace is NULL and workspace_bytes is 16"},
        {[](Args& a) { a.dq.rank = a.dk.rank = a.dv.rank = a.dsinks.rank = a.dbias.rank = a.dalibi_slopes.rank = 0; },
         "no gradient is asked"},
        {[](Args& a) { a.forward = nullptr; }, "args.forward is NULL"},
        {[](Args& a) { a.struct_size = 8; }, "args.struct_size is 8"},
    };
    const auto data = data_of(kText);
    const std::vector<std::byte> before = bytes_of(*data);
    for (const auto& one : cases) {
        foveal_backward_args args = data->args();
        one.spoil(args);
        EXPECT_EQ(foveal_backward(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << one.message;
        EXPECT_NE(std::string(foveal_last_error()).find(one.message), std::string::npos) << foveal_last_error();
    }
    EXPECT_EQ(bytes_of(*data), before) << "a refused call has written";
}

TEST_P(BackwardRefusals, WhatTheForwardCallLacks) {
    const struct {
        std::function<void(foveal_forward_args&)> spoil;
        const char* message;
    } cases[] = {
        {[](auto& f) { f.lse.rank = 0; }, "forward->lse is absent"},
        {[](auto& f) { f.k.dtype = f.v.dtype = FOVEAL_E4M3; }, "forward->k.dtype is e4m3; gradients are of f32"},
        {[](auto& f) { f.sinks.rank = 0; }, "dsinks is present but sinks is absent"},
        {[](auto& f) { f.bias.rank = 0; }, "dbias is present but bias is absent"},
        {[](auto& f) { f.alibi_slopes.rank = 0; }, "dalibi_slopes is present but alibi_slopes is absent"},
        {[](auto& f) { f.window_left = -7; }, "window_left is -7"},
        {[](auto& f) { f.struct_size = 3; }, "args.struct_size is 3"},
    };
    const auto data = data_of(kText);
    for (const auto& one : cases) {
        foveal_backward_args args = data->args();
        foveal_forward_args forward = *args.forward;
        one.spoil(forward);
        args.forward = &forward;
        EXPECT_EQ(foveal_backward(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << one.message;
        EXPECT_NE(std::string(foveal_last_error()).find(one.message), std::string::npos) << foveal_last_error();
    }
}

TEST_P(BackwardRefusals, KeysInPages) {
    foveal_forward_args forward;
    for (const auto& [option, name] : {std::pair{"", "block_table"}, {" csr", "page_indices"}}) {
        const BackwardCase c = parse_backward_case(std::string("backward b2 sq5 sk40 h2 d64 bf16 page16") + option);
        const foveal_backward_args args = backward_shape_args(c, backend(), forward);
        EXPECT_EQ(foveal_backward_supports(&args), FOVEAL_UNSUPPORTED);
        EXPECT_NE(std::string(foveal_last_error()).find(name), std::string::npos) << foveal_last_error();
    }
}

TEST_P(BackwardRefusals, LengthsOutOfRange) {
    const auto data = data_of("varlen qlens=5,6 klens=7,8 h2 d64 f32");
    const foveal_backward_args args = data->args();
    auto* const ends = static_cast<int32_t*>(args.forward->cu_seqlens_q.data);
    ends[1] = 99;
    const std::vector<std::byte> before = bytes_of(*data);
    EXPECT_EQ(foveal_backward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("cu_seqlens_q[1] is 99"), std::string::npos) << foveal_last_error();
    EXPECT_EQ(bytes_of(*data), before);
}

TEST_P(BackwardRefusals, APlanOfTheOtherDirection) {
    const auto data = data_of("b1 s30 h2 d64 f32");
    const foveal_backward_args args = data->args();
    const foveal::Plan backward(args), forward(*args.forward);
    EXPECT_THROW(backward.launch(*args.forward), foveal::Error);
    EXPECT_THROW(forward.launch(args), foveal::Error);
    EXPECT_NE(std::string(foveal_last_error()).find("the other direction"), std::string::npos);
}

}  // namespace
}  // namespace foveal_testing
