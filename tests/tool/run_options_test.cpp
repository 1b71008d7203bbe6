// foveal run: every option of the forward, judged by the oracle; names of tensors; types.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/case_words.hpp"
#include "tests/support/check.hpp"
#include "tests/tool/run_fixture.hpp"

namespace foveal_testing {
namespace {

int64_t element_bytes(const foveal_tensor& t) {
    return t.dtype == FOVEAL_BOOL || t.dtype == FOVEAL_E4M3 ? 1
           : t.dtype == FOVEAL_F32 || t.dtype == FOVEAL_I32 ? 4
                                                            : 2;
}

const char* dtype_text(foveal_dtype dtype) {
    static const std::map<foveal_dtype, const char*> texts = {{FOVEAL_F32, "F32"}, {FOVEAL_BF16, "BF16"},
                                                              {FOVEAL_F16, "F16"}, {FOVEAL_E4M3, "F8_E4M3"},
                                                              {FOVEAL_I32, "I32"}, {FOVEAL_BOOL, "BOOL"}};
    return texts.at(dtype);
}

// Calls visit(address of each element), in row-major order of the view.
template <class Visit>
void for_each_element(const foveal_tensor& t, const Visit& visit, int axis = 0, int64_t offset = 0) {
    if (axis == t.rank) return visit(static_cast<std::byte*>(t.data) + offset * element_bytes(t));
    for (int64_t i = 0; i < t.shape[axis]; ++i) for_each_element(t, visit, axis + 1, offset + i * t.stride[axis]);
}

// The inputs of a case, packed and under the names that the tool reads.
class CaseFile {
   public:
    explicit CaseFile(const foveal_forward_args& args) {
        add("q", args.q), add("k", args.k), add("v", args.v);
        add("cu_seqlens_q", args.cu_seqlens_q), add("cu_seqlens_k", args.cu_seqlens_k);
        add("seqused_q", args.seqused_q), add("seqused_k", args.seqused_k);
        add("alibi_slopes", args.alibi_slopes), add("sinks", args.sinks);
        add("bias", args.bias), add("mask", args.mask);
        add("q_descale", args.q_descale), add("k_descale", args.k_descale), add("v_descale", args.v_descale);
    }
    void write(const std::string& path) const { write_file(path, content_); }
    void rename(const std::string& from, const std::string& to) {
        content_.tensors[to] = content_.tensors.at(from);
        content_.tensors.erase(from);
    }

   private:
    void add(const std::string& name, const foveal_tensor& t) {
        if (t.rank == 0) return;
        std::vector<std::byte>& bytes = bytes_[name];
        for_each_element(t, [&](const std::byte* at) { bytes.insert(bytes.end(), at, at + element_bytes(t)); });
        content_.tensors[name] = {dtype_text(t.dtype), {t.shape, t.shape + t.rank}, bytes};
    }

