#include <array>
#include <functional>
#include <random>
#include <utility>

#include "tests/support/check.hpp"
#include "tests/support/grid.hpp"
#include "tests/support/suites.hpp"

namespace foveal_testing {
namespace {

using Text = std::string;

// What one checked case may cost on the CPU, in useful FLOPs: the whole list takes under a minute on two cores.
constexpr double kMaxCheckFlopsCpu = 2e9;

class List {
   public:
    void add(const Text& text) { cases_.push_back(parse_case(text)); }
    // Each of the alternatives in turn, after what comes before.
    void add_each(const Text& head, const std::vector<Text>& alternatives) {
        for (const Text& tail : alternatives) add(head + " " + tail);
    }
    std::vector<Case> take() { return std::move(cases_); }

   private:
    std::vector<Case> cases_;
};

// Lengths around the edges of 64- and 128-row tiles, multiples of nothing, single rows, one side much longer.
const std::vector<std::pair<int, int>>& length_pairs() {
    static const std::vector<std::pair<int, int>> pairs = {
        {1, 1},     {1, 2},     {2, 1},      {3, 513},    {64, 64},     {64, 128},  {63, 65},     {65, 63},
        {113, 203}, {113, 211}, {108, 256},  {256, 512},  {128, 217},   {239, 1},   {799, 3},     {127, 127},
        {127, 128}, {128, 127}, {128, 128},  {128, 129},  {129, 128},   {129, 129}, {191, 193},   {192, 192},
        {193, 191}, {255, 257}, {256, 256},  {257, 255},  {383, 385},   {512, 256}, {1023, 1024}, {1024, 1023},
        {1, 4096},  {64, 4096}, {129, 2048}, {2048, 129}, {4224, 4224},
    };
    return pairs;
}

Text lengths_text(std::pair<int, int> lengths) {
    return "sq" + std::to_string(lengths.first) + " sk" + std::to_string(lengths.second);
}

// Every pair of lengths under every mask; heads, batch and LSE turn with the index so that each value meets each mask.
// every_type: in each type; else the types take turns.
void add_lengths(List& list, const Text& head_dim, const std::vector<Text>& types, bool every_type) {
    static const std::vector<Text> masks = {"full", "causal", "causal topleft"};
    static const std::vector<Text> heads = {"h3", "hq4 hk2", "hq6 hk2", "hq5 hk1", "hq8 hk1", "h2"};
    size_t turn = 0;
    for (size_t n = 0; n < length_pairs().size(); ++n) {
        for (size_t m = 0; m < masks.size(); ++m) {
            for (size_t t = 0; t < types.size(); ++t) {
                if (!every_type && (n + m) % types.size() != t) continue;
                const Text batch = turn % 2 ? "b2 " : "b1 ";
                const Text lse = turn % 3 ? " lse" : "";
                list.add(batch + lengths_text(length_pairs()[n]) + " " + heads[turn % heads.size()] + " " + head_dim +
                         " " + types[t] + " " + masks[m] + lse);
                ++turn;
            }
        }
    }
}

void add_heads(List& list, const Text& head_dim, const std::vector<Text>& types) {
    for (const Text heads :
         {"h1", "h4", "hq4 hk2", "hq6 hk2", "hq5 hk1", "hq10 hk2", "hq16 hk2", "hq32 hk8", "hq32 hk1"}) {
        for (const Text& type : types) {
            list.add_each("b2 sq200 sk300 " + heads + " " + head_dim + " " + type,
                          {"full lse", "causal", "causal topleft lse"});
            list.add("varlen qlens=5,70,130 klens=64,7,300 " + heads + " " + head_dim + " " + type + " causal lse");
        }
    }
}

void add_varlen(List& list, const Text& head_dim, const std::vector<Text>& types) {
    for (const Text& type : types) {
        const Text tail = " hq4 hk2 " + head_dim + " " + type;
        for (const Text lengths :
             {"qlens=113 klens=203", "qlens=113,64,1 klens=203,64,5", "qlens=128,128 klens=128,128",
              "qlens=1,2,3,4,5,6,7,8 klens=8,7,6,5,4,3,2,1", "qlens=127,129,64 klens=129,127,65",
              "qlens=500,3,260 klens=600,700,260", "qlens=1024,1023 klens=1023,1024"}) {
            list.add_each("varlen " + lengths + tail,
                          {"full", "full lse", "causal lse", "causal", "causal topleft lse"});
        }
    }
}

// Every multiple of 8 that sm90 has a tile for, and some pairs of their own for q and v; the types take turns.
void add_head_dims(List& list, const std::vector<Text>& types) {
    std::vector<Text> dims;
    for (int d = 8; d <= 256; d += 8) dims.push_back("d" + std::to_string(d));
    for (const Text dim :
         {"d264", "d384", "d512", "d512 dv64", "d64 dv512", "d320 dv456", "d192 dv128", "d128 dv192", "d64 dv128",
          "d128 dv64", "d40 dv24", "d8 dv256", "d256 dv8", "d96 dv160", "d72 dv136", "d256 dv128", "d200 dv248"})
        dims.push_back(dim);
    for (size_t n = 0; n < dims.size(); ++n) {
        const Text tail = " hq4 hk2 " + dims[n] + " ";
        list.add_each("b2 sq200 sk300" + tail + types[n % types.size()], {"full", "causal lse"});
        list.add("varlen qlens=5,70,130 klens=64,7,300" + tail + types[(n + 1) % types.size()] + " causal pad");
    }
}

std::vector<Case> correctness(const std::vector<Text>& types, bool every_type) {
    List list;
    for (const Text head_dim : {"d128", "d64"}) {
        add_lengths(list, head_dim, types, every_type);
        add_heads(list, head_dim, types);
        add_varlen(list, head_dim, types);
    }
    add_head_dims(list, types);
    return list.take();
}

void add_empty(List& list, const Text& shape) {
    list.add_each("b2 " + shape, {"sq0 sk0", "sq5 sk0 lse", "sq0 sk5 lse", "sq300 sk0 causal lse"});
    list.add_each("b0 " + shape, {"s128 lse", "s0", "sq3 sk5 causal"});
    list.add_each("varlen " + shape,
                  {"qlens= klens= lse", "qlens=0,0 klens=0,0 lse", "qlens=0,0 klens=3,5 lse", "qlens=3,5 klens=0,0 lse",
                   "qlens=0,7,0,130,1 klens=9,0,0,70,1 causal lse", "qlens=0,1,0,64,129,0 klens=0,0,1,65,300,0 lse",
                   "qlens=200,1,1 klens=1,200,0 causal lse", "qlens=200,1,1 klens=1,200,0 causal topleft lse"});
    // More queries than keys: bottom-right causal leaves the first rows without a key.
    list.add_each("b2 " + shape + " causal lse", {"sq300 sk7", "sq257 sk128", "sq129 sk1", "sq64 sk63", "sq640 sk130"});
    list.add_each("b2 " + shape + " causal topleft lse", {"sq300 sk7", "sq7 sk300"});
}

Text repeated_lengths(int count, int modulo, int offset, uint32_t seed) {
    std::mt19937 random(seed);
    Text text;
    for (int i = 0; i < count; ++i) {
        if (i > 0) text += ',';
        text += std::to_string(offset + static_cast<int>(random() % static_cast<unsigned>(modulo)));
    }
    return text;
}

void add_batches(List& list, const Text& shape) {
    list.add_each("b9 s65 " + shape, {"full lse", "causal"});
    list.add("b1000 sq3 sk5 " + shape + " causal lse");
    list.add("varlen qlens=" + repeated_lengths(1000, 9, 0, 1) + " klens=" + repeated_lengths(1000, 13, 0, 2) + " " +
             shape + " causal lse");
    list.add("varlen qlens=" + repeated_lengths(40, 200, 0, 3) + " klens=" + repeated_lengths(40, 300, 0, 4) + " " +
             shape + " lse");
}

void add_memory(List& list, const Text& shape) {
    list.add_each("b3 sq130 sk201 " + shape + " causal lse", {"pad", "bhsd", "pad bhsd"});
    list.add_each("b2 sq64 sk128 " + shape + " lse", {"pad", "bhsd", "pad bhsd"});
    list.add_each("varlen qlens=5,0,70,1 klens=64,3,7,300 " + shape + " lse", {"pad", "bhsd", "pad bhsd causal"});
    list.add_each("b3 sq130 sk201 " + shape + " lse used_q=130,1,77",
                  {"used_k=201,64,0", "used_k=0,1,200 causal", "pad causal topleft"});
    list.add_each("b3 sq130 sk201 " + shape + " lse used_k=65,0,200", {"full", "causal", "bhsd causal topleft"});
    list.add("varlen qlens=64,0,70,9 klens=64,3,70,300 " + shape + " lse causal used_q=3,0,70,0 used_k=60,3,1,129");
    list.add("varlen qlens=64,0,70,9 klens=64,3,70,300 " + shape + " lse pad used_k=0,0,65,299");
}

void add_scales(List& list, const Text& shape) {
    list.add_each("b1 sq100 sk150 " + shape + " lse",
                  {"scale0", "scale-0.1", "scale1", "scale1e-5 sd1", "scale100 sd1 causal"});
}

void add_windows(List& list, const Text& shape) {
    list.add_each("b2 sq200 sk330 " + shape + " lse",
                  {"left0 right0", "left5 right3", "left64 causal", "left127 right128", "left20", "right70",
                   "left100 causal topleft", "right7 topleft"});
    list.add_each("b2 sq330 sk200 " + shape + " lse", {"left0 right0", "left64 causal", "left200 right1 topleft"});
    list.add("varlen qlens=5,0,70,300 klens=64,3,7,130 " + shape + " lse left33 right2");
}

// Inputs on which a softmax that is not anchored on the row's own maximum goes wrong.
void add_distributions(List& list, const Text& shape) {
    const std::vector<Text> masks = {"full lse", "causal lse"};
    for (const Text sd : {"sd0.3", "sd1", "sd3", "sd10", "sd30"}) {
        list.add_each("b1 s640 " + shape + " " + sd, masks);
        list.add("varlen qlens=129,300 klens=400,300 " + shape + " " + sd + " causal");
    }
    for (const Text nats : {"20", "60", "200"}) {
        for (const Text where : {"@0", "@mid", "@last"})
            list.add_each("b1 s640 " + shape + " sink" + nats + where, masks);
        list.add("b1 sq64 sk1000 " + shape + " sink" + nats + "@0 sink" + nats + "@last causal");
        list.add("b1 s640 " + shape + " sink-" + nats + "@0 causal lse");  // all that the first row sees is far below
    }
    list.add_each("b1 s640 " + shape, {"grow2 causal lse", "grow20 causal lse", "grow100 causal", "grow100 full lse",
                                       "grow-100 causal lse", "grow400 causal", "flat causal lse", "flat full"});
    list.add_each("b1 s640 " + shape + " vmax",
                  {"causal", "sink60@mid causal", "sink60@last full", "grow20 causal", "sd10 full"});
}

// Each option of the scores under the plain masks, and all of them together.
void add_score_options(List& list, const Text& shape) {
    for (const Text option : {"softcap30",
                              "softcap2",
                              "alibi",
                              "alibi_b",
                              "sinks",
                              "sinks5",
                              "sinks-5",
                              "bias=bh",
                              "bias=b1",
                              "bias=1h",
                              "bias=11",
                              "mask=bh",
                              "mask=b1",
                              "mask=1h",
                              "mask=11",
                              "bias=bh bias_inf",
                              "bias_f32=b1",
                              "bias_f32=1h bias_inf",
                              "softcap5 alibi",
                              "alibi bias=bh",
                              "softcap5 sinks mask=bh",
                              "sinks bias=b1 bias_inf",
                              "softcap5 alibi_b sinks bias=bh bias_inf mask=1h"}) {
        list.add_each("b2 sq200 sk330 " + shape + " lse " + option, {"full", "causal"});
        list.add("b2 sq330 sk200 " + shape + " causal " + option);
        list.add("b3 sq130 sk201 " + shape + " lse pad left70 right20 used_q=130,1,77 used_k=201,0,130 " + option);
    }
    for (const Text option : {"softcap30", "alibi", "alibi_b", "sinks", "softcap5 alibi_b sinks1"}) {
        list.add_each("varlen qlens=5,0,70,300 klens=64,3,7,130 " + shape + " lse " + option,
                      {"full", "causal", "causal topleft", "left33 right2", "chunk50 causal"});
    }
    for (const Text type_free : {"softcap30", "alibi", "sinks", "mask=11", "bias=11"}) {
        list.add_each("b2 sq100 sk150 " + shape + " lse " + type_free,
                      {"scale-0.1", "scale0", "flat", "sink60@mid causal"});
    }
}

// Softcap by the polynomial, by tanh, and by both in one block.
void add_softcap(List& list, const Text& shape) {
    list.add_each("b1 s640 " + shape, {"softcap30 sd3 causal lse", "softcap30 sd4 causal", "softcap30 sd4 full lse",
                                       "softcap50 sd10 causal", "softcap30 sd30 left200 right9 lse",
                                       "softcap30 sink60@mid causal", "softcap30 sink60@last full lse",
                                       "softcap300 grow20 causal lse", "softcap1e5 causal", "softcap2e6 full lse"});
    list.add("varlen qlens=330,200,640 klens=330,640,200 " + shape + " softcap30 sd4 causal lse");
}

void add_chunks(List& list, const Text& shape) {
    list.add_each("b2 sq200 sk330 " + shape + " lse",
                  {"chunk1", "chunk64", "chunk65 causal", "chunk128 topleft", "chunk100 left70 right20", "chunk1000"});
    list.add_each("b2 sq330 sk200 " + shape + " lse", {"chunk64 causal", "chunk100", "chunk90 causal topleft"});
    list.add("varlen qlens=5,0,70,300 klens=64,3,7,130 " + shape + " lse chunk33 causal");
}

// Keys that no row of their sequence sees, before and after those that some do: there K and V hold NaN and infinities.
void add_unseen(List& list, const Text& shape) {
    const std::vector<Text> masks = {"causal topleft", "left33 causal",          "left33 right2",
                                     "chunk100",       "left20 right30 topleft", "chunk90 left40 topleft"};
    list.add_each("b2 sq10 sk40 " + shape + " lse", masks);
    list.add_each("b3 sq70 sk1000 " + shape, masks);
    list.add_each("b1 sq300 sk1000 " + shape + " lse used_q=211 used_k=900", masks);
    list.add_each("varlen qlens=5,70,0,300,129 klens=64,1000,9,130,500 " + shape + " lse", masks);
    for (const Text option : {"softcap30", "softcap30 sd10", "alibi", "sinks", "bias=bh", "mask=bh", "scale-0.1"})
        list.add_each("b2 sq70 sk333 " + shape + " lse " + option, {"causal topleft", "left33 causal", "chunk64"});
}

// NaN in V at a key that some rows see: which rows it reaches, which it may, and which not.
void add_nan_values(List& list, const Text& shape) {
    list.add_each("b2 s300 " + shape + " lse", {"causal vnan100", "causal vnan299", "left70 right20 vnan150",
                                                "causal topleft vnan128", "chunk100 vnan150", "full vnan7"});
    list.add_each("b2 sq130 sk400 " + shape, {"causal vnan333", "left40 causal vnan280", "left40 right9 vnan390"});
    list.add_each("b2 sq400 sk70 " + shape + " lse",
                  {"causal vnan3", "causal sinks vnan69", "left30 right9 topleft vnan68", "chunk64 vnan10"});
    list.add_each("varlen qlens=300,5,130,0,400 klens=300,64,400,9,70 " + shape + " lse",
                  {"causal vnan5", "left33 right2 vnan68", "causal topleft vnan3", "chunk50 causal vnan60"});
    for (const Text option : {"softcap30", "alibi", "sinks", "bias=bh", "bias=bh bias_inf", "mask=bh", "mask=bh sinks"})
        list.add_each("b2 sq200 sk330 " + shape + " lse " + option, {"causal vnan250", "left40 right9 vnan150"});
}

void add_packed(List& list, const Text& shape) {
    list.add_each("b3 s130 " + shape + " lse qkv", {"full", "causal", "pad causal", "bhsd"});
    list.add_each("varlen qlens=64,0,70,9 klens=64,0,70,9 " + shape + " lse qkv", {"full", "causal", "pad causal"});
}

// Single tokens, a few of them and chunks of prompts in one batch.
void add_mixed(List& list, const Text& shape) {
    const Text queries = "varlen qlens=1,16,2,70,0,1,4,9", keys = "700,90,300,70,5,0,700,9";
    list.add_each(queries + " sk700 used_k=" + keys + " " + shape + " lse",
                  {"full", "causal page16", "causal page64 csr", "causal page1", "left40 causal page48", "sinks page8",
                   "causal tree page16", "softcap20 causal page64", "alibi page16", "chunk64 causal page17"});
    list.add_each(queries + " klens=" + keys + " " + shape + " lse",
                  {"full", "causal", "causal used_q=1,3,0,5,0,1,4,1"});
}

// Logits at the ends of the range of the type's products, with and without the options.
void add_extremes(List& list, const Text& shape, const Text& type) {
    const Text far = type == "f16" ? "1e4" : "1e30";
    for (const Text option : {"full", "softcap30", "alibi", "sinks", "bias=11 bias_inf", "mask=11"}) {
        list.add_each("b1 sq70 sk330 " + shape + " " + option,
                      {"lse sd" + far, "lse sink" + far + "@mid", "lse sink-" + far + "@0"});
        list.add("b1 sq70 sk330 " + shape + " flat sd" + far + " " + option);  // no lse: products cancel in it
    }
}

// Every form, mask and option in e4m3; the other lists have what no element type changes.
void add_e4m3(List& list) {
    for (const Text type : {"e4m3 descale", "e4m3 out_f16 descale1", "bf16 kv_e4m3 descale", "f16 kv_e4m3 descale1",
                            "f32 kv_e4m3 descale"}) {
        const Text shape = "hq4 hk2 d64 " + type;
        add_empty(list, shape);
        add_memory(list, shape);
        add_windows(list, shape);
        add_unseen(list, shape);
        add_nan_values(list, shape);
        add_chunks(list, shape);
        add_score_options(list, shape);
        list.add_each("b3 sq70 sk333 used_k=333,0,64 lse causal " + shape,
                      {"page16", "page64 pool", "page17 csr bhsd"});
        list.add_each("b2 sq1 sk1500 lse " + shape,
                      {"full", "left900 causal", "page64 used_k=1500,700", "qoff=3,2000"});
        list.add_each("b1 s640 " + shape,
                      {"sd0.3 causal", "sd10 causal lse", "sd30 full", "flat causal", "vmax causal"});
    }
    for (const Text type : {"e4m3", "bf16 kv_e4m3", "f16 kv_e4m3"})
        for (const Text channels : {"d1", "d7", "d40 dv24", "d96", "d129 dv3", "d256", "d512 dv64"})
            list.add_each("b2 sq33 sk70 hq4 hk2 " + channels + " " + type + " lse", {"full", "causal descale pad"});
    for (const Text type :
         {"e4m3 descale_rows", "bf16 kv_e4m3 descale_rows", "f16 kv_e4m3 descale_rows", "f32 kv_e4m3 descale_rows"}) {
        list.add_each("b3 sq70 sk333 used_k=333,0,64 hq4 hk2 d64 lse causal " + type,
                      {"pad", "page16", "page64 pool", "page17 csr bhsd", "left9 page16 vnan40"});
        list.add_each("b2 sq1 sk1500 hq8 hk2 d40 dv129 lse " + type,
                      {"full", "left900 causal", "page64 used_k=1500,700", "page16 common64 used_k=1500,700"});
    }
    list.add_each("b3 s130 hq4 hk2 d64 e4m3 descale lse qkv", {"full", "causal", "pad causal", "bhsd"});
    list.add_each("varlen qlens=5,1,70,1 sk300 used_k=300,9,0,64 hq8 hk1 d64 bf16 kv_e4m3 descale lse causal",
                  {"page8", "tree page64"});
}

// Caches in e4m3 under q of 16 bits, whose channels are whole vectors.
void add_e4m3_caches(List& list) {
    for (const Text type : {"bf16 kv_e4m3 descale", "f16 kv_e4m3 descale1", "bf16 kv_e4m3 descale_rows"})
        for (const Text shape : {"hq8 hk2 d64 ", "hq4 hk4 d128 ", "hq16 hk1 d256 ", "hq4 hk1 d48 dv96 "})
            list.add_each("b3 sk1500 used_k=1500,0,700 lse " + shape + type,
                          {"sq1 full", "sq1 page64", "sq1 left900 causal page16", "sq3 causal page17 csr bhsd",
                           "sq1 softcap20 page8", "sq2 alibi sinks causal page1", "sq1 page128 vnan600 pad"});
}

std::vector<Case> corner(const std::vector<Text>& types, bool gpu) {
    List list;
    for (const Text& type : types) {
        for (const Text head_dim : {"d128", "d64"}) {
            const Text shape = "hq4 hk2 " + head_dim + " " + type;
            add_empty(list, shape);
            add_batches(list, shape);
            add_memory(list, shape);
            add_windows(list, shape);
            add_scales(list, shape);
            add_distributions(list, shape);
            add_mixed(list, shape);
            if (!gpu && head_dim == "d128") continue;  // on the CPU no option knows the head dimension
            add_unseen(list, shape);
            add_nan_values(list, shape);
            add_score_options(list, shape);
            add_softcap(list, shape);
            add_chunks(list, shape);
            add_packed(list, shape);
            add_extremes(list, shape, type);
        }
    }
    for (const Text& type : gpu ? types : std::vector<Text>{}) {
        for (const Text shape : {"hq8 hk1 d128 ", "h2 d256 ", "h2 d192 dv128 ", "h2 d512 "}) {
            add_unseen(list, shape + type);
            add_nan_values(list, shape + type);
            add_mixed(list, shape + type);
        }
    }
    if (gpu)
        add_e4m3_caches(list);
    else
        add_e4m3(list);
    // Shapes for the CPU alone: odd channels, d_v of its own.
    for (const Text& type : types) {
        for (const Text channels : {"d1", "d7", "d40 dv24", "d96", "d129 dv3", "d256", "d512 dv64"}) {
            list.add_each("b2 sq33 sk70 hq4 hk2 " + channels + " " + type + " lse", {"full", "causal", "causal pad"});
        }
    }
    return list.take();
}

const std::vector<std::pair<Text, std::function<std::vector<Case>(bool gpu)>>>& lists() {
    static const std::vector<Text> gpu_types = {"bf16", "f16"};
    static const std::vector<Text> cpu_types = {"bf16", "f16", "f32"};
    static const std::vector<std::pair<Text, std::function<std::vector<Case>(bool)>>> table = {
        {"correctness", [](bool gpu) { return correctness(gpu ? gpu_types : cpu_types, gpu); }},
        {"corner", [](bool gpu) { return corner(gpu ? gpu_types : cpu_types, gpu); }},
        {"grid", [](bool gpu) { return grid(gpu ? FOVEAL_BACKEND_SM90 : FOVEAL_BACKEND_CPU); }},
    };
    return table;
}

void leave_out_expensive(Suite& suite) {
    const size_t all = suite.cases.size();
    std::erase_if(suite.cases, [](const Case& c) { return c.flops() > kMaxCheckFlopsCpu; });
    const size_t gone = all - suite.cases.size();
    if (suite.name == "correctness")
        suite.left_out = "the types take turns over the lengths (sm90 runs each length in each); ";
    if (suite.name == "corner") suite.left_out = "the options of the scores at d128; ";
    if (suite.name == "grid") suite.left_out = "some of the coverings, and the pairs that cost more than 1 GFLOP; ";
    if (gone > 0) suite.left_out += std::to_string(gone) + " cases of more than 2 GFLOP";
}

}  // namespace

const std::vector<std::string>& correctness_suite_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> all;
        for (const auto& [name, make] : lists()) all.push_back(name);
        return all;
    }();
    return names;
}

Suite correctness_suite(std::string_view name, foveal_backend backend) {
    const bool gpu = backend == FOVEAL_BACKEND_SM90;
    for (const auto& [known, make] : lists()) {
        if (known != name) continue;
        Suite result{known, make(gpu), ""};
        if (!gpu) leave_out_expensive(result);
        return result;
    }
    Text all;
    for (const Text& known : correctness_suite_names()) all += (all.empty() ? "" : ", ") + known;
    throw UnknownSuite("no correctness suite is called '" + std::string(name) + "'; there are " + all);
}

}  // namespace foveal_testing
