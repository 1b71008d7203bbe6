#include "tests/support/case.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "tests/support/input_values.hpp"

namespace foveal_testing {
namespace {

[[noreturn]] void fail(std::string_view token, const std::string& why) {
    throw CaseError("case token '" + std::string(token) + "': " + why);
}

template <class Number>
Number parse_number(std::string_view token, std::string_view digits) {
    Number value{};
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) fail(token, "a number must follow the name");
    return value;
}

int64_t parse_count(std::string_view token, std::string_view digits) {
    const auto value = parse_number<int64_t>(token, digits);
    if (value < 0) fail(token, "must not be negative");
    return value;
}

std::vector<int64_t> parse_list(std::string_view token, std::string_view rest) {
    if (rest.empty() || rest.front() != '=') fail(token, "expected name=number,number,...");
    rest.remove_prefix(1);
    std::vector<int64_t> values;
    while (!rest.empty()) {
        const size_t comma = std::min(rest.find(','), rest.size());
        values.push_back(parse_count(token, rest.substr(0, comma)));
        rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    return values;
}

SinkKey parse_sink_key(std::string_view token, std::string_view rest) {
    const size_t at = rest.find('@');
    if (at == std::string_view::npos) fail(token, "expected sinkNATS@0, @mid or @last");
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
        fail(token, "expected @0, @mid or @last");
    }
    return sink;
}

// "=bh", "=1h", "=b1" or "=11".
ScoreMatrix parse_score_matrix(std::string_view token, std::string_view rest) {
    const bool known =
        rest.size() == 3 && rest[0] == '=' && (rest[1] == 'b' || rest[1] == '1') && (rest[2] == 'h' || rest[2] == '1');
    if (!known) fail(token, "expected =bh, =1h, =b1 or =11: which of its dimensions are not shared");
    return {rest[1] == 'b', rest[2] == 'h'};
}

std::string score_matrix_text(const ScoreMatrix& matrix) {
    return std::string("=") + (matrix.by_sequence ? 'b' : '1') + (matrix.by_head ? 'h' : '1');
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

// Shortest text that reads back as the same number.
template <class Number>
std::string number_text(Number value) {
    char text[64];
    const auto result = std::to_chars(text, text + sizeof text, value);
    return std::string(text, result.ptr);
}

std::string list_text(const std::vector<int64_t>& values) {
    std::string text;
    for (const int64_t value : values) {
        if (!text.empty()) text += ',';
        text += std::to_string(value);
    }
    return text;
}

// Splits "sq113" into "sq" and "113", "used_q=1,2" into "used_q" and "=1,2".
std::pair<std::string, std::string_view> split_name(std::string_view token) {
    size_t n = 0;
    while (n < token.size() && (std::isalpha(static_cast<unsigned char>(token[n])) || token[n] == '_')) ++n;
    return {std::string(token.substr(0, n)), token.substr(n)};
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
        if (name != "sink" && !seen_.insert(name).second) fail(token, "given twice");
        if (name == "sink") {
            case_.sink_keys.push_back(parse_sink_key(token, rest));
            if (case_.sink_keys.size() > kMaxSinkKeys)
                fail(token, "at most " + std::to_string(kMaxSinkKeys) + " of these");
        } else if (name == "qlens") {
            case_.lengths_q = parse_list(token, rest);
        } else if (name == "klens") {
            case_.lengths_k = parse_list(token, rest);
        } else if (name == "used_q") {
            case_.seqused_q = parse_list(token, rest);
        } else if (name == "used_k") {
            case_.seqused_k = parse_list(token, rest);
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
            if (f32 && rest.substr(0, 2) != "32") fail(token, "expected bias=.. or bias_f32=..");
            case_.bias = parse_score_matrix(token, rest.substr(f32 ? 2 : 0));
            case_.bias_f32 = f32;
        } else if (name == "mask") {
            case_.mask = parse_score_matrix(token, rest);
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
        } else {
            read_count(token, name, rest);
        }
    }

    bool read_word(std::string_view token) {
        static const std::map<std::string_view, std::function<void(Case&)>> words = {
            {"bf16", [](Case& c) { c.dtype = FOVEAL_BF16; }},
            {"f16", [](Case& c) { c.dtype = FOVEAL_F16; }},
            {"f32", [](Case& c) { c.dtype = FOVEAL_F32; }},
            {"full", [](Case& c) { c.window_left = c.window_right = FOVEAL_UNLIMITED; }},
            {"causal", [](Case& c) { c.window_right = 0; }},
            {"topleft", [](Case& c) { c.top_left = true; }},
            {"lse", [](Case& c) { c.lse = true; }},
            {"alibi", [](Case& c) { c.alibi = Alibi::kByHead; }},
            {"alibi_b", [](Case& c) { c.alibi = Alibi::kBySequenceAndHead; }},
            {"bias_inf", [](Case& c) { c.bias_inf = true; }},
            {"varlen", [](Case& c) { c.varlen = true; }},
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
        };
        const auto found = counts.find(name);
        if (found == counts.end()) fail(token, "unknown; see the list of tokens in tests/case.hpp or `foveal --help`");
        for (int64_t Case::*field : found->second) case_.*field = parse_count(token, rest);
    }

    bool has(const std::string& name) const { return seen_.count(name) > 0; }
    bool has_word(const std::string& word) const { return words_seen_.count(word) > 0; }

    void finish() {
        if (has_word("bf16") + has_word("f16") + has_word("f32") > 1) fail(text_, "two element types");
        if (has_word("full") && (has_word("causal") || has("left") || has("right"))) fail(text_, "full, yet a window");
        if (has_word("causal") && has("right")) fail(text_, "causal says right0 already");
        if (has("h") && (has("hq") || has("hk"))) fail(text_, "h stands for both hq and hk");
        if (has("s") && (has("sq") || has("sk"))) fail(text_, "s stands for both sq and sk");
        if (!has("h") && !has("hq")) fail(text_, "h or hq is missing");
        if (!has("h") && !has("hk")) case_.heads_k = case_.heads_q;
        if (case_.heads_k == 0) fail(text_, "hk is 0");
        if (!has("dv")) case_.head_dim_v = case_.head_dim;
        case_.varlen ? finish_varlen() : finish_dense();
        check_used("used_q", case_.seqused_q);
        check_used("used_k", case_.seqused_k);
        check_score_options();
        if (case_.qkv && (case_.rows_q != case_.rows_k || case_.lengths_q != case_.lengths_k))
            fail("qkv", "queries and keys must be equally many");
        if (case_.qkv && case_.head_dim != case_.head_dim_v) fail("qkv", "d and dv must be equal");
    }

    void check_score_options() const {
        if (has_word("alibi") && has_word("alibi_b")) fail(text_, "alibi and alibi_b");
        if (has("bias") && has("bias_f")) fail(text_, "bias and bias_f32");
        if (case_.bias_inf && !case_.bias) fail("bias_inf", "only with bias= or bias_f32=");
        if (case_.varlen && case_.bias) fail("bias", "only in the dense form");
        if (case_.varlen && case_.mask) fail("mask", "only in the dense form");
    }

    void finish_varlen() {
        if (!has("qlens") || !has("klens")) fail("varlen", "needs qlens= and klens=");
        if (has("b") || has("s") || has("sq") || has("sk")) fail("varlen", "b, s, sq, sk follow from the lengths");
        if (case_.lengths_q.size() != case_.lengths_k.size()) fail("klens", "as many entries as qlens");
        case_.batch = static_cast<int64_t>(case_.lengths_q.size());
        case_.rows_q = std::accumulate(case_.lengths_q.begin(), case_.lengths_q.end(), int64_t{0});
        case_.rows_k = std::accumulate(case_.lengths_k.begin(), case_.lengths_k.end(), int64_t{0});
    }

    void finish_dense() {
        if (has("qlens") || has("klens")) fail("qlens", "only with varlen");
        if (!has("s") && !(has("sq") && has("sk"))) fail(text_, "s, or both sq and sk, are missing");
    }

    void check_used(const char* name, const std::optional<std::vector<int64_t>>& used) const {
        if (used && static_cast<int64_t>(used->size()) != case_.batch) fail(name, "one entry a sequence");
    }

    std::string_view text_;
    Case case_;
    std::set<std::string> seen_;
    std::set<std::string> words_seen_;
};

// Pairs of one sequence that window and chunks leave visible (contract 1.3).
double visible_pairs_of(const Case& c, int64_t len_q, int64_t len_k) {
    const int64_t off = c.top_left ? 0 : len_k - len_q;
    double pairs = 0;
    for (int64_t i = 0; i < len_q; ++i) {
        int64_t first = c.window_left == FOVEAL_UNLIMITED ? 0 : std::max<int64_t>(0, i + off - c.window_left);
        int64_t last = c.window_right == FOVEAL_UNLIMITED ? len_k - 1 : std::min(len_k - 1, i + off + c.window_right);
        if (c.chunk > 0 && i + off < 0) continue;  // the keys begin in a later chunk
        if (c.chunk > 0) {
            first = std::max(first, (i + off) / c.chunk * c.chunk);
            last = std::min(last, (i + off) / c.chunk * c.chunk + c.chunk - 1);
        }
        if (last >= first) pairs += static_cast<double>(last - first + 1);
    }
    return pairs;
}

}  // namespace

