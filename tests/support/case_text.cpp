#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "tests/support/case.hpp"
#include "tests/support/case_words.hpp"
#include "tests/support/input_values.hpp"

namespace foveal_testing {
namespace {

SinkKey parse_sink_key(std::string_view token, std::string_view rest) {
    const size_t at = rest.find('@');
    if (at == std::string_view::npos) fail_token(token, "expected sinkNATS@0, @mid or @last");
    SinkKey sink;
    sink.nats = parse_number<double>(token, rest.substr(0, at));
    const std::string_view where = rest.substr(at + 1);
    if (where == "0") {
        sink.position = SinkKey::Position::kFirst;
    } else if (where == "mid") {
        sink.position = SinkKey::Position::kMiddle;
    } else if (where == "last") {
        sink.position = SinkKey::Position::kLast;
    } else {
        fail_token(token, "expected @0, @mid or @last");
    }
    return sink;
}

// "=5,7"
std::array<uint64_t, 2> parse_dropout_state(std::string_view token, std::string_view rest) {
    const size_t comma = rest.find(',');
    if (rest.empty() || rest.front() != '=' || comma == std::string_view::npos)
        fail_token(token, "expected dropstate=SEED,OFFSET");
    return {parse_number<uint64_t>(token, rest.substr(1, comma - 1)),
            parse_number<uint64_t>(token, rest.substr(comma + 1))};
}

// "=bh", "=1h", "=b1" or "=11", and what is shared of queries and keys: "=bh1k", "=b1q1", "=1111".
ScoreMatrix parse_score_matrix(std::string_view token, std::string_view rest) {
    constexpr std::string_view kNames = "=bhqk";
    bool known = rest.size() == 3 || rest.size() == kNames.size();
    for (size_t i = 0; known && i < rest.size(); ++i) known = rest[i] == kNames[i] || (i > 0 && rest[i] == '1');
    if (!known)
        fail_token(token,
                   "expected =bh or =bhqk, with a 1 in place of each dimension that is shared, as in =b1 or =b11k");
    const bool whole = rest.size() == 3;
    return {rest[1] == 'b', rest[2] == 'h', whole || rest[3] == 'q', whole || rest[4] == 'k'};
}

std::string score_matrix_text(const ScoreMatrix& matrix) {
    std::string text = std::string("=") + (matrix.by_sequence ? 'b' : '1') + (matrix.by_head ? 'h' : '1');
    if (!matrix.by_query || !matrix.by_key) text += {matrix.by_query ? 'q' : '1', matrix.by_key ? 'k' : '1'};
    return text;
}

const char* position_name(SinkKey::Position position) {
    switch (position) {
        case SinkKey::Position::kFirst:
            return "0";
        case SinkKey::Position::kMiddle:
            return "mid";
        case SinkKey::Position::kLast:
            return "last";
    }
    return "?";
}

class Parser {
   public:
    explicit Parser(std::string_view text) : text_(text) {}

    Case parse() {
        std::istringstream words{std::string(text_)};
        std::string token;
        while (words >> token) read(token);
        finish();
        return case_;
    }

   private:
    void read(std::string_view token) {
        if (read_word(token)) return;
        const auto [name, rest] = split_name(token);
        if (name != "sink" && !seen_.insert(name).second) fail_token(token, "given twice");
        if (name == "sink") {
            case_.sink_keys.push_back(parse_sink_key(token, rest));
            if (case_.sink_keys.size() > kMaxSinkKeys)
                fail_token(token, "at most " + std::to_string(kMaxSinkKeys) + " of these");
        } else if (name == "qlens") {
            case_.lengths_q = parse_list(token, rest);
        } else if (name == "klens") {
            case_.lengths_k = parse_list(token, rest);
        } else if (name == "used_q") {
            case_.seqused_q = parse_list(token, rest);
        } else if (name == "used_k") {
            case_.seqused_k = parse_list(token, rest);
        } else if (name == "qoff") {
            case_.query_offset = parse_list(token, rest, true);
        } else if (name == "scale") {
            case_.scale = parse_number<float>(token, rest);
        } else if (!read_score_option(token, name, rest)) {
            read_input(token, name, rest);
        }
    }

    bool read_score_option(std::string_view token, const std::string& name, std::string_view rest) {
        if (name == "softcap") {
            case_.softcap = parse_number<float>(token, rest);
        } else if (name == "sinks") {
            case_.sink_logit = rest.empty() ? 0.0f : parse_number<float>(token, rest);
        } else if (name == "bias" || name == "bias_f") {
            const bool f32 = name == "bias_f";  // "bias_f32=bh"
            if (f32 && rest.substr(0, 2) != "32") fail_token(token, "expected bias=.. or bias_f32=..");
            case_.bias = parse_score_matrix(token, rest.substr(f32 ? 2 : 0));
            case_.bias_f32 = f32;
        } else if (name == "mask") {
            case_.mask = parse_score_matrix(token, rest);
        } else if (name == "dropout") {
            case_.dropout = parse_number<float>(token, rest);
        } else if (name == "dropstate") {
            case_.dropout_seed_and_offset = parse_dropout_state(token, rest);
        } else {
            return false;
        }
        return true;
    }

