// Merging of partial results (contract 1.5): parts of every number, type, shape and stride.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/contract/merge_fixture.hpp"

namespace foveal_testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Cpu, Merge, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, Merge, testing::Values(FOVEAL_BACKEND_SM90));

struct Types {
    foveal_dtype in, out;
};
constexpr Types kTypes[] = {{FOVEAL_F32, FOVEAL_F32},   {FOVEAL_F32, FOVEAL_BF16}, {FOVEAL_F32, FOVEAL_F16},
                            {FOVEAL_BF16, FOVEAL_BF16}, {FOVEAL_BF16, FOVEAL_F32}, {FOVEAL_F16, FOVEAL_F16},
                            {FOVEAL_F16, FOVEAL_F32}};

TEST_P(Merge, AnyNumberOfPartsOfAnyType) {
    for (const Types& types : kTypes)
        for (const int32_t parts : {1, 2, 3, 8, 31, 32})
            expect_merges(backend(), {.parts = parts, .dtype = types.in, .out_dtype = types.out}, options());
}

TEST_P(Merge, AnyShape) {
    for (const Types& types : kTypes) {
        for (const int64_t channels : {1, 5, 8, 20, 128, 200, 512, 4100}) {
            MergeCase c{.rows = 19, .channels = channels, .parts = 3, .dtype = types.in, .out_dtype = types.out};
            expect_merges(backend(), c, options());
        }
        for (const int64_t rows : {1, 2, 63, 64, 65, 500})
            for (const bool varlen : {false, true})
                expect_merges(backend(),
                              {.batch = varlen ? 1 : 3,
                               .rows = rows,
                               .channels = 16,
                               .varlen = varlen,
                               .dtype = types.in,
                               .out_dtype = types.out},
                              options());
        expect_merges(backend(),
                      {.batch = 300, .rows = 1, .heads = 8, .parts = 4, .dtype = types.in, .out_dtype = types.out},
                      options());
    }
}

TEST_P(Merge, FreeStrides) {
    for (const Types& types : kTypes)
        for (const MergeCase::Layout layout : {MergeCase::Layout::kOddStrides, MergeCase::Layout::kHeadsFirst})
            for (const bool varlen : {false, true})
                for (const int64_t channels : {24, 128})
                    expect_merges(backend(),
                                  {.batch = varlen ? 1 : 2,
                                   .channels = channels,
                                   .varlen = varlen,
                                   .parts = 3,
                                   .dtype = types.in,
                                   .out_dtype = types.out,
                                   .layout = layout},
                                  options());
}

TEST_P(Merge, WithoutLse) {
    const MergeCase c{.parts = 3};
    const PartialValues values = draw_parts(c, 2);
    MergeData with(backend(), c, values), without(backend(), c, values);
    foveal::merge(with.parts(), with.out.view(), options(with.lse.view()));
    foveal::merge(without.parts(), without.out.view(), options());
    EXPECT_EQ(without.out.bytes(), with.out.bytes());
}

TEST_P(Merge, AutoIsWhereThePartsLie) {
    const MergeCase c{};
    const PartialValues values = draw_parts(c, 2);
    MergeData data(backend(), c, values);
    foveal::merge(data.parts(), data.out.view(), {.lse = data.lse.view()});
    EXPECT_EQ(judge_merged(c, values, data.out.values(), data.lse.values()).failure, "");
}

TEST_P(Merge, IntoOneOfTheParts) {
    for (const Types& types : kTypes) {
        if (types.in != types.out) continue;
        const MergeCase c{.channels = 136, .parts = 5, .dtype = types.in, .out_dtype = types.out};
        const PartialValues values = draw_parts(c, 3);
        MergeData apart(backend(), c, values);
        foveal::merge(apart.parts(), apart.out.view(), options(apart.lse.view()));
        for (size_t n = 0; n < apart.outs.size(); ++n) {
            MergeData data(backend(), c, values);
            foveal::merge(data.parts(), data.outs[n].view(), options(data.lses[n].view()));
            EXPECT_EQ(data.outs[n].bytes(), apart.out.bytes()) << n;
            EXPECT_EQ(data.lses[n].bytes(), apart.lse.bytes()) << n;
        }
    }
}