int64_t Case::length_q(int64_t sequence) const { return varlen ? lengths_q[static_cast<size_t>(sequence)] : rows_q; }

int64_t Case::length_k(int64_t sequence) const { return varlen ? lengths_k[static_cast<size_t>(sequence)] : rows_k; }

int64_t Case::used_q(int64_t sequence) const {
    return seqused_q ? (*seqused_q)[static_cast<size_t>(sequence)] : length_q(sequence);
}

int64_t Case::used_k(int64_t sequence) const {
    return seqused_k ? (*seqused_k)[static_cast<size_t>(sequence)] : length_k(sequence);
}

int64_t Case::first_row_q(int64_t sequence) const {
    return std::accumulate(lengths_q.begin(), lengths_q.begin() + (varlen ? sequence : 0), int64_t{0});
}

int64_t Case::first_row_k(int64_t sequence) const {
    return std::accumulate(lengths_k.begin(), lengths_k.begin() + (varlen ? sequence : 0), int64_t{0});
}

double Case::effective_scale() const {
    return scale ? static_cast<double>(*scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

double Case::visible_pairs() const {
    if (!varlen && !seqused_q && !seqused_k) {
        return static_cast<double>(batch) * visible_pairs_of(*this, rows_q, rows_k);
    }
    double pairs = 0;
    for (int64_t i = 0; i < batch; ++i) pairs += visible_pairs_of(*this, used_q(i), used_k(i));
    return pairs;
}

double Case::flops() const {
    return 2.0 * static_cast<double>(head_dim + head_dim_v) * visible_pairs() * static_cast<double>(heads_q);
}

double Case::min_bytes() const {
    double used_rows_q = 0;
    double used_rows_k = 0;
    for (int64_t i = 0; i < batch; ++i) {
        used_rows_q += static_cast<double>(used_q(i));
        used_rows_k += static_cast<double>(used_k(i));
    }
    const double channels = static_cast<double>(head_dim + head_dim_v);
    const double elements_q = used_rows_q * static_cast<double>(heads_q) * channels;  // q and out
    const double elements_k = used_rows_k * static_cast<double>(heads_k) * channels;  // k and v
    const double lse_bytes = lse ? 4.0 * used_rows_q * static_cast<double>(heads_q) : 0.0;
    const auto seen_elements = [&](const std::optional<ScoreMatrix>& matrix) {
        if (!matrix || batch == 0) return 0.0;
        return visible_pairs() / static_cast<double>(matrix->by_sequence ? 1 : batch) *
               static_cast<double>(matrix->by_head ? heads_q : 1);
    };
    return (elements_q + elements_k) * static_cast<double>(element_bytes()) + lse_bytes +
           seen_elements(bias) * (bias_dtype() == FOVEAL_F32 ? 4 : 2) + seen_elements(mask);
}

Case parse_case(std::string_view text) { return Parser(text).parse(); }

std::string to_text(const Case& c) {
    std::string text;
    const auto add = [&text](const std::string& token) { text += (text.empty() ? "" : " ") + token; };
    const auto add_number = [&add](const char* name, auto value) { add(name + number_text(value)); };

    if (c.varlen) {
        add("varlen");
        add("qlens=" + list_text(c.lengths_q));
        add("klens=" + list_text(c.lengths_k));
    } else {
        add_number("b", c.batch);
        if (c.rows_q == c.rows_k) add_number("s", c.rows_q);
        if (c.rows_q != c.rows_k) add_number("sq", c.rows_q), add_number("sk", c.rows_k);
    }
    if (c.heads_q == c.heads_k) add_number("h", c.heads_q);
    if (c.heads_q != c.heads_k) add_number("hq", c.heads_q), add_number("hk", c.heads_k);
    add_number("d", c.head_dim);
    if (c.head_dim_v != c.head_dim) add_number("dv", c.head_dim_v);
    add(dtype_name(c.dtype));

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
    if (c.seqused_q) add("used_q=" + list_text(*c.seqused_q));
    if (c.seqused_k) add("used_k=" + list_text(*c.seqused_k));

    if (c.seed != 1) add_number("seed", c.seed);
    if (c.logit_sd) add_number("sd", *c.logit_sd);
    for (const SinkKey& sink : c.sink_keys) add("sink" + number_text(sink.nats) + "@" + position_name(sink.position));
    if (c.grow_nats != 0) add_number("grow", c.grow_nats);
    if (c.flat) add("flat");
    if (c.vmax) add("vmax");
    if (c.padded) add("pad");
    if (c.bhsd) add("bhsd");
    if (c.qkv) add("qkv");
    return text;
}

const char* dtype_name(foveal_dtype dtype) {
    switch (dtype) {
        case FOVEAL_F32:
            return "f32";
        case FOVEAL_BF16:
            return "bf16";
        case FOVEAL_F16:
            return "f16";
        case FOVEAL_I32:
            return "i32";
        case FOVEAL_BOOL:
            return "bool";
        default:
            return "?";
    }
}

}  // namespace foveal_testing