    void read_input(std::string_view token, const std::string& name, std::string_view rest) {
        if (name == "seed") {
            case_.seed = parse_number<uint64_t>(token, rest);
        } else if (name == "sd") {
            case_.logit_sd = parse_number<double>(token, rest);
        } else if (name == "grow") {
            case_.grow_nats = parse_number<double>(token, rest);
        } else if (name == "vnan") {
            case_.nan_value = parse_count(token, rest);
        } else {
            read_count(token, name, rest);
        }
    }

    bool read_word(std::string_view token) {
        static const std::map<std::string_view, std::function<void(Case&)>> words = {
            {"bf16", [](Case& c) { c.dtype = FOVEAL_BF16; }},
            {"f16", [](Case& c) { c.dtype = FOVEAL_F16; }},
            {"f32", [](Case& c) { c.dtype = FOVEAL_F32; }},
            {"e4m3", [](Case& c) { c.dtype = FOVEAL_E4M3; }},
            {"kv_e4m3", [](Case& c) { c.e4m3_keys = true; }},
            {"out_f16", [](Case& c) { c.out_f16 = true; }},
            {"descale", [](Case& c) { c.descaled = true; }},
            {"descale1", [](Case& c) { c.descaled = c.one_descale = true; }},
            {"descale_rows", [](Case& c) { c.descaled = c.row_descales = true; }},
            {"full", [](Case& c) { c.window_left = c.window_right = FOVEAL_UNLIMITED; }},
            {"causal", [](Case& c) { c.window_right = 0; }},
            {"topleft", [](Case& c) { c.top_left = true; }},
            {"lse", [](Case& c) { c.lse = true; }},
            {"alibi", [](Case& c) { c.alibi = Alibi::kByHead; }},
            {"alibi_b", [](Case& c) { c.alibi = Alibi::kBySequenceAndHead; }},
            {"bias_inf", [](Case& c) { c.bias_inf = true; }},
            {"varlen", [](Case& c) { c.varlen = true; }},
            {"csr", [](Case& c) { c.lists_pages = true; }},
            {"pool", [](Case& c) { c.pool = true; }},
            {"tree", [](Case& c) { c.tree = true; }},
            {"flat", [](Case& c) { c.flat = true; }},
            {"vmax", [](Case& c) { c.vmax = true; }},
            {"pad", [](Case& c) { c.padded = true; }},
            {"bhsd", [](Case& c) { c.bhsd = true; }},
            {"qkv", [](Case& c) { c.qkv = true; }},
        };
        const auto found = words.find(token);
        if (found == words.end()) return false;
        found->second(case_);
        words_seen_.insert(std::string(token));
        return true;
    }

    void read_count(std::string_view token, const std::string& name, std::string_view rest) {
        static const std::map<std::string_view, std::vector<int64_t Case::*>> counts = {
            {"b", {&Case::batch}},
            {"s", {&Case::rows_q, &Case::rows_k}},
            {"sq", {&Case::rows_q}},
            {"sk", {&Case::rows_k}},
            {"h", {&Case::heads_q, &Case::heads_k}},
            {"hq", {&Case::heads_q}},
            {"hk", {&Case::heads_k}},
            {"d", {&Case::head_dim}},
            {"dv", {&Case::head_dim_v}},
            {"left", {&Case::window_left}},
            {"right", {&Case::window_right}},
            {"chunk", {&Case::chunk}},
            {"page", {&Case::page_size}},
            {"order", {&Case::page_order}},
            {"common", {&Case::common}},
        };
        const auto found = counts.find(name);
        if (found == counts.end()) fail_token(token, "unknown; `foveal check --help` lists the tokens");
        for (int64_t Case::*field : found->second) case_.*field = parse_count(token, rest);
    }

    bool has(const std::string& name) const { return seen_.count(name) > 0; }
    bool has_word(const std::string& word) const { return words_seen_.count(word) > 0; }

