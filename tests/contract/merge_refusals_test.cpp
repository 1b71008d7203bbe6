// What foveal_merge refuses, by name, having written nothing (contract 1.9).
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/contract/merge_fixture.hpp"

namespace foveal_testing {
namespace {

// A merge of two that is right until `spoil` has changed it; the message must hold all the words.
template <class Spoil>
void expect_refused(const char* what, const std::vector<std::string>& words, Spoil&& spoil) {
    const MergeCase c{.parts = 2};
    MergeData data(FOVEAL_BACKEND_CPU, c, draw_parts(c, 9));
    foveal_tensor outs[] = {data.outs[0].view(), data.outs[1].view()};
    foveal_tensor lses[] = {data.lses[0].view(), data.lses[1].view()};
    foveal_merge_args args;
    foveal_merge_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.parts = 2;
    args.outs = outs;
    args.lses = lses;
    args.out = data.out.view();
    args.lse = data.lse.view();
    ASSERT_EQ(foveal_merge(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    const std::vector<std::byte> out = data.out.bytes();
    spoil(args, outs, lses);
    EXPECT_EQ(foveal_merge(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << what;
    for (const std::string& word : words)
        EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
            << what << ": " << foveal_last_error() << " lacks " << word;
    EXPECT_EQ(data.out.bytes(), out) << what;
}

using Args = foveal_merge_args;

TEST(CpuMergeRefuses, ShapesAndTypes) {
    expect_refused("rank 2", {"outs[0].rank", "2", "3"}, [](Args&, auto* outs, auto*) { outs[0].rank = 2; });
    expect_refused("rank 5", {"outs[1].rank", "5"}, [](Args&, auto* outs, auto*) { outs[1].rank = 5; });
    expect_refused("no rank", {"outs[0].rank", "0"}, [](Args&, auto* outs, auto*) { outs[0].rank = 0; });
    expect_refused("rank of out", {"out.rank", "3"}, [](Args& args, auto*, auto*) { args.out.rank = 3; });
    expect_refused("no out", {"out.rank", "0"}, [](Args& args, auto*, auto*) { args.out.rank = 0; });
    expect_refused("rank of lse", {"lses[1].rank", "2"}, [](Args&, auto*, auto* lses) { lses[1].rank = 2; });
    expect_refused("rank -1", {"lse.rank", "-1"}, [](Args& args, auto*, auto*) { args.lse.rank = -1; });
    expect_refused("i32", {"outs[0].dtype", "i32"}, [](Args&, auto* outs, auto*) { outs[0].dtype = FOVEAL_I32; });
    expect_refused("mixed", {"outs[1].dtype", "bf16", "f32"},
                   [](Args&, auto* outs, auto*) { outs[1].dtype = FOVEAL_BF16; });
    expect_refused("another 16-bit out", {"out.dtype", "f16", "bf16", "f32"}, [](Args& args, auto* outs, auto*) {
        outs[0].dtype = outs[1].dtype = FOVEAL_BF16;
        args.out.dtype = FOVEAL_F16;
    });
    expect_refused("e4m3 out", {"out.dtype", "e4m3"}, [](Args& args, auto*, auto*) { args.out.dtype = FOVEAL_E4M3; });
    expect_refused("bf16 lse", {"lses[0].dtype", "bf16"}, [](Args&, auto*, auto* l) { l[0].dtype = FOVEAL_BF16; });
    expect_refused("rows", {"outs[1].shape[1]", "36", "37"}, [](Args&, auto* outs, auto*) { outs[1].shape[1] = 36; });
    expect_refused("channels", {"out.shape[3]", "63", "64"}, [](Args& args, auto*, auto*) { args.out.shape[3] = 63; });
    expect_refused("lse rows", {"lses[1].shape[2]", "38"}, [](Args&, auto*, auto* lses) { lses[1].shape[2] = 38; });
    expect_refused("lse heads", {"lse.shape[1]", "4"}, [](Args& args, auto*, auto*) { args.lse.shape[1] = 4; });
    expect_refused("negative", {"outs[0].shape[0]", "-2"},
                   [](Args& args, auto* outs, auto*) { outs[0].shape[0] = outs[1].shape[0] = args.out.shape[0] = -2; });
}

TEST(CpuMergeRefuses, StridesAndOverlaps) {
    expect_refused("stride -1", {"outs[1].stride[1]", "-1"}, [](Args&, auto* outs, auto*) { outs[1].stride[1] = -1; });
    expect_refused("stride 0", {"out.stride[1]", "0"}, [](Args& args, auto*, auto*) { args.out.stride[1] = 0; });
    expect_refused("last stride", {"out.stride[3]", "2"}, [](Args& args, auto*, auto*) { args.out.stride[3] = 2; });
    expect_refused("lse stride", {"lses[0].stride[2]", "2"}, [](Args&, auto*, auto* l) { l[0].stride[2] = 2; });
    expect_refused("beyond 64 bits", {"outs[0]", "beyond"},
                   [](Args&, auto* outs, auto*) { outs[0].stride[0] = INT64_MAX; });
    expect_refused("out on itself", {"out", "overlap"}, [](Args& args, auto*, auto*) { args.out.stride[1] = 64; });
    expect_refused("part of a part", {"out", "outs[1]", "in part"},
                   [](Args& args, auto* outs, auto*) { args.out.data = static_cast<float*>(outs[1].data) + 64; });
    expect_refused("another order", {"out", "outs[0]", "in part"}, [](Args& args, auto* outs, auto*) {
        args.out.data = outs[0].data;
        args.out.stride[1] = 64;
        args.out.stride[2] = 37 * 64;
    });
    expect_refused("lse on a part's", {"lse", "lses[0]", "in part"},
                   [](Args& args, auto*, auto* lses) { args.lse.data = static_cast<float*>(lses[0].data) + 1; });
    expect_refused("lse on a part", {"lse", "outs[0]", "apart"},
                   [](Args& args, auto* outs, auto*) { args.lse.data = outs[0].data; });
    expect_refused("an lse on out", {"out", "lses[1]", "apart"},
                   [](Args& args, auto*, auto* lses) { lses[1].data = args.out.data; });
}

TEST(CpuMergeRefuses, Options) {
    expect_refused("parts 0", {"parts", "0", "32"}, [](Args& args, auto*, auto*) { args.parts = 0; });
    expect_refused("parts -1", {"parts", "-1"}, [](Args& args, auto*, auto*) { args.parts = -1; });
    expect_refused("parts 33", {"parts", "33", "32"}, [](Args& args, auto*, auto*) { args.parts = 33; });
    expect_refused("backend 5", {"backend", "5"}, [](Args& args, auto*, auto*) { args.backend = 5; });
    expect_refused("reserved", {"reserved", "1"}, [](Args& args, auto*, auto*) { args.reserved = 1; });
    expect_refused("struct_size", {"struct_size", "8", "foveal_merge_args_init"},
                   [](Args& args, auto*, auto*) { args.struct_size = 8; });
    const std::vector<Part> parts(33);
    EXPECT_THROW(foveal::merge(parts, {}), foveal::Error);
    EXPECT_THROW(foveal::merge(std::span<const Part>{}, {}), foveal::Error);
}

}  // namespace
}  // namespace foveal_testing
