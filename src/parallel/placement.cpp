#include "parallel/placement.hpp"

#include <algorithm>
#include <tuple>

#include "problem/argument.hpp"
#include "problem/mask.hpp"

namespace foveal::parallel {
namespace {

std::string at(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_span(const foveal_span& span, int32_t ranks, const std::string& name) {
    const auto check = [&](const char* field, int64_t value, int64_t end) {
        if (value < 0 || value >= end)
            refuse(name + "." + field + " is " + std::to_string(value) + "; it must lie in [0, " + std::to_string(end) +
                   ")");
    };
    check("rank", span.rank, ranks);
    check("sequence", span.sequence, int64_t{kMaxSequenceLength} + 1);
    check("position", span.position, int64_t{kMaxSequenceLength} + 1);
    check("rows", span.rows, int64_t{kMaxSequenceLength} - span.position + 1);
    if (span.reserved != 0) refuse(name + ".reserved is " + std::to_string(span.reserved) + "; it must be 0");
}

// Sorts the spans by sequence, and requires that each row of each sequence is there once.
void index_sequences(Layout& layout, const char* name) {
    for (const Span& span : layout.spans) {
        const auto needed = static_cast<size_t>(span.sequence) + 1;
        if (layout.keys_of.size() < needed) layout.keys_of.resize(needed);
        layout.keys_of[needed - 1].push_back(span);
    }
    for (size_t sequence = 0; sequence < layout.keys_of.size(); ++sequence) {
        std::vector<Span>& spans = layout.keys_of[sequence];
        std::ranges::sort(spans, {}, &Span::position);
        int64_t end = 0;
        for (const Span& span : spans) {
            if (span.position != end)
                refuse(std::string(name) + " has row " + std::to_string(std::min(end, span.position)) +
                       " of sequence " + std::to_string(sequence) + (span.position > end ? " nowhere" : " twice") +
                       "; each row is on one rank");
            end = span.end();
        }
        layout.length_of.push_back(end);
    }
}

// Appends a span, to the last one if it goes on there.
void append_span(Layout& layout, Span span) {
    if (span.rows == 0) return;
    int64_t& rows = layout.rows_of_rank[static_cast<size_t>(span.rank)];
    span.row = rows;
    rows += span.rows;
    if (!layout.spans.empty()) {
        Span& last = layout.spans.back();
        if (last.rank == span.rank && last.sequence == span.sequence && last.end() == span.position) {
            last.rows += span.rows;
            return;
        }
    }
    layout.spans.push_back(span);
}

}  // namespace

Layout layout_of(std::span<const foveal_span> spans, int32_t ranks, const char* name) {
    Layout layout;
    layout.rows_of_rank.resize(static_cast<size_t>(ranks));
    for (size_t i = 0; i < spans.size(); ++i) check_span(spans[i], ranks, at(name, i));
    for (int32_t rank = 0; rank < ranks; ++rank)
        for (const foveal_span& span : spans)
            if (span.rank == rank) append_span(layout, {rank, span.sequence, span.position, span.rows});
    index_sequences(layout, name);
    return layout;
}

Layout layout_of_crews(const Layout& layout, int32_t crew_size) {
    if (crew_size == 1) return layout;
    Layout crews;
    crews.rows_of_rank.resize(layout.rows_of_rank.size() / static_cast<size_t>(crew_size));
    std::vector<Span> spans = layout.spans;
    for (Span& span : spans) span.rank /= crew_size;
    std::ranges::sort(spans, {}, [](const Span& span) { return std::tuple(span.rank, span.sequence, span.position); });
    for (const Span& span : spans) append_span(crews, span);
    index_sequences(crews, "spans");
    return crews;
}

std::vector<Move> moves_of(const Layout& layout, const Layout& crews, int32_t crew, int32_t crew_size) {
    std::vector<Move> moves;
    for (const Span& span : layout.spans) {
        if (span.rank / crew_size != crew) continue;
        const std::vector<Span>& of_crews = crews.keys_of[static_cast<size_t>(span.sequence)];
        const Span& whole = *(std::ranges::upper_bound(of_crews, span.position, {}, &Span::position) - 1);
        moves.push_back({span.rank % crew_size, span.row, span.rows, whole.row + span.position - whole.position});
    }
    return moves;
}

Layout gathered_layout(const Layout& layout) {
    Layout gathered;
    gathered.rows_of_rank.resize(1);
    for (size_t sequence = 0; sequence < layout.length_of.size(); ++sequence)
        append_span(gathered, {0, static_cast<int64_t>(sequence), 0, layout.length_of[sequence]});
    index_sequences(gathered, "spans");
    gathered.length_of.resize(layout.length_of.size());  // the last ones may be empty
    gathered.keys_of.resize(layout.keys_of.size());
    return gathered;
}

std::vector<foveal_span> place(foveal_placement placement, std::span<const int64_t> lengths, int32_t ranks) {
    int64_t total = 0;
    for (const int64_t length : lengths) total += length;
    std::vector<foveal_span> spans;
    const auto add = [&](int32_t rank, size_t sequence, int64_t begin, int64_t end) {
        if (begin < end) spans.push_back({static_cast<int64_t>(sequence), begin, end - begin, rank, 0});
    };
    for (int32_t rank = 0; rank < ranks; ++rank) {
        int64_t before = 0;  // rows of the sequences before this one
        for (size_t i = 0; i < lengths.size(); ++i) {
            const int64_t length = lengths[i];
            if (placement == FOVEAL_CONTIGUOUS) {
                const int64_t begin = total * rank / ranks - before, end = total * (rank + 1) / ranks - before;
                add(rank, i, std::max<int64_t>(begin, 0), std::min(end, length));
            } else {
                const int64_t parts = 2 * int64_t{ranks};
                for (const int64_t part : {int64_t{rank}, parts - 1 - rank})
                    add(rank, i, length * part / parts, length * (part + 1) / parts);
            }
            before += length;
        }
    }
    return spans;
}

}  // namespace foveal::parallel