    void finish() {
        check_types();
        if (has_word("full") && (has_word("causal") || has("left") || has("right")))
            fail_token(text_, "full, yet a window");
        if (has_word("causal") && has("right")) fail_token(text_, "causal says right0 already");
        if (has("h") && (has("hq") || has("hk"))) fail_token(text_, "h stands for both hq and hk");
        if (has("s") && (has("sq") || has("sk"))) fail_token(text_, "s stands for both sq and sk");
        if (!has("h") && !has("hq")) fail_token(text_, "h or hq is missing");
        if (!has("h") && !has("hk")) case_.heads_k = case_.heads_q;
        if (case_.heads_k == 0) fail_token(text_, "hk is 0");
        if (!has("dv")) case_.head_dim_v = case_.head_dim;
        case_.varlen_k = has("klens");
        case_.varlen ? finish_varlen() : finish_dense();
        finish_keys();
        check_used("used_q", case_.seqused_q);
        check_used("used_k", case_.seqused_k);
        check_used("qoff", case_.query_offset);
        check_pages();
        check_score_options();
        if (case_.qkv && (case_.varlen != case_.varlen_k || case_.page_size > 0))
            fail_token("qkv", "queries and keys must have the same form");
        if (case_.qkv && (case_.rows_q != case_.rows_k || case_.lengths_q != case_.lengths_k))
            fail_token("qkv", "queries and keys must be equally many");
        if (case_.qkv && case_.head_dim != case_.head_dim_v) fail_token("qkv", "d and dv must be equal");
        if (case_.pool && case_.head_dim != case_.head_dim_v) fail_token("pool", "d and dv must be equal");
        if (case_.query_offset && case_.top_left) fail_token("topleft", "qoff takes its place");
    }

    void check_types() const {
        if (has_word("bf16") + has_word("f16") + has_word("f32") + has_word("e4m3") > 1)
            fail_token(text_, "two element types");
        if (case_.e4m3_keys && case_.is_e4m3()) fail_token("kv_e4m3", "e4m3 says it already");
        if (case_.out_f16 && !case_.is_e4m3()) fail_token("out_f16", "only with e4m3");
        if (case_.descaled && case_.keys_dtype() != FOVEAL_E4M3) fail_token(text_, "a descale without e4m3");
        if (case_.qkv && case_.e4m3_keys) fail_token("qkv", "q, k and v must have the same type");
        if (has_word("descale") + has_word("descale1") + has_word("descale_rows") > 1)
            fail_token(text_, "two kinds of descales");
        if (case_.row_descales && has("klens")) fail_token("descale_rows", "not of packed keys");
    }

    void check_score_options() const {
        if (has_word("alibi") && has_word("alibi_b")) fail_token(text_, "alibi and alibi_b");
        if (has("bias") && has("bias_f")) fail_token(text_, "bias and bias_f32");
        if (case_.bias_inf && !case_.bias) fail_token("bias_inf", "only with bias= or bias_f32=");
        const bool varlen = case_.varlen || case_.varlen_k;
        if (varlen && case_.bias) fail_token("bias", "only in the dense form");
        if (varlen && case_.mask) fail_token("mask", "only in the dense form");
        if (!(case_.dropout >= 0 && case_.dropout < 1)) fail_token("dropout", "a probability below 1 must follow");
        if (case_.dropout_seed_and_offset && case_.dropout == 0) fail_token("dropstate", "only with dropout");
    }

    void finish_varlen() {
        if (!has("qlens")) fail_token("varlen", "needs qlens=");
        if (!has("klens") && !has("sk")) fail_token("varlen", "needs klens=, or sk for keys that are not packed");
        if (has("b") || has("s") || has("sq")) fail_token("varlen", "b, s, sq follow from the lengths");
        case_.batch = static_cast<int64_t>(case_.lengths_q.size());
        case_.rows_q = std::accumulate(case_.lengths_q.begin(), case_.lengths_q.end(), int64_t{0});
    }

    void finish_dense() {
        if (has("qlens")) fail_token("qlens", "only with varlen");
        if (!has("s") && !(has("sq") && (has("sk") || has("klens"))))
            fail_token(text_, "s, or both sq and sk, are missing");
    }

    void finish_keys() {
        if (!has("klens")) return;
        if (has("s") || has("sk")) fail_token("klens", "s, sk follow from the lengths");
        if (static_cast<int64_t>(case_.lengths_k.size()) != case_.batch)
            fail_token("klens", case_.varlen ? "as many entries as qlens" : "one entry a sequence");
        case_.rows_k = std::accumulate(case_.lengths_k.begin(), case_.lengths_k.end(), int64_t{0});
    }

    void check_pages() const {
        if (has("page") && case_.page_size == 0) fail_token("page0", "a page has at least one row");
        if (case_.page_size > 0 && case_.varlen_k) fail_token("klens", "keys in pages have sk, and used_k");
        if (case_.page_size > 0) return check_common();
        if (case_.lists_pages || case_.pool || has("order") || has("common"))
            fail_token(text_, "csr, pool, order and common go with page");
    }

