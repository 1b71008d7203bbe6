#include <algorithm>

#include "tests/support/suites.hpp"

namespace foveal_testing {
namespace {

using Text = std::string;
using Texts = std::vector<Text>;

// What speed is judged by, and results files name (bench/results/): a list that changes is measured anew.

// Drawn evenly from 64 to 4096, once and for all.
constexpr const char* k16Lengths = "551,1372,2122,3960,2160,2714,3586,3967,484,3685,978,3729,2525,2609,2343,1786";

// Drawn evenly from 1 to 64, once and for all.
constexpr const char* k512Lengths =
    "16,41,14,29,54,63,57,31,1,11,15,37,13,58,2,63,41,27,51,33,45,46,49,10,44,12,38,37,59,19,40,4,48,47,60,55,12,"
    "52,64,15,55,63,51,34,54,62,4,29,17,7,14,55,61,19,62,30,16,59,61,33,52,40,62,52,56,26,38,35,2,5,20,59,63,47,26,"
    "34,63,60,64,56,5,38,41,59,13,57,34,58,24,55,62,9,35,64,48,13,25,53,19,58,2,12,1,58,11,26,32,16,6,35,46,20,1,"
    "41,63,18,29,61,17,38,11,54,21,18,40,53,50,20,26,49,2,14,50,10,7,45,46,4,4,61,42,39,58,42,16,64,60,22,20,27,56,"
    "44,59,30,9,52,5,26,23,6,7,58,25,62,3,17,28,18,21,24,50,35,55,54,11,50,40,24,45,23,34,60,64,54,37,60,23,42,62,"
    "57,16,36,13,28,30,1,12,59,43,53,24,4,46,21,46,28,15,36,28,38,35,17,13,34,13,56,22,14,8,46,24,14,41,36,9,38,41,"
    "21,34,33,9,2,53,33,54,2,8,13,31,3,40,16,13,45,41,59,5,52,41,28,60,55,16,48,33,50,38,46,8,56,4,37,43,38,16,39,"
    "54,41,3,44,26,8,15,21,16,16,5,17,46,39,4,55,17,46,54,50,49,31,54,29,17,24,4,51,33,19,30,3,3,36,62,54,34,41,18,"
    "12,23,5,34,44,41,8,2,32,61,8,29,20,52,47,30,36,44,26,48,46,59,59,61,40,25,21,53,20,63,1,46,53,5,23,11,39,48,"
    "34,18,13,3,28,40,6,51,49,21,14,11,19,50,43,34,40,6,25,21,38,38,37,46,18,50,25,2,62,55,46,22,4,23,41,19,21,4,"
    "15,1,48,9,48,39,28,20,32,17,14,42,63,14,10,49,34,39,16,45,61,64,16,32,46,59,45,11,9,12,64,40,34,29,22,42,56,"
    "43,42,64,52,41,23,26,60,29,45,45,53,49,28,20,57,17,56,35,43,16,41,35,57,34,19,35,30,43,19,16,35,38,59,52,52,3,"
    "43,53,44,13,64,27,55,46,43,8,52,23,2,35,33,17,43,54,61,62,44,2,5,29,16,35,42,3,27,59,36,48,11,25,2,13,20,43,"
    "29,60,27,22,40,11,54,18,14,4,35,54,6,24,30,61,44,44,45";

// Drawn evenly from 4 to 256, once and for all.
constexpr const char* k128Lengths =
    "34,85,132,247,135,169,224,247,30,230,61,233,157,163,146,111,204,150,144,219,191,202,200,129,196,201,154,116,"
    "65,4,161,24,32,77,213,29,119,6,212,232,179,129,177,84,57,105,68,93,254,241,95,210,100,194,135,167,23,189,91,"
    "26,146,141,78,77,121,40,228,169,184,187,151,83,10,221,185,98,97,122,112,27,106,232,153,145,131,226,33,112,133,"
    "209,196,225,157,228,129,105,238,138,70,220,111,148,241,255,126,135,136,210,10,151,61,200,37,213,16,250,184,"
    "137,231,175,30,187,163,113,124,40,127,230";

// Drawn evenly from 64 to 960, once and for all.
constexpr const char* k64Lengths =
    "185,391,578,588,726,944,169,292,679,700,633,494,866,650,624,926,812,859,850,566,833,855,664,515,309,66,692,"
    "146,177,358,900,164,524,75,898,765,566,759,385,279,470,321,420,429,888,449,827,589,717,142,804,412,155,634,"
    "614,363,358,532,208,724,784,797,655,380";

// Drawn from 128 to 32768, evenly in the logarithm, once and for all.
constexpr const char* kLogLengths =
    "146,5314,306,26544,1143,6909,12766,376,148,1859,172,1042,2231,10002,4487,1352,131,2918,9867,22051,3743,132,"
    "1958,1121,145,1444,31050,128,1951,2696,3014,3606,10048,3282,7459,1775,1419,3539,158,24665,20403,2105,309,"
    "1400,3024,9064,7620,7376,606,7234,5338,20825,580,800,271,142,1568,5497,753,350,410,443,686,253";

Text varlen(const char* lengths, const Text& rest) {
    return Text("varlen qlens=") + lengths + " klens=" + lengths + " " + rest;
}

// Each text causal and full.
Texts causal_and_full(const Texts& texts) {
    Texts both;
    for (const Text& text : texts) {
        both.push_back(text + " causal");
        both.push_back(text + " full");
    }
    return both;
}

Texts each(const Texts& heads, const Text& tail) {
    Texts texts;
    for (const Text& head : heads) texts.push_back(head + " " + tail);
    return texts;
}

Texts together(Texts first, const Texts& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

const Texts kFourLengths = {"b32 s512", "b16 s1024", "b4 s4096", "b1 s16384"};

// Few new tokens: on a long past, or in short sequences.
Texts chunk_texts() {
    const Text past = "hq32 hk8 d128 bf16 causal";
    return together(each({"b64 sq1 sk4096", "b64 sq16 sk4096", "b32 sq64 sk4096", "b8 sq200 sk8192", "b4 sq512 sk16384",
                          "b1 sq1000 sk32768"},
                         past),
                    {"b64 sq16 sk4096 hq28 hk4 d128 bf16 causal", "b64 sq16 sk4096 hq40 hk8 d128 bf16 causal",
                     "b64 sq16 sk4096 hq24 hk8 d128 bf16 causal", varlen(k512Lengths, past), varlen(k128Lengths, past),
                     varlen(k64Lengths, past)});
}

// One query token a sequence, on pasts of 1024 to 131072 keys.
const Texts kDecodeShapes = {"b1 sq1 sk1024",   "b1 sq1 sk4096",   "b1 sq1 sk16384",  "b1 sq1 sk131072",
                             "b8 sq1 sk1024",   "b8 sq1 sk4096",   "b8 sq1 sk16384",  "b8 sq1 sk65536",
                             "b32 sq1 sk1024",  "b32 sq1 sk4096",  "b32 sq1 sk16384", "b128 sq1 sk1024",
                             "b128 sq1 sk4096", "b128 sq1 sk16384"};
const Text kDecodeHeads = "hq32 hk8 d128 bf16 causal";

// And several tokens, more heads for each KV head, other head dimensions, lengths that differ.
Texts decode_texts() {
    const Texts others = {"b32 sq4 sk16384 hq32 hk8 d128", "b32 sq16 sk16384 hq32 hk8 d128",
                          "b32 sq1 sk16384 hq64 hk8 d128", "b32 sq1 sk16384 hq128 hk8 d128",
                          "b32 sq1 sk16384 hq32 hk8 d64",  "b32 sq1 sk16384 hq16 hk2 d256",
                          "b32 sq1 sk16384 hq8 hk1 d512",  Text("b64 sq1 klens=") + kLogLengths + " hq32 hk8 d128"};
    return together(each(kDecodeShapes, kDecodeHeads), each(others, "bf16 causal"));
}

Texts decode_paged_texts() {
    Texts texts;
    for (const Text page : {" page64", " page16"}) {
        texts = together(texts, each(kDecodeShapes, kDecodeHeads + page));
        texts.push_back("b64 sq1 sk32768 " + kDecodeHeads + " used_k=" + kLogLengths + page);
        texts.push_back("b32 sq4 sk16384 " + kDecodeHeads + page);
    }
    for (const Text shape : {"b32 sq1 sk16384", "b128 sq1 sk4096"})
        texts.push_back(shape + " " + kDecodeHeads + " page1");
    return texts;
}

// The same number several times, behind what there is.
Text repeated(Text list, int count, const Text& number) {
    for (int i = 0; i < count; ++i) list += (list.empty() ? "" : ",") + number;
    return list;
}

// Chunks of prompts and single tokens in one batch, as a server's step has them; and tokens or chunks alone.
Texts mixed_texts() {
    const auto step = [](const Text& queries, const Text& longest, const Text& keys) {
        return "varlen qlens=" + queries + " sk" + longest + " " + kDecodeHeads + " used_k=" + keys + " page64";
    };
    return {
        step(repeated("512,512", 62, "1"), "4096", repeated("512,2048", 62, "4096")),
        step(repeated("2048", 31, "1"), "16384", repeated("8192", 31, "16384")),
        step(repeated("1024,256", 126, "1"), "2048", repeated("1024,2048", 126, "2048")),
        step(repeated(repeated("256", 16, "4"), 16, "1"), "8192", repeated(repeated("2048", 16, "8192"), 16, "4096")),
        step(repeated("", 32, "1"), "4096", repeated("", 32, "4096")),
        step(repeated("", 8, "1"), "1024", repeated("", 8, "1024")),
        step(repeated("", 8, "4"), "16384", repeated("", 8, "16384")),
        step(repeated("", 8, "1024"), "1024", repeated("", 8, "1024"))};
}

// A prompt that all sequences share, and keys of their own.
Texts prefix_texts() {
    return {"b64 sq1 sk8704 hq32 hk8 d128 bf16 causal page64 common8192",
            "b64 sq1 sk2560 hq32 hk8 d128 bf16 causal page64 common2048",
            "b8 sq1 sk8704 hq32 hk8 d128 bf16 causal page64 common8192"};
}

// No powers of two: their tiles fit no whole number of turns.
Texts lengths_texts() {
    return together(each({"b8 s640", "b8 s896", "b8 s2176", "b8 s2944", "b16 s2411"}, "h16 d128 bf16 causal"),
                    each({"b4 s1664", "b16 s2411"}, "hq32 hk8 d128 bf16 causal"));
}

Texts softcap_texts() {
    Texts texts;
    for (const Text shape : {"b4 s4096 hq32 hk16 d128", "b1 s16384 hq32 hk16 d128", "b4 s4096 hq16 hk8 d256"})
        for (const Text option : {"", " softcap50"}) texts.push_back(shape + " bf16 causal" + option);
    return texts;
}

Texts cpu_texts() {
    Texts texts;
    for (const auto& [shape, mask] : {std::pair{"b1 s2048 h16 d64", " causal"},
                                      {"b1 s2048 h16 d128", " causal"},
                                      {"b1 s4096 h16 d64", " full"},
                                      {"b1 s128 h16 d64", " causal"}})
        for (const Text type : {" f32", " bf16"}) texts.push_back(shape + type + mask);
    return texts;
}

// As the suite of the same name without _cpu: a quarter of the heads, a sixteenth of the length.
Texts seed_cpu_texts() {
    Texts texts;
    for (const Text shape : {"b16 s128", "b8 s512", "b4 s1024", "b1 s2048"})
        for (const Text type : {"bf16", "f32"}) texts.push_back(shape + " hq8 hk2 d128 " + type + " causal");
    return texts;
}

// Decoding: one to eight queries a sequence on a past of 4096 or 32768 keys, any ratio of heads, both layouts.
Texts decode_cpu_texts() {
    Texts texts;
    for (const Text type : {" f32", " bf16", " f16"})
        for (const Text shape : {"b1 sq1 sk4096 h32 d128", "b1 sq1 sk4096 h12 d64", "b1 sq1 sk4096 h1 d128",
                                 "b1 sq1 sk4096 hq32 hk8 d128", "b1 sq1 sk4096 hq8 hk1 d128",
                                 "b1 sq1 sk4096 hq32 hk1 d128", "b1 sq1 sk4096 h8 d256", "b1 sq4 sk4096 hq32 hk8 d128",
                                 "b1 sq8 sk4096 h12 d64", "b8 sq1 sk4096 hq32 hk8 d128", "b1 sq1 sk512 h12 d64"})
            texts.push_back(shape + type + " full");
    for (const Text type : {" f32", " bf16", " f16"})
        for (const Text shape : {"b1 sq1 sk4096 h32 d128", "b1 sq1 sk4096 hq32 hk8 d128", "b1 sq1 sk512 h12 d64"})
            texts.push_back(shape + type + " full bhsd");
    for (const Text type : {" f32", " bf16"})
        for (const Text shape : {"b1 sq1 sk32768 hq32 hk8 d128", "b8 sq1 sk32768 hq8 hk2 d128"})
            texts.push_back(shape + type + " full");
    return texts;
}

Texts decode_paged_cpu_texts() {
    Texts texts;
    for (const Text type : {" f32", " bf16"})
        for (const Text page : {" page64", " page16", " page1"})
            for (const Text shape : {"b1 sq1 sk4096 hq32 hk8 d128", "b8 sq1 sk4096 hq8 hk2 d128"})
                texts.push_back(shape + type + " full" + page);
    return texts;
}

Texts grid_cpu_texts() {
    Texts texts;
    for (const Text type : {" f32", " bf16", " f16"})
        for (const Text channels : {" d64", " d128", " d256"})
            for (const Text shape : {"s128 h8", "s256 h8", "s512 h8", "s1024 h8", "s2048 h2", "s4096 h2"})
                for (const Text mask : {" causal", " full"}) texts.push_back("b1 " + shape + channels + type + mask);
    return texts;
}

const Texts kSixLengthsCpu = {"b32 s32", "b16 s64", "b8 s128", "b4 s256", "b2 s512", "b1 s1024"};

std::vector<SpeedSuite> make_speed_suites() {
    using enum TimedOn;
    const Text seed = "hq32 hk8 d128 bf16 causal";
    const Text seed_cpu = "hq8 hk2 d128 bf16 causal";
    return {
        {"seed", kGpu, each({"b128 s128", "b128 s512", "b128 s1024", "b128 s2048", "b32 s4096", "b128 s8192"}, seed)},
        {"single", kGpu, each({"b1 s1024", "b1 s4096", "b1 s16384", "b1 s65536"}, seed)},
        {"bars", kGpu, each({"b1 s16384", "b128 s1024", "b128 s128"}, seed)},
        {"mha", kGpu,
         causal_and_full(
             each({"b32 s512", "b16 s1024", "b8 s2048", "b4 s4096", "b2 s8192", "b1 s16384"}, "h16 d128 bf16"))},
        {"d64", kGpu,
         together(causal_and_full(each(kFourLengths, "h32 d64 bf16")), {"b8 s4096 hq32 hk8 d64 bf16 causal"})},
        {"d256", kGpu,
         together(causal_and_full(each(kFourLengths, "h8 d256 bf16")), {"b4 s4096 hq16 hk4 d256 bf16 causal"})},
        {"d192v128", kGpu, each({"b4 s4096", "b1 s16384"}, "h16 d192 dv128 bf16 causal")},
        {"d512", kGpu, causal_and_full(each({"b16 s1024", "b4 s4096", "b1 s16384"}, "h4 d512 bf16"))},
        {"varlen", kGpu,
         causal_and_full({varlen(k16Lengths, "hq32 hk8 d128 bf16"), varlen(k16Lengths, "h16 d128 bf16")})},
        {"chunk", kGpu, chunk_texts()},
        {"decode", kGpu, decode_texts()},
        {"decode_paged", kGpu, decode_paged_texts()},
        {"mixed", kGpu, mixed_texts()},
        {"prefix", kEither, prefix_texts()},
        {"lengths", kGpu, lengths_texts()},
        {"window",
         kGpu,
         {"b8 s4096 hq64 hk8 d64 bf16 left127 causal", "b4 s8192 hq32 hk8 d128 bf16 left1023 causal",
          "b1 s32768 hq32 hk8 d128 bf16 left4095 causal"}},
        {"softcap", kGpu, softcap_texts()},
        {"merge",
         kEither,
         {"merge parts2 b1 s16384 h32 d128 bf16", "merge parts4 b8 s4096 h32 d128 bf16",
          "merge parts4 b1 s4096 h32 d128 f32 lse", "merge parts4 b4 s4096 h16 d64 f16",
          "merge parts8 b64 s1 h32 d128 f32", "merge parts32 b1 s1 h32 d128 f32"}},
        {"append",
         kEither,
         {"append b1 s1 hq32 hk8 d128 bf16 page64", "append b32 s1 hq32 hk8 d128 bf16 page64",
          "append b128 s1 hq32 hk8 d128 bf16 page64", "append b256 s1 hq64 hk8 d128 bf16 page16",
          "append b128 s4 hq32 hk8 d128 bf16 page64", "append b1 s8192 hq32 hk8 d128 bf16 page64"}},
        {"cache_copy",
         kEither,
         {"copy_pages n1 hk8 d128 bf16 page64", "copy_pages n64 hk8 d128 bf16 page16",
          "copy_pages n512 hk8 d128 bf16 page64", "gather b1 s8192 hk8 d128 bf16 page64",
          "gather b64 s1024 hk8 d128 bf16 page16", "gather b8 s16384 hk8 d128 bf16 page64"}},
        {"cpu", kCpu, cpu_texts()},
        {"decode_cpu", kCpu, decode_cpu_texts()},
        {"decode_paged_cpu", kCpu, decode_paged_cpu_texts()},
        {"grid_cpu", kCpu, grid_cpu_texts()},
        {"seed_cpu", kCpu, seed_cpu_texts()},
        {"single_cpu", kCpu, each({"b1 s64", "b1 s256", "b1 s1024", "b1 s4096"}, seed_cpu)},
        {"mha_cpu", kCpu, causal_and_full(each(kSixLengthsCpu, "h4 d128 bf16"))},
        {"d64_cpu", kCpu,
         together(causal_and_full(each(kSixLengthsCpu, "h8 d64 bf16")), {"b8 s256 hq8 hk2 d64 bf16 causal"})},
    };
}

}  // namespace

const std::vector<SpeedSuite>& speed_suites() {
    static const std::vector<SpeedSuite> suites = make_speed_suites();
    return suites;
}

const SpeedSuite& speed_suite(std::string_view name) {
    const auto& all = speed_suites();
    const auto found = std::find_if(all.begin(), all.end(), [&](const SpeedSuite& s) { return s.name == name; });
    if (found != all.end()) return *found;
    Text known;
    for (const SpeedSuite& suite : all) known += (known.empty() ? "" : ", ") + suite.name;
    throw UnknownSuite("no speed suite is called '" + Text(name) + "'; there are " + known);
}

}  // namespace foveal_testing