// Parts that are views of one buffer [rows, parts, h, d], as a kernel that splits the keys may leave them.
TEST_P(Merge, InterleavedParts) {
    const MergeCase c{.batch = 1, .rows = 50, .heads = 4, .channels = 32, .varlen = true, .parts = 3};
    const PartialValues values = draw_parts(c, 4);
    MergeData apart(backend(), c, values);
    foveal::merge(apart.parts(), apart.out.view(), options(apart.lse.view()));

    const int64_t part_elements = c.heads * c.channels;
    std::vector<float> all(static_cast<size_t>(c.rows * c.parts * part_elements));
    for (int64_t row = 0; row < c.rows; ++row)
        for (int32_t n = 0; n < c.parts; ++n)
            std::copy_n(values.outs[static_cast<size_t>(n)].begin() + row * part_elements, part_elements,
                        all.begin() + (row * c.parts + n) * part_elements);
    StridedTensor buffer(backend(), FOVEAL_F32, {c.rows, c.parts, c.heads, c.channels});
    buffer.set(all);
    std::vector<Part> parts = apart.parts();
    for (int32_t n = 0; n < c.parts; ++n) {
        foveal::Tensor& out = parts[static_cast<size_t>(n)].out;
        out.data = static_cast<float*>(buffer.view().data) + n * part_elements;
        out.stride[0] = c.parts * part_elements;
    }
    foveal::merge(parts, parts[1].out, options());
    const std::vector<float> expected = apart.out.values(), got = buffer.values();
    for (int64_t row = 0; row < c.rows; ++row)
        for (int64_t i = 0; i < part_elements; ++i)
            ASSERT_EQ(got[static_cast<size_t>((row * c.parts + 1) * part_elements + i)],
                      expected[static_cast<size_t>(row * part_elements + i)]);
}

TEST_P(Merge, MergedResultsMergeAgain) {
    const MergeCase c{.parts = 6};
    const PartialValues values = draw_parts(c, 6);
    MergeData data(backend(), c, values);
    const std::vector<Part> parts = data.parts();
    foveal::merge(parts[0], parts[1], parts[0].out, options(parts[0].lse));
    foveal::merge(std::span(parts).subspan(2), parts[2].out, options(parts[2].lse));
    foveal::merge(parts[0], parts[2], data.out.view(), options(data.lse.view()));
    EXPECT_EQ(judge_merged(c, values, data.out.values(), data.lse.values()).failure, "");
}

TEST_P(Merge, SameBitsOnEveryRun) {
    const MergeCase c{.rows = 200, .parts = 7, .dtype = FOVEAL_BF16, .out_dtype = FOVEAL_BF16};
    const PartialValues values = draw_parts(c, 7);
    MergeData data(backend(), c, values);
    foveal::merge(data.parts(), data.out.view(), options());
    const std::vector<std::byte> first = data.out.bytes();
    for (int run = 0; run < 5; ++run) {
        foveal::merge(data.parts(), data.out.view(), options());
        ASSERT_EQ(data.out.bytes(), first);
    }
}

TEST_P(Merge, NothingToMerge) {
    for (const Shape& shape : {Shape{0, 3, 2, 8}, Shape{2, 0, 2, 8}, Shape{2, 3, 0, 8}}) {
        const MergeCase c{.batch = shape[0], .rows = shape[1], .heads = shape[2], .channels = shape[3]};
        expect_merges(backend(), c, options());
        foveal::Tensor out = foveal::Tensor::packed(static_cast<void*>(nullptr), foveal::DType::f32,
                                                    {shape[0], shape[1], shape[2], shape[3]});
        foveal::Tensor lse =
            foveal::Tensor::packed(static_cast<void*>(nullptr), foveal::DType::f32, {shape[0], shape[2], shape[1]});
        foveal::merge({out, lse}, {out, lse}, out, options(lse));
    }
    // Rows without channels have a log-sum-exp.
    const MergeCase c{.channels = 0, .parts = 3};
    const PartialValues values = draw_parts(c, 8);
    MergeData data(backend(), c, values);
    std::vector<Part> parts = data.parts();
    for (Part& part : parts) part.out.data = nullptr;
    foveal::merge(parts, parts[0].out, options(data.lse.view()));
    EXPECT_EQ(judge_merged(c, values, {}, data.lse.values()).failure, "");
}

}  // namespace
}  // namespace foveal_testing