    // Of keys that every sequence uses and every query sees.
    void check_common() const {
        if (case_.common == 0) return;
        if (case_.common % case_.page_size != 0) fail_token("common", "whole pages are shared");
        for (int64_t i = 0; i < case_.batch; ++i)
            if (case_.used_q(i) == 0 || case_.used_k(i) < case_.common + case_.used_q(i))
                fail_token("common", "every sequence has these keys, and queries that come behind them");
        if (case_.window_left != FOVEAL_UNLIMITED || case_.chunk != 0 || case_.top_left || case_.query_offset)
            fail_token("common", "every query sees these keys");
    }

    void check_used(const char* name, const std::optional<std::vector<int64_t>>& used) const {
        if (used && static_cast<int64_t>(used->size()) != case_.batch) fail_token(name, "one entry a sequence");
    }

    std::string_view text_;
    Case case_;
    std::set<std::string> seen_;
    std::set<std::string> words_seen_;
};

}  // namespace

Case parse_case(std::string_view text) { return Parser(text).parse(); }

std::string to_text(const Case& c) {
    std::string text;
    const auto add = [&text](const std::string& token) { text += (text.empty() ? "" : " ") + token; };
    const auto add_number = [&add](const char* name, auto value) { add(name + number_text(value)); };

    if (c.varlen) {
        add("varlen");
        add("qlens=" + list_text(c.lengths_q));
    } else {
        add_number("b", c.batch);
    }
    if (c.varlen_k) {
        if (!c.varlen) add_number("sq", c.rows_q);
        add("klens=" + list_text(c.lengths_k));
    } else if (c.varlen) {
        add_number("sk", c.rows_k);
    } else {
        if (c.rows_q == c.rows_k) add_number("s", c.rows_q);
        if (c.rows_q != c.rows_k) add_number("sq", c.rows_q), add_number("sk", c.rows_k);
    }
    if (c.heads_q == c.heads_k) add_number("h", c.heads_q);
    if (c.heads_q != c.heads_k) add_number("hq", c.heads_q), add_number("hk", c.heads_k);
    add_number("d", c.head_dim);
    if (c.head_dim_v != c.head_dim) add_number("dv", c.head_dim_v);
    add(dtype_name(c.dtype));
    if (c.e4m3_keys) add("kv_e4m3");
    if (c.out_f16) add("out_f16");
    if (c.descaled) add(c.one_descale ? "descale1" : c.row_descales ? "descale_rows" : "descale");

    if (c.window_left == FOVEAL_UNLIMITED && c.window_right == FOVEAL_UNLIMITED) add("full");
    if (c.window_left != FOVEAL_UNLIMITED) add_number("left", c.window_left);
    if (c.window_right == 0) add("causal");
    if (c.window_right > 0) add_number("right", c.window_right);
    if (c.top_left) add("topleft");
    if (c.chunk > 0) add_number("chunk", c.chunk);
    if (c.lse) add("lse");
    if (c.scale) add_number("scale", *c.scale);
    if (c.softcap != 0) add_number("softcap", c.softcap);
    if (c.alibi != Alibi::kNone) add(c.alibi == Alibi::kByHead ? "alibi" : "alibi_b");
    if (c.sink_logit) add("sinks" + (*c.sink_logit == 0 ? "" : number_text(*c.sink_logit)));
    if (c.bias) add((c.bias_f32 ? "bias_f32" : "bias") + score_matrix_text(*c.bias));
    if (c.bias_inf) add("bias_inf");
    if (c.mask) add("mask" + score_matrix_text(*c.mask));
    if (c.dropout > 0) add_number("dropout", c.dropout);
    if (const auto& state = c.dropout_seed_and_offset)
        add("dropstate=" + number_text((*state)[0]) + "," + number_text((*state)[1]));
    if (c.seqused_q) add("used_q=" + list_text(*c.seqused_q));
    if (c.seqused_k) add("used_k=" + list_text(*c.seqused_k));

    if (c.page_size > 0) add_number("page", c.page_size);
    if (c.lists_pages) add("csr");
    if (c.pool) add("pool");
    if (c.common > 0) add_number("common", c.common);
    if (c.page_order > 0) add_number("order", c.page_order);
    if (c.query_offset) add("qoff=" + list_text(*c.query_offset));
    if (c.tree) add("tree");

    if (c.seed != 1) add_number("seed", c.seed);
    if (c.logit_sd) add_number("sd", *c.logit_sd);
    for (const SinkKey& sink : c.sink_keys) add("sink" + number_text(sink.nats) + "@" + position_name(sink.position));
    if (c.grow_nats != 0) add_number("grow", c.grow_nats);
    if (c.flat) add("flat");
    if (c.vmax) add("vmax");
    if (c.nan_value) add_number("vnan", *c.nan_value);
    if (c.padded) add("pad");
    if (c.bhsd) add("bhsd");
    if (c.qkv) add("qkv");
    return text;
}

}  // namespace foveal_testing
