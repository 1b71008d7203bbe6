// What tensors may look like (contract 1.1), on the CPU backend. Accuracy over many shapes is the business of
// suites_test.cpp.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.1 Tensors

TEST(Contract_1_1, DenseAndVarlenOfEveryType) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        expect_right("b2 sq33 sk70 hq4 hk2 d64 " + type + " lse");
        expect_right("varlen qlens=33,5 klens=70,9 hq4 hk2 d64 " + type + " causal lse");
    }
}

TEST(Contract_1_1, AnyRatioOfHeads) {
    for (const std::string heads : {"h1", "h7", "hq6 hk3", "hq15 hk5", "hq35 hk7", "hq64 hk1"}) {
        expect_right("b2 sq20 sk30 d16 f32 causal " + heads);
    }
}

TEST(Contract_1_1, AnyHeadDimension) {
    for (int d = 1; d <= 40; ++d) {
        expect_right("sq9 sk13 h3 f32 causal d" + std::to_string(d) + " dv" + std::to_string(41 - d));
        expect_right("sq9 sk13 h3 bf16 lse d" + std::to_string(d) + " dv" + std::to_string(41 - d));
    }
}

TEST(Contract_1_1, FreeStrides) {
    for (const std::string memory : {"pad", "bhsd", "pad bhsd"}) {
        for (const std::string type : {"f32", "bf16"}) {
            expect_right("b3 sq33 sk50 hq4 hk2 d24 dv40 lse causal " + type + " " + memory);
            expect_right("varlen qlens=33,0,4 klens=50,7,9 hq4 hk2 d24 dv40 lse " + type + " " + memory);
        }
    }
}

TEST(Contract_1_1, SequencesShortenedByUsedLengths) {
    expect_right("b4 sq33 sk50 hq4 hk2 d24 f32 lse causal used_q=33,0,1,20 used_k=50,50,3,0");
    expect_right("varlen qlens=33,5,20 klens=50,9,20 hq4 hk2 d24 bf16 lse causal used_q=30,0,20 used_k=1,9,0");
}

// A pointer that is aligned to its element and to nothing more.
TEST(Contract_1_1, ElementAlignmentIsEnoughOnTheCpu) {
    const Case c = parse_case("b2 sq9 sk17 hq4 hk2 d20 bf16");
    const auto expected = run(to_text(c));
    const auto data = make_case_data(c, kCpu);
    foveal_forward_args args = data->args();
    std::vector<std::vector<uint16_t>> shifted;
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v}) {
        const auto elements = static_cast<size_t>(tensor->shape[0] * tensor->stride[0]);
        shifted.emplace_back(elements + 1);
        std::memcpy(shifted.back().data() + 1, tensor->data, elements * 2);
        tensor->data = shifted.back().data() + 1;
    }
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(data->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
}

// The strides of a dimension of size 1 are never followed, whatever they are.
TEST(Contract_1_1, StridesOfSingletonsMeanNothing) {
    const auto data = make_case_data(parse_case("b1 sq1 sk3 h1 d8 f32 lse"), kCpu);
    foveal_forward_args args = data->args();
    for (foveal_tensor* tensor : {&args.q, &args.out, &args.lse}) {
        for (int i = 0; i + 1 < tensor->rank; ++i) tensor->stride[i] = i == 0 ? -7 : 0;
    }
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

// Memory of address space alone; pages come into being where they are touched.
class SparseMemory {
   public:
    explicit SparseMemory(size_t bytes) : bytes_(bytes) {
        data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    SparseMemory(const SparseMemory&) = delete;
    SparseMemory& operator=(const SparseMemory&) = delete;
    ~SparseMemory() {
        if (ok()) munmap(data_, bytes_);
    }
    bool ok() const { return data_ != MAP_FAILED; }
    char* data() const { return static_cast<char*>(data_); }

   private:
    size_t bytes_;
    void* data_;
};

TEST(Contract_1_1, TensorsBeyond32BitIndices) {
    constexpr int64_t kFar = (int64_t{1} << 31) + 64;  // elements between the two sequences
    const Case c = parse_case("b2 sq5 sk7 h2 d16 bf16");
    const auto data = make_case_data(c, kCpu);
    foveal_forward_args args = data->args();
    std::vector<std::unique_ptr<SparseMemory>> memory;
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) {
        memory.push_back(std::make_unique<SparseMemory>((kFar + tensor->stride[0]) * 2));
        if (!memory.back()->ok()) GTEST_SKIP() << "SKIPPED: no 16 GiB of address space";
        const auto bytes = static_cast<size_t>(tensor->stride[0]) * 2;
        const char* dense = static_cast<const char*>(tensor->data);
        std::memcpy(memory.back()->data(), dense, bytes);
        std::memcpy(memory.back()->data() + kFar * 2, dense + bytes, bytes);
        tensor->data = memory.back()->data();
    }
    const int64_t near_out = args.out.stride[0];
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) tensor->stride[0] = kFar;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();

    char* dense_out = static_cast<char*>(data->args().out.data);
    std::memcpy(dense_out, memory[3]->data(), static_cast<size_t>(near_out) * 2);
    std::memcpy(dense_out + near_out * 2, memory[3]->data() + kFar * 2, static_cast<size_t>(near_out) * 2);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

// Offsets that would lead outside the tensors are noticed where the host can read them.
TEST(Contract_1_1, LengthsThatLeaveTheirTensorAreRefused) {
    const auto data = make_case_data(parse_case("varlen qlens=5,6 klens=7,8 h2 d8 f32"), kCpu);
    auto* offsets = static_cast<int32_t*>(data->args().cu_seqlens_k.data);
    for (const std::vector<int32_t>& wrong : {std::vector<int32_t>{0, 9, 8}, {0, 7, 16}, {-1, 7, 15}}) {
        std::copy(wrong.begin(), wrong.end(), offsets);
        EXPECT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find("cu_seqlens_k"), std::string::npos) << foveal_last_error();
    }
    const auto dense = make_case_data(parse_case("b2 s5 h2 d8 f32 used_k=5,5"), kCpu);
    static_cast<int32_t*>(dense->args().seqused_k.data)[1] = 6;
    EXPECT_EQ(foveal_forward(&dense->args(), nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("seqused_k"), std::string::npos) << foveal_last_error();
    EXPECT_EQ(dense->scan(TensorId::kOut).poison, dense->scan(TensorId::kOut).elements) << "a refused call wrote";
}

}  // namespace
}  // namespace foveal_testing
