// foveal case and foveal suite: what other programs ask instead of reading the text of a case themselves.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/case.hpp"
#include "tests/support/suites.hpp"
#include "tests/tool/tool_fixture.hpp"

namespace foveal_testing {
namespace {

using Json = nlohmann::json;
using Names = std::vector<std::string>;

Json asked(const std::string& arguments) {
    const Result result = foveal(arguments);
    EXPECT_STATUS(result, 0);
    return Json::parse(result.output);
}

Json case_json(const std::string& text) { return asked("case --json \"" + text + "\""); }

TEST_F(Cpu, CaseAsJsonHasEveryField) {
    const Json c = case_json(
        "b2 sq5 sk9 hq4 hk2 d8 dv16 f16 left3 right2 topleft chunk4 softcap30 alibi_b sinks-2.5 bias_f32=1h bias_inf "
        "mask=b1 dropout0.25 dropstate=3,18446744073709551615 lse scale0.5 used_q=5,3 used_k=0,9 seed7 sd10 sink60@mid "
        "grow2 flat vmax vnan3 pad bhsd");
    const Json expected = Json::parse(R"({"operation": "forward", "batch": 2, "lengths_q": [5, 5], "lengths_k": [9, 9],
        "heads_q": 4, "heads_k": 2, "head_dim": 8, "head_dim_v": 16, "dtype": "f16", "varlen": false,
        "used_q": [5, 3], "used_k": [0, 9], "window_left": 3, "window_right": 2, "alignment": "top_left", "chunk": 4,
        "scale": 0.5, "softcap": 30.0, "alibi": "bh", "sinks": -2.5, "bias": "1h", "bias_f32": true, "bias_inf": true,
        "mask": "b1", "dropout": 0.25, "dropout_state": [3, 18446744073709551615], "lse": true, "seed": 7, "logit_sd": 10.0,
        "sink_keys": [{"nats": 60.0, "position": "middle"}], "grow_nats": 2.0, "flat": true, "vmax": true,
        "nan_value": 3, "pad": true, "bhsd": true, "qkv": false, "keys": null, "page_size": null, "csr": false,
        "pool": false, "common": 0, "page_order": 0, "query_offset": null, "tree": false,
        "keys_dtype": null, "out_f16": false, "descale": false, "one_descale": false, "row_descales": false})");
    for (const auto& [name, value] : expected.items()) EXPECT_EQ(c[name], value) << name;
    EXPECT_EQ(c.size(), expected.size() + 5) << "besides: text, options, visible_pairs, flops, bytes";
    EXPECT_EQ(
        c["options"],
        Json(Names{"used_q",  "used_k",        "window_left", "window_right", "alignment", "chunk",     "scale",
                   "softcap", "alibi",         "sinks",       "bias",         "bias_f32",  "bias_inf",  "mask",
                   "dropout", "dropout_state", "lse",         "seed",         "logit_sd",  "sink_keys", "grow_nats",
                   "flat",    "vmax",          "nan_value",   "pad",          "bhsd"}));
}

TEST_F(Cpu, CaseAsJsonOfAPlainCaseAsksForNothing) {
    const Json c = case_json("s40 h2");
    EXPECT_EQ(c["text"], "b1 s40 h2 d128 bf16 full");
    EXPECT_EQ(c["options"], Json::array());
    EXPECT_TRUE(c["window_left"].is_null() && c["window_right"].is_null() && c["scale"].is_null());
    EXPECT_EQ(case_json("s40 h2 causal")["options"], Json(Names{"window_right"}));
    EXPECT_EQ(case_json("varlen qlens=3,0 klens=5,2 h2")["options"], Json(Names{"varlen"}));
    EXPECT_EQ(case_json("s5 h2 qkv")["options"], Json(Names{"qkv"}));
}

TEST_F(Cpu, CaseAsJsonCountsTheWork) {
    const std::string text = "varlen qlens=4,0,6 klens=5,3,0 hq4 hk2 d8 dv16 f16 causal lse";
    const Json json = case_json(text);
    const Case c = parse_case(text);
    EXPECT_EQ(json["lengths_k"], Json(std::vector<int64_t>{5, 3, 0}));
    EXPECT_EQ(json["visible_pairs"], c.visible_pairs());
    EXPECT_EQ(json["flops"], c.flops());
    EXPECT_EQ(json["bytes"], c.min_bytes());
    EXPECT_TRUE(json["flops"].is_number_integer() && json["bytes"].is_number_integer());
}

TEST_F(Cpu, CaseKnowsMerges) {
    const Json c = asked("case --json merge parts4 b8 s4096 h32 d64 bf16 to_f32 lse odd");
    EXPECT_EQ(c["operation"], "merge");
    EXPECT_EQ(c["parts"], 4);
    EXPECT_EQ(c["out_dtype"], "f32");
    EXPECT_EQ(c["layout"], "odd");
    EXPECT_EQ(c["bytes"], 8 * 4096 * 32 * (4 * (64 * 2 + 4) + 64 * 4 + 4));
}

TEST_F(Cpu, CaseWithoutJsonIsForReaders) {
    const Result result = foveal("case b2 s9 hq4 hk2 d8 f32 causal");
    EXPECT_STATUS(result, 0);
    EXPECT_SAYS(result, "heads_q        4\n");
    EXPECT_SAYS(result, "options        [\"window_right\"]\n");
}

TEST_F(Cpu, SuitesAreListedByKind) {
    size_t speed = 0, correctness = 0;
    for (const Json& entry : asked("suite --json")) {
        const bool of_speed = entry["kind"] == "speed";
        of_speed ? ++speed : ++correctness;
        const Json suite = asked("suite " + entry["suite"].get<std::string>() + " --json --backend cpu");
        EXPECT_EQ(suite["kind"], entry["kind"]);
        EXPECT_EQ(suite["suite"], entry["suite"]);
        EXPECT_FALSE(suite["cases"].empty());
        if (of_speed) {
            EXPECT_EQ(suite["backend"], entry["backend"]);
        }
    }
    EXPECT_EQ(speed, speed_suites().size());
    EXPECT_EQ(correctness, correctness_suite_names().size());
    EXPECT_SAYS(foveal("suite"), "seed         speed        sm90\n");
    EXPECT_SAYS(foveal("suite seed"), "b128 s8192 hq32 hk8 d128 bf16 causal\n");
}

}  // namespace
}  // namespace foveal_testing
