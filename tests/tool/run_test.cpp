// foveal run.
#include <sys/stat.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/tool/run_fixture.hpp"

namespace foveal_testing {
namespace {

// Attention over packed f32 sequences, written down once more: [total, h, d], one kv head a q head.
struct Packed {
    int64_t heads = 0, d = 0;
    std::vector<int64_t> lens_q, lens_k;
    std::vector<float> q, k, v;
};

struct Expected {
    std::vector<double> out, lse;  // [total_q, h, d], [h, total_q]
};

// Key j is visible to query i iff j <= i + (len_k - len_q) + right.
Expected attend(const Packed& p, double scale, int64_t right) {
    int64_t total_q = 0;
    for (const int64_t n : p.lens_q) total_q += n;
    Expected expected{std::vector<double>(p.q.size()), std::vector<double>(static_cast<size_t>(total_q * p.heads))};
    const auto at = [&p](int64_t row, int64_t head) { return static_cast<size_t>((row * p.heads + head) * p.d); };
    int64_t first_q = 0, first_k = 0;
    for (size_t s = 0; s < p.lens_q.size(); ++s) {
        for (int64_t i = 0; i < p.lens_q[s]; ++i) {
            for (int64_t h = 0; h < p.heads; ++h) {
                double sum = 0;
                std::vector<double> out(static_cast<size_t>(p.d));
                for (int64_t j = 0; j < p.lens_k[s] && j <= i + p.lens_k[s] - p.lens_q[s] + right; ++j) {
                    double x = 0;
                    for (size_t c = 0; c < out.size(); ++c)
                        x += double{p.q[at(first_q + i, h) + c]} * double{p.k[at(first_k + j, h) + c]};
                    const double weight = std::exp(scale * x);
                    sum += weight;
                    for (size_t c = 0; c < out.size(); ++c) out[c] += weight * double{p.v[at(first_k + j, h) + c]};
                }
                for (size_t c = 0; c < out.size(); ++c)
                    expected.out[at(first_q + i, h) + c] = sum > 0 ? out[c] / sum : 0;
                expected.lse[static_cast<size_t>(h * total_q + first_q + i)] = std::log(sum);
            }
        }
        first_q += p.lens_q[s];
        first_k += p.lens_k[s];
    }
    return expected;
}

std::vector<float> random_values(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    // bf16 holds these exactly.
    for (float& value : values) value = bf16_to_float(float_to_bf16(normal(random)));
    return values;
}

Packed random_problem(std::vector<int64_t> lens_q, std::vector<int64_t> lens_k, int64_t d) {
    Packed p{2, d, std::move(lens_q), std::move(lens_k), {}, {}, {}};
    const auto elements = [&p](const std::vector<int64_t>& lengths) {
        int64_t rows = 0;
        for (const int64_t n : lengths) rows += n;
        return static_cast<size_t>(rows * p.heads * p.d);
    };
    p.q = random_values(elements(p.lens_q), 1);
    p.k = random_values(elements(p.lens_k), 2);
    p.v = random_values(elements(p.lens_k), 3);
    return p;
}

std::vector<uint16_t> as_bf16(const std::vector<float>& values) {
    std::vector<uint16_t> bits;
    for (const float value : values) bits.push_back(float_to_bf16(value));
    return bits;
}

// tolerance: a few roundings of the output type at values of this size; what 1.10 asks is tested by check.
void expect_close(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
        if (std::isfinite(expected[i])) {
            EXPECT_NEAR(got[i], expected[i], tolerance) << "element " << i;
        } else {
            EXPECT_EQ(got[i], expected[i]) << "element " << i;
        }
    }
}

constexpr double kF32Tolerance = 1e-5;
constexpr double kBf16Tolerance = 3e-2;

// Dense f32 [1, s, h, d]: causal, another scale, log-sum-exp.
TEST_F(Cpu, RunComputesDense) {
    const Packed p = random_problem({7}, {5}, 16);
    Safetensors input;
    input.tensors = {{"q", stored("F32", {1, 7, 2, 16}, p.q)},
                     {"k", stored("F32", {1, 5, 2, 16}, p.k)},
                     {"v", stored("F32", {1, 5, 2, 16}, p.v)}};
    write_file(file("in"), input);
    const Result run = foveal("run " + file("in") + " -o " + file("out") + " --causal --lse --scale 0.5 --backend cpu");
    EXPECT_STATUS(run, 0);
    const ReadBack output(file("out"));
    ASSERT_EQ(output.size(), 2u);
    EXPECT_EQ(output["out"].shape, (std::vector<int64_t>{1, 7, 2, 16}));
    EXPECT_EQ(output["out"].dtype, "F32");
    EXPECT_EQ(output["lse"].shape, (std::vector<int64_t>{1, 2, 7}));
    const Expected expected = attend(p, 0.5, 0);
    expect_close(values_of(output["out"]), expected.out, kF32Tolerance);
    expect_close(values_of(output["lse"]), expected.lse, kF32Tolerance);
}

// Each option must change the result in its own way.
TEST_F(Cpu, RunHonoursTheMask) {
    const Packed p = random_problem({6}, {6}, 8);
    Safetensors input;
    input.tensors = {{"q", stored("F32", {1, 6, 2, 8}, p.q)},
                     {"k", stored("F32", {1, 6, 2, 8}, p.k)},
                     {"v", stored("F32", {1, 6, 2, 8}, p.v)}};
    write_file(file("in"), input);
    const auto lse_of = [this](const std::string& options) {
        const Result run = foveal("run " + file("in") + " -o " + file("out") + " --lse --backend cpu " + options);
        EXPECT_STATUS(run, 0);
        return values_of(ReadBack(file("out"))["lse"]);
    };
    const double scale = 1 / std::sqrt(8.0);
    expect_close(lse_of(""), attend(p, scale, 100).lse, kF32Tolerance);
    expect_close(lse_of("--causal"), attend(p, scale, 0).lse, kF32Tolerance);
    expect_close(lse_of("--window-right 0"), attend(p, scale, 0).lse, kF32Tolerance);
    expect_close(lse_of("--window-right 2"), attend(p, scale, 2).lse, kF32Tolerance);
    const std::vector<double> diagonal = lse_of("--causal --window-left 0");
    for (size_t i = 0; i < diagonal.size(); ++i) {
        double x = 0;
        const size_t head = i / 6, row = i % 6;
        for (size_t c = 0; c < 8; ++c)
            x += double{p.q[(row * 2 + head) * 8 + c]} * double{p.k[(row * 2 + head) * 8 + c]};
        EXPECT_NEAR(diagonal[i], x * scale, kF32Tolerance);
    }
}

TEST_F(Cpu, RunAlignsTopLeft) {
    const Packed p = random_problem({2}, {5}, 8);
    Safetensors input;
    input.tensors = {{"q", stored("F32", {1, 2, 2, 8}, p.q)},
                     {"k", stored("F32", {1, 5, 2, 8}, p.k)},
                     {"v", stored("F32", {1, 5, 2, 8}, p.v)}};
    write_file(file("in"), input);
    EXPECT_STATUS(foveal("run " + file("in") + " -o " + file("out") + " --causal --top-left --backend cpu"), 0);
    const std::vector<double> out = values_of(ReadBack(file("out"))["out"]);
    for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(out[c], double{p.v[c]}, kF32Tolerance) << "row 0 sees key 0 alone";
}

// Varlen bf16 with one cu_seqlens for both; d = 64, which either backend has.
void run_varlen(const std::string& backend, const std::string& in, const std::string& out) {
    const Packed p = random_problem({70, 0, 3}, {70, 0, 3}, 64);
    const std::vector<uint16_t> q = as_bf16(p.q), k = as_bf16(p.k), v = as_bf16(p.v);
    const std::vector<int32_t> cu = {0, 70, 70, 73};
    Safetensors input;
    input.tensors = {{"q", stored("BF16", {73, 2, 64}, q)},
                     {"k", stored("BF16", {73, 2, 64}, k)},
                     {"v", stored("BF16", {73, 2, 64}, v)},
                     {"cu_seqlens", stored("I32", {4}, cu)}};
    write_file(in, input);
    const Result run = foveal("run " + in + " -o " + out + " --causal --lse" + on(backend));
    EXPECT_STATUS(run, 0);
    const ReadBack output(out);
    const Expected expected = attend(p, 1 / std::sqrt(64.0), 0);
    EXPECT_EQ(output["out"].dtype, "BF16");
    expect_close(values_of(output["out"]), expected.out, kBf16Tolerance);
    expect_close(values_of(output["lse"]), expected.lse, 1e-3);
}

TEST_F(Cpu, RunComputesVarlen) { run_varlen(kBackend, file("in"), file("out")); }
TEST_F(Sm90, RunComputesVarlen) { run_varlen(kBackend, file("in"), file("out")); }

// Rows beyond seqused give 0, and -inf in the log-sum-exp; and cu_seqlens_q and cu_seqlens_k differ.
TEST_F(Cpu, RunHonoursLengths) {
    const Packed p = random_problem({3, 2}, {4, 6}, 8);
    const std::vector<int32_t> cu_q = {0, 3, 5}, cu_k = {0, 4, 10}, used_q = {3, 1}, used_k = {4, 6};
    Safetensors input;
    input.tensors = {{"q", stored("F32", {5, 2, 8}, p.q)},       {"k", stored("F32", {10, 2, 8}, p.k)},
                     {"v", stored("F32", {10, 2, 8}, p.v)},      {"cu_seqlens_q", stored("I32", {3}, cu_q)},
                     {"cu_seqlens_k", stored("I32", {3}, cu_k)}, {"seqused_q", stored("I32", {2}, used_q)},
                     {"seqused_k", stored("I32", {2}, used_k)}};
    write_file(file("in"), input);
    EXPECT_STATUS(foveal("run " + file("in") + " -o " + file("out") + " --lse --backend cpu"), 0);
    Expected expected = attend(p, 1 / std::sqrt(8.0), 100);
    std::fill(expected.out.begin() + 4 * 16, expected.out.end(), 0.0);
    for (const size_t head : {0u, 1u}) expected.lse[head * 5 + 4] = -std::numeric_limits<double>::infinity();
    const ReadBack output(file("out"));
    expect_close(values_of(output["out"]), expected.out, kF32Tolerance);
    expect_close(values_of(output["lse"]), expected.lse, kF32Tolerance);
}

// A header of odd length puts the data where no float may lie.
TEST_F(Cpu, RunReadsUnalignedData) {
    const Packed p = random_problem({3}, {3}, 8);
    std::string header =
        R"({"q":{"dtype":"F32","shape":[1,3,2,8],"data_offsets":[0,192]},"k":{"dtype":"F32","shape":[1,3,2,8],"data_offsets":[192,384]},)"
        R"("v":{"dtype":"F32","shape":[1,3,2,8],"data_offsets":[384,576]}})";
    while (header.size() % 4 != 1) header += ' ';
    {
        std::ofstream stream(file("in"), std::ios::binary);
        const uint64_t length = header.size();
        stream.write(reinterpret_cast<const char*>(&length), 8) << header;
        for (const auto* values : {&p.q, &p.k, &p.v}) stream.write(reinterpret_cast<const char*>(values->data()), 192);
    }
    EXPECT_STATUS(foveal("run " + file("in") + " -o " + file("out") + " --backend cpu"), 0);
    expect_close(values_of(ReadBack(file("out"))["out"]), attend(p, 1 / std::sqrt(8.0), 100).out, kF32Tolerance);
}

struct BadInput {
    const char* name;
    std::map<std::string, StoredTensor> change;  // of a good varlen file; no bytes and no dtype: removed
    const char* message;
};

// input: the good file, in which `bad` changes something.
void expect_refused(const BadInput& bad, Safetensors input, const std::string& in, const std::string& out) {
    for (const auto& [name, change] : bad.change) {
        if (change.dtype.empty()) {
            input.tensors.erase(name);
        } else {
            input.tensors[name] = change;
        }
    }
    write_file(in, input);
    const Result run = foveal("run " + in + " -o " + out + " --backend cpu");
    EXPECT_EQ(run.status, 1) << bad.name << "\n" << run.output;
    EXPECT_SAYS(run, bad.message) << bad.name;
    EXPECT_FALSE(fs::exists(out)) << bad.name;
}

TEST_F(Cpu, RunRefusesBadInputs) {
    const std::vector<float> rows(5 * 8), rank5(40);
    const std::vector<int32_t> good = {0, 3, 5}, late = {1, 3, 5}, early = {0, 3, 4}, falling = {0, 6, 5},
                               negative = {0, -1, 5}, beyond = {0, 3, 6}, used = {4, 1}, used_negative = {-1, 1},
                               zeros = {0, 0, 0};
    const std::vector<int64_t> wide = {0, 3, 5};
    const std::vector<uint16_t> slope = {0, 0};
    const StoredTensor tensor = stored("F32", {5, 1, 8}, rows);
    const StoredTensor removed{};
    std::vector<BadInput> inputs = {
        {"no q", {{"q", removed}}, "no tensor 'q'"},
        {"unknown tensor", {{"maks", tensor}}, "'maks' has no meaning here; known are q, k, v, cu_seqlens_q"},
        {"slopes of another type", {{"alibi_slopes", stored("BF16", {2}, slope)}}, "alibi_slopes.dtype"},
        {"a mask of another type", {{"mask", {"U8", {40}, std::as_bytes(std::span(rows)).first(40)}}}, "'mask' is U8"},
        {"no lengths", {{"cu_seqlens", removed}}, "FOVEAL_INVALID_ARGUMENT"},
        {"both forms of lengths", {{"cu_seqlens_q", stored("I32", {3}, good)}}, "both 'cu_seqlens' and 'cu_seqlens_q'"},
        {"lengths of 64 bits", {{"cu_seqlens", stored("I64", {3}, wide)}}, "'cu_seqlens' is I64"},
        {"begins late", {{"cu_seqlens", stored("I32", {3}, late)}}, "begins with 1"},
        {"ends early", {{"cu_seqlens", stored("I32", {3}, early)}}, "ends with 4, but there are 5 rows"},
        {"ends beyond", {{"cu_seqlens", stored("I32", {3}, beyond)}}, "ends with 6, but there are 5 rows"},
        {"falls", {{"cu_seqlens", stored("I32", {3}, falling)}}, "falls from 6 to 5 at entry 2"},
        {"negative", {{"cu_seqlens", stored("I32", {3}, negative)}}, "falls from 0 to -1 at entry 1"},
        {"empty", {{"cu_seqlens", {"I32", {0}, {}}}}, "FOVEAL_INVALID_ARGUMENT"},
        {"used too many",
         {{"seqused_k", stored("I32", {2}, used)}},
         "'seqused_k' is 4 at entry 0; the sequence has 3 rows"},
        {"used negative", {{"seqused_q", stored("I32", {2}, used_negative)}}, "'seqused_q' is -1 at entry 0"},
        {"rank 2", {{"q", stored("F32", {5, 8}, rows)}}, "q.rank is 2"},
        {"rank 5", {{"q", stored("F32", {5, 1, 1, 1, 8}, rank5)}}, "'q' has 5 dimensions"},
        {"scalar", {{"q", {"F32", {}, std::as_bytes(std::span(rows)).first(4)}}}, "'q' has 0 dimensions"},
        {"other dtype", {{"q", stored("I16", {5, 1, 16}, rows)}}, "'q' is I16"},
        {"mixed dtypes", {{"q", stored("BF16", {5, 1, 16}, rows)}}, "FOVEAL_INVALID_ARGUMENT"},
        {"other channels", {{"k", stored("F32", {5, 2, 4}, rows)}}, "FOVEAL_INVALID_ARGUMENT"},
    };
#if !defined(__SANITIZE_ADDRESS__)  // whose operator new ends the process where memory cannot be had
    inputs.push_back({"huge result",
                      {{"v", {"F32", {0, 1, int64_t{1} << 50}, {}}},
                       {"k", {"F32", {0, 1, 8}, {}}},
                       {"cu_seqlens", removed},
                       {"cu_seqlens_q", stored("I32", {3}, good)},
                       {"cu_seqlens_k", stored("I32", {3}, zeros)}},
                      "not enough memory"});
#endif
    for (const BadInput& bad : inputs) {
        Safetensors input;
        input.tensors = {{"q", tensor}, {"k", tensor}, {"v", tensor}, {"cu_seqlens", stored("I32", {3}, good)}};
        expect_refused(bad, input, file("in"), file("out"));
    }
}

TEST_F(Cpu, RunRefusesBadFiles) {
    const auto says = [this](const std::string& content, const std::string& message) {
        std::ofstream(file("in"), std::ios::binary) << content;
        const Result run = foveal("run " + file("in") + " -o " + file("out") + " --backend cpu");
        EXPECT_STATUS(run, 1);
        EXPECT_SAYS(run, message);
    };
    says("", "the file has 0 bytes");
    says(std::string("\xFF\0\0\0\0\0\0\0{}", 10), "is said to have 255 bytes");
    says(std::string("\2\0\0\0\0\0\0\0{}", 10), "no tensor 'q'");
    // What a file says does not steer the terminal, is no page long, and is not cut at a NUL.
    const auto empty_tensor = [](const std::string& name) {
        const std::string header = "{\"" + name + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})";
        return std::string{
                   static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8), 0, 0, 0, 0, 0, 0} +
               header;
    };
    says(empty_tensor("\\u001b[31m\\u0000x"), R"(it has '\x1b[31m\x00x' (--q NAME)");
    says(empty_tensor(std::string(2000, 'x')), "it has '" + std::string(120, 'x') + "...'");
    ASSERT_EQ(mkfifo(file("fifo").c_str(), 0600), 0);
    const Result fifo = foveal("run " + file("fifo") + " -o " + file("out") + " --backend cpu");
    EXPECT_STATUS(fifo, 1);
    EXPECT_SAYS(fifo, "cannot map what is no file");
    const Result missing = foveal("run " + file("missing") + " -o " + file("out") + " --backend cpu");
    EXPECT_STATUS(missing, 1);
    EXPECT_SAYS(missing, "cannot open");
}

}  // namespace
}  // namespace foveal_testing