    std::map<std::string, std::vector<std::byte>> bytes_;
    Safetensors content_;
};

std::string flags_of(const Case& c) {
    std::string flags;
    const auto number = [&flags](const char* flag, auto value) {
        flags += std::string(" ") + flag + " " + number_text(value);
    };
    if (c.window_left != FOVEAL_UNLIMITED) number("--window-left", c.window_left);
    if (c.window_right != FOVEAL_UNLIMITED) number("--window-right", c.window_right);
    if (c.chunk != 0) number("--chunk", c.chunk);
    if (c.softcap != 0) number("--softcap", c.softcap);
    if (c.scale) number("--scale", *c.scale);
    if (c.dropout != 0) {
        const auto [seed, offset] = c.dropout_state();
        number("--dropout", c.dropout);
        flags += " --dropout-state " + std::to_string(seed) + " " + std::to_string(offset);
    }
    if (c.top_left) flags += " --top-left";
    if (c.lse) flags += " --lse";
    if (c.out_f16) flags += " --out-dtype f16";
    return flags;
}

void take(const StoredTensor& from, const foveal_tensor& to) {
    ASSERT_EQ(from.shape, std::vector<int64_t>(to.shape, to.shape + to.rank));
    ASSERT_EQ(from.dtype, dtype_text(to.dtype));
    const std::byte* next = from.bytes.data();
    for_each_element(to, [&](std::byte* at) {
        std::memcpy(at, next, static_cast<size_t>(element_bytes(to)));
        next += element_bytes(to);
    });
}

// What the tool computes of a case's data is what the case is held to.
void expect_right(const std::string& text, const std::string& backend, const std::string& folder) {
    const std::unique_ptr<CaseData> data = make_case_data(parse_case(text), FOVEAL_BACKEND_CPU);
    CaseFile(data->args()).write(folder + "in");
    const Result run = foveal("run " + folder + "in -o " + folder + "out" + flags_of(data->the_case()) + on(backend));
    ASSERT_EQ(run.status, 0) << text << "\n" << run.output;
    const ReadBack output(folder + "out");
    take(output["out"], data->args().out);
    if (data->the_case().lse) take(output["lse"], data->args().lse);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << text << "\n" << verdict.failure;
}

// Each alone, so that one that is dropped is seen; then all.
const char* const kOptions[] = {
    "scale0.3",         "causal",
    "left1 right2",     "causal topleft",
    "chunk3",           "softcap0.5",
    "dropout0.25 lse",  "alibi",
    "alibi_b",          "sinks3",
    "bias=bh",          "bias_f32=1h",
    "bias=b1 bias_inf", "mask=b1",
    "mask=11 lse",      "scale0.3 left3 right2 chunk6 softcap2 alibi_b sinks bias_f32=bh mask=1h topleft lse",
};

void expect_dense_options(const std::string& backend, const std::string& types, const std::string& folder) {
    for (const char* options : kOptions) expect_right(types + options, backend, folder);
}

void expect_varlen_options(const std::string& backend, const std::string& types, const std::string& folder) {
    for (const char* options : {"causal lse", "softcap0.5", "alibi_b", "sinks", "left2 right0 topleft", "chunk3 lse"})
        expect_right(types + options, backend, folder);
}

TEST_F(Cpu, RunHasEveryOption) {
    expect_dense_options(kBackend, "b2 sq9 sk12 hq4 hk2 d8 dv4 f32 ", file(""));
    expect_dense_options(kBackend, "b2 sq9 sk12 hq4 hk2 d8 bf16 ", file(""));
    expect_varlen_options(kBackend, "varlen qlens=4,0,6 klens=5,3,7 hq4 hk2 d8 f16 ", file(""));
}

TEST_F(Cpu, RunReadsE4m3) {
    for (const char* type : {"e4m3 descale", "e4m3 out_f16 descale1", "bf16 kv_e4m3 descale", "f32 kv_e4m3"})
        for (const char* options : {" causal lse", " softcap0.5 mask=11"})
            expect_right(std::string("b2 sq9 sk12 hq4 hk2 d8 dv4 ") + type + options, kBackend, file(""));
}

TEST_F(Sm90, RunHasEveryOption) {
    expect_dense_options(kBackend, "b2 sq9 sk12 hq4 hk2 d64 bf16 ", file(""));
    expect_varlen_options(kBackend, "varlen qlens=4,0,6 klens=5,3,7 hq4 hk2 d64 f16 ", file(""));
}

// A dense file with a bias, for what is said of names.
class CpuNames : public Cpu {
   protected:
    CpuNames() : data_(make_case_data(parse_case("b2 sq5 sk7 hq4 hk2 d8 f32 bias=bh"), FOVEAL_BACKEND_CPU)) {
        EXPECT_EQ(foveal_forward(&data_->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    }

    Result run(const CaseFile& input, const std::string& options) const {
        input.write(file("in"));
        return foveal("run " + file("in") + " -o " + file("out") + " --backend cpu " + options);
    }

    std::vector<double> expected() const {
        std::vector<double> values;
        for_each_element(data_->args().out, [&values](const std::byte* at) {
            float value;
            std::memcpy(&value, at, sizeof value);
            values.push_back(double{value});
        });
        return values;
    }

    const std::unique_ptr<CaseData> data_;
};

TEST_F(CpuNames, RunTakesTensorsOfOtherNames) {
    CaseFile input(data_->args());
    input.rename("q", "layer.0.query");
    input.rename("bias", "positions");
    EXPECT_STATUS(run(input, "--q layer.0.query --bias positions"), 0);
    EXPECT_EQ(values_of(ReadBack(file("out"))["out"]), expected());
    const Result missing = run(input, "--bias positions");
    EXPECT_STATUS(missing, 1);
    EXPECT_SAYS(missing, "no tensor 'q'; it has 'k', 'layer.0.query', 'positions', 'v' (--q NAME takes another)");
    const Result misspelt = run(input, "--q layer.0.query --bias position");
    EXPECT_STATUS(misspelt, 1);
    EXPECT_SAYS(misspelt, "no tensor 'position'");
}

TEST_F(CpuNames, RunIgnoresNoTensorUnlessToldTo) {
    CaseFile input(data_->args());
    input.rename("bias", "extra");
    const Result unread = run(input, "");
    EXPECT_STATUS(unread, 1);
    EXPECT_SAYS(unread, "'extra' has no meaning here");
    EXPECT_SAYS(unread, "--ignore 'extra'");
    EXPECT_FALSE(fs::exists(file("out")));
    EXPECT_STATUS(run(input, "--ignore extra"), 0);
    const std::vector<double> plain = values_of(ReadBack(file("out"))["out"]);
    EXPECT_NE(plain, expected());
    EXPECT_STATUS(run(input, "--ignore-others"), 0);
    EXPECT_EQ(values_of(ReadBack(file("out"))["out"]), plain);
    input.rename("extra", "bias");
    EXPECT_STATUS(run(input, "--ignore-others"), 0);
    EXPECT_EQ(values_of(ReadBack(file("out"))["out"]), expected()) << "a bias is no other";
    EXPECT_STATUS(run(input, "--ignore bias"), 0);
    EXPECT_EQ(values_of(ReadBack(file("out"))["out"]), plain);
    EXPECT_STATUS(run(input, "--ignore bais"), 1);
    EXPECT_STATUS(run(input, "--ignore bias --bias bias"), 2);
    // A name that a flag gives away to another tensor is read by nobody.
    const Result given_away = run(input, "--v k");
    EXPECT_STATUS(given_away, 1);
    EXPECT_SAYS(given_away, "'v'");
}

TEST_F(CpuNames, RunRoundsToOtherTypes) {
    const CaseFile input(data_->args());
    EXPECT_STATUS(run(input, "--out-dtype bf16"), 0);
    {
        const ReadBack output(file("out"));
        EXPECT_EQ(output["out"].dtype, "BF16");
        std::vector<double> rounded = expected();
        for (double& value : rounded) value = round_to(FOVEAL_BF16, value);
        EXPECT_EQ(values_of(output["out"]), rounded);
    }
    EXPECT_STATUS(run(input, "--dtype bf16"), 0);
    EXPECT_EQ(ReadBack(file("out"))["out"].dtype, "BF16");
    EXPECT_STATUS(run(input, "--dtype f16 --out-dtype f32"), 0);
    const ReadBack output(file("out"));
    EXPECT_EQ(output["out"].dtype, "F32");
    for (const double value : values_of(output["out"])) EXPECT_EQ(value, round_to(FOVEAL_F16, value));
    EXPECT_STATUS(run(input, "--dtype f64"), 2);
}

// The same bits as of a file in that type.
TEST_F(Cpu, RunComputesInAnotherType) {
    const auto result_of = [this](const std::string& text, const std::string& options) {
        const std::unique_ptr<CaseData> data = make_case_data(parse_case(text), FOVEAL_BACKEND_CPU);
        CaseFile(data->args()).write(file("in"));
        EXPECT_STATUS(foveal("run " + file("in") + " -o " + file("out") + " --backend cpu" + options), 0);
        return values_of(ReadBack(file("out"))["out"]);
    };
    const std::string shape = "b1 s7 h2 d8 bias=bh ";  // the same random values, rounded to the case's type
    EXPECT_EQ(result_of(shape + "bf16", " --dtype f16"), result_of(shape + "bf16", " --dtype f16 --out-dtype f32"));
    EXPECT_NE(result_of(shape + "bf16", ""), result_of(shape + "bf16", " --dtype f16"));
    EXPECT_EQ(result_of(shape + "bf16", " --dtype bf16"), result_of(shape + "bf16", ""));
}

TEST_F(Cpu, RunRefusesNumbersThatAreNone) {
    for (const char* options : {"--softcap nan", "--softcap inf", "--softcap 1e-60", "--softcap x", "--softcap ''",
                                "--scale nan", "--scale 1e39", "--scale 1e-60", "--chunk -1", "--chunk x",
                                "--window-left 1.5", "--window-left 99999999999999999999"}) {
        const Result run = foveal(std::string("run in -o out ") + options);
        EXPECT_EQ(run.status, 2) << options << "\n" << run.output;
    }
    const std::unique_ptr<CaseData> data = make_case_data(parse_case("s5 h1 d8 f32"), FOVEAL_BACKEND_CPU);
    CaseFile(data->args()).write(file("in"));
    const Result negative = foveal("run " + file("in") + " -o " + file("out") + " --softcap -3 --backend cpu");
    EXPECT_STATUS(negative, 1);
    EXPECT_SAYS(negative, "FOVEAL_INVALID_ARGUMENT: softcap is -3");
}

TEST_F(Cpu, RunHelpNamesEveryTensorAndItsFlag) {
    const Result help = foveal("run --help");
    for (const std::string name : {"q", "k", "v", "cu_seqlens", "cu_seqlens_q", "cu_seqlens_k", "seqused_q",
                                   "seqused_k", "alibi_slopes", "sinks", "bias", "mask"}) {
        EXPECT_SAYS(help, "\n  " + name + " ");
        std::string flag = "  --" + name + " NAME ";
        std::replace(flag.begin(), flag.end(), '_', '-');
        EXPECT_SAYS(help, flag);
    }
}

}  // namespace
}  // namespace foveal_testing
