#include "case_arguments.hpp"

namespace foveal_tool {

const char* const kCaseHelp =
    "A CASE is one problem with its input data, written as words in any order:\n"
    "  b2                          sequences (default b1)\n"
    "  sq113 sk203 | s1024         query and key length | both\n"
    "  hq32 hk8 | h16              query and key/value heads | both\n"
    "  d128 dv64                   channels of q and k; of v (default the same)\n"
    "  bf16 | f16 | f32            element type (default bf16)\n"
    "  full | causal | left4 right2 [topleft]\n"
    "                              mask (default full; aligned bottom-right unless topleft)\n"
    "  chunk128  softcap30  alibi | alibi_b  sinks | sinks5\n"
    "                              attention chunks; options of the scores\n"
    "  bias=bh | bias_f32=1h [bias_inf]  mask=b1\n"
    "                              bias and boolean mask; a 1: shared by all sequences or heads\n"
    "                              (or queries or keys: mask=b11k)\n"
    "  dropout0.1 [dropstate=5,7]  weights are dropped; seed and offset (default: from the inputs' seed)\n"
    "  varlen qlens=3,0 klens=5,2  packed sequences of these lengths\n"
    "  varlen qlens=3,0 sk100      packed queries alone; klens=5,2 without varlen: packed keys alone\n"
    "  page16 [csr] [pool] [common64] [order7]\n"
    "                              sk keys in pages of 16; page_indptr and page_indices in place of a block_table;\n"
    "                              k and v in one pool; 64 keys that all sequences share; in another order\n"
    "  qoff=5,-3  tree             query_offset; tree_mask over a sequence's last keys\n"
    "  used_q=2,0 used_k=4,1       only so many rows of each sequence take part\n"
    "  lse  scale0.1  seed7        ask for the log-sum-exp; factor on q.k; of the random inputs\n"
    "  sd10 sink60@0 grow2 flat vmax vnan3\n"
    "                              inputs that are hard: see tests/support/case.hpp\n"
    "  pad  bhsd  qkv              strided tensors; memory order [b, h, s, d]; q, k, v in one buffer\n"
    "Several cases: quote each.";

const char* const kMergeHelp =
    "A merge of partial results is a CASE too: merge parts4 b8 s4096 h32 d128 bf16 [to_f32] [varlen] [lse]\n"
    "[odd | bhsd] [seed7]; odd: pitches that no 16-byte load fits.\n"
    "So is an operation on a cache of pages: append b128 s1 hq32 hk8 d128 bf16 page64, of new rows, turned;\n"
    "copy_pages n256 hk8 d128 bf16 page64, of pairs of pages; gather b8 s4096 hk8 d128 bf16 page64, of sequences.";

namespace {

CLI::Option* add_words(CLI::App& command, CaseArguments& arguments) {
    return command.add_option("CASE", arguments.words, "Problems, for example: b2 s1024 hq32 hk8 d128 bf16 causal")
        ->type_name("");
}

}  // namespace

void add_case_arguments(CLI::App& command, CaseArguments& arguments) { add_words(command, arguments)->required(); }

void add_case_or_suite_arguments(CLI::App& command, CaseArguments& arguments,
                                 const std::vector<std::string>& suite_names) {
    CLI::Option* cases = add_words(command, arguments);
    command.add_option("--suite", arguments.suite, "A list of cases, in place of CASE (`foveal suite` has them all)")
        ->check(CLI::IsMember(suite_names))
        ->type_name("NAME")
        ->excludes(cases);
}

std::vector<std::string> case_texts(const std::vector<std::string>& words) {
    std::vector<std::string> texts;
    bool may_continue = false;
    for (const std::string& word : words) {
        const bool whole = word.find_first_of(" \t\n") != std::string::npos;
        if (may_continue && !whole) {
            texts.back() += " " + word;
        } else {
            texts.push_back(word);
        }
        may_continue = !whole;
    }
    return texts;
}

std::vector<foveal_testing::Case> parse_cases(const std::vector<std::string>& words) {
    std::vector<foveal_testing::Case> cases;
    for (const std::string& text : case_texts(words)) cases.push_back(foveal_testing::parse_case(text));
    return cases;
}

}  // namespace foveal_tool
