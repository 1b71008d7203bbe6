// A server's inner loop without Python: continuous batching over a cache of pages, with shared prefixes and preemption.
//
//   serve [cpu|cuda]
//
// A small decoder with random weights, plain C++ but for its attention, answers 64 requests. One foveal::append and one
// foveal::forward a layer serve whatever a step holds, chunks of prompts and single tokens alike. Each greedy token
// must be that of a naive attention in float64 over the same tokens. With 16-bit caches (cuda) one that the rounding of
// those types explains is counted, and allowed; on the CPU, in f32, none is.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <foveal/foveal.hpp>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "serve_model.hpp"

namespace {

using namespace serving;

constexpr int kPageSize = 8, kPages = 64, kMaxRunning = 12, kChunk = 24, kMaxRows = kMaxRunning * kChunk;

// Which pages are in use, by how many sequences, and what the full ones hold.
class Pages {
   public:
    Pages() : users_(kPages), held_(kPages) {
        for (int page = 0; page < kPages; ++page) free_.push_back(page);
    }
    int take() {  // -1: there is none
        if (free_.empty()) return -1;
        const int page = free_.front();
        free_.pop_front();
        if (!held_[static_cast<size_t>(page)].empty()) holder_.erase(held_[static_cast<size_t>(page)]);
        held_[static_cast<size_t>(page)].clear();
        users_[static_cast<size_t>(page)] = 1;
        return page;
    }
    // The page that ends with the last of these tokens, all of them its past; -1: nobody holds it.
    int share(const std::vector<int>& tokens) {
        const auto found = holder_.find(tokens);
        if (found == holder_.end()) return -1;
        if (users_[static_cast<size_t>(found->second)]++ == 0)
            free_.erase(std::find(free_.begin(), free_.end(), found->second));
        return found->second;
    }
    void publish(const std::vector<int>& tokens, int page) {
        if (held_[static_cast<size_t>(page)].empty() && holder_.emplace(tokens, page).second)
            held_[static_cast<size_t>(page)] = tokens;
    }
    void release(const std::vector<int>& pages) {
        for (const int page : pages)
            if (--users_[static_cast<size_t>(page)] == 0) free_.push_back(page);
    }
    bool all_free() const { return free_.size() == kPages; }

   private:
    std::deque<int> free_;  // the first is taken next; what it holds may be shared until then
    std::vector<int> users_;
    std::map<std::vector<int>, int> holder_;  // all tokens up to a page's end: the page
    std::vector<std::vector<int>> held_;
};

struct Request {
    std::vector<int> tokens;  // the prompt, and behind it the answer
    size_t prompt, until;     // so many tokens, and so many in all
    size_t cached = 0;        // tokens whose keys and values are in the pages
    std::vector<int> pages = {};

    std::vector<int> first(size_t count) const {
        return {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count)};
    }
};

class Server {
   public:
    Server(const Model& model, const Device& device)
        : model_(model),
          q_(device, 4 * kMaxRows * kHeads * kDim),
          k_(device, 4 * kMaxRows * kHeadsKv * kDim),
          v_(device, 4 * kMaxRows * kHeadsKv * kDim),
          out_(device, 4 * kMaxRows * kHeads * kDim),
          slots_(device, 8 * kMaxRows),
          positions_(device, 8 * kMaxRows),
          ends_(device, 4 * (kMaxRunning + 1)),
          used_(device, 4 * kMaxRunning),
          table_(device, 4 * kMaxRunning * kPages),
          cos_(device, 4 * model.cos.size()),
          sin_(device, 4 * model.sin.size()) {
        cos_view_ = cos_.put(model.cos, DType::f32, {kPositions, kDim / 2});
        sin_view_ = sin_.put(model.sin, DType::f32, {kPositions, kDim / 2});
        for (int i = 0; i < 2 * kLayers; ++i) caches_.emplace_back(device, 4 * kPages * kPageSize * kHeadsKv * kDim);
    }

    std::deque<Request*> waiting;
    int steps = 0, preemptions = 0, shared_pages = 0;

    bool busy() const { return !waiting.empty() || !running_.empty(); }
    bool all_pages_free() const { return pages_.all_free(); }

    void step() {
        ++steps;
        admit();
        std::vector<std::pair<Request*, size_t>> batch;
        for (Request* request : std::vector<Request*>(running_))
            if (is_running(request))
                if (const size_t rows = rows_of(*request); rows > 0) batch.emplace_back(request, rows);
        // A later one may have needed the room of one that was already in.
        batch.erase(std::remove_if(batch.begin(), batch.end(), [&](const auto& of) { return !is_running(of.first); }),
                    batch.end());
        const Floats last = forward(batch);  // [requests, hidden]
        for (size_t i = 0; i < batch.size(); ++i) {
            auto [request, rows] = batch[i];
            request->cached += rows;
            for (size_t n = 0; n < request->cached / kPageSize; ++n)
                pages_.publish(request->first((n + 1) * kPageSize), request->pages[n]);
            if (request->cached < request->tokens.size()) continue;  // there is more of its prompt
            const auto from = last.begin() + static_cast<std::ptrdiff_t>(i * kHidden);
            const Floats logits = times(Floats(from, from + kHidden), model_.head, kHidden);
            request->tokens.push_back(
                static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
            if (request->tokens.size() < request->until) continue;
            std::erase(running_, request);
            pages_.release(request->pages);
        }
    }

   private:
    bool is_running(const Request* request) const {
        return std::find(running_.begin(), running_.end(), request) != running_.end();
    }

    void admit() {
        while (!waiting.empty() && running_.size() < kMaxRunning) {
            Request& request = *waiting.front();
            waiting.pop_front();
            running_.push_back(&request);
            // The last token is computed in any case: its logits are wanted.
            for (size_t end = kPageSize; end < request.tokens.size(); end += kPageSize) {
                const int page = pages_.share(request.first(end));
                if (page < 0) break;
                request.pages.push_back(page);
                request.cached = end;
                ++shared_pages;
            }
        }
    }

    // How many tokens of the request this step computes; it has pages for them. 0: it was preempted.
    size_t rows_of(Request& request) {
        const size_t rows = std::min<size_t>(request.tokens.size() - request.cached, kChunk);
        while (request.pages.size() * kPageSize < request.cached + rows) {
            if (const int page = pages_.take(); page >= 0) {
                request.pages.push_back(page);
                continue;
            }
            // The last to come gives its pages back and starts again later, behind nobody.
            Request& victim = *running_.back();
            running_.pop_back();
            pages_.release(victim.pages);
            victim.pages.clear(), victim.cached = 0;
            waiting.push_front(&victim);
            ++preemptions;
            if (&victim == &request) return 0;
        }
        return rows;
    }

    // The hidden state behind the last row of each request.
    Floats forward(const std::vector<std::pair<Request*, size_t>>& batch) {
        std::vector<int> tokens, ends{0}, used, table(batch.size() * kPages, -1);
        std::vector<int64_t> slots, positions;
        for (size_t n = 0; n < batch.size(); ++n) {
            const auto& [request, rows] = batch[n];
            for (size_t i = request->cached; i < request->cached + rows; ++i) {
                tokens.push_back(request->tokens[i]);
                positions.push_back(static_cast<int64_t>(i));
                slots.push_back(int64_t{request->pages[i / kPageSize]} * kPageSize +
                                static_cast<int64_t>(i % kPageSize));
            }
            ends.push_back(static_cast<int>(tokens.size()));
            used.push_back(static_cast<int>(request->cached + rows));
            std::copy(request->pages.begin(), request->pages.end(),
                      table.begin() + static_cast<std::ptrdiff_t>(n * kPages));
        }
        const auto rows = static_cast<int64_t>(tokens.size()), requests = static_cast<int64_t>(batch.size());
        foveal::AppendOptions append;
        append.slot_mapping = slots_.put(slots, DType::i64, {rows});
        append.positions = positions_.put(positions, DType::i64, {rows});
        append.cos = cos_view_, append.sin = sin_view_;
        foveal::ForwardOptions options;
        options.causal = true;
        options.cu_seqlens_q = ends_.put(ends, DType::i32, {requests + 1});
        options.seqused_k = used_.put(used, DType::i32, {requests});
        options.block_table = table_.put(table, DType::i32, {requests, kPages});
        const auto attention = [&](int layer, const Floats& q, const Floats& k, const Floats& v) {
            append.q = append.q_out = q_.floats(q, {rows, kHeads, kDim});
            append.k = k_.floats(k, {rows, kHeadsKv, kDim});
            append.v = v_.floats(v, {rows, kHeadsKv, kDim});
            const auto cache = [&](int which) {
                return caches_[static_cast<size_t>(2 * layer + which)].view({kPages, kPageSize, kHeadsKv, kDim});
            };
            append.k_cache = cache(0), append.v_cache = cache(1);
            foveal::append(append);
            foveal::forward(append.q_out, append.k_cache, append.v_cache, out_.view({rows, kHeads, kDim}), options);
            return out_.read(q.size());
        };
        const Floats x = run(model_, tokens, attention);
        Floats last;
        for (size_t n = 1; n < ends.size(); ++n)
            last.insert(last.end(), x.begin() + (ends[n] - 1) * kHidden, x.begin() + ends[n] * kHidden);
        return last;
    }

    const Model& model_;
    Pages pages_;
    std::vector<Request*> running_;
    std::vector<Buffer> caches_;  // k and v of each layer
    Buffer q_, k_, v_, out_, slots_, positions_, ends_, used_, table_, cos_, sin_;
    Tensor cos_view_, sin_view_;
};

// Half of them begin with a common prompt, as a system's prompt is.
std::vector<Request> requests(int count) {
    std::mt19937 random(2);
    const auto draw = [&](int below) { return static_cast<int>(random() % static_cast<uint32_t>(below)); };
    std::vector<int> common(37);
    for (int& token : common) token = draw(kVocabulary);
    std::vector<Request> made;
    for (int i = 0; i < count; ++i) {
        constexpr int kOwn[] = {1, 3, 8, 20, 50}, kAnswers[] = {1, 5, 12, 30};
        std::vector<int> prompt = i % 2 == 0 ? std::vector<int>() : common;
        for (int n = kOwn[draw(5)]; n > 0; --n) prompt.push_back(draw(kVocabulary));
        const size_t length = prompt.size();
        made.push_back({std::move(prompt), length, length + static_cast<size_t>(kAnswers[draw(4)])});
    }
    return made;
}

int serve(const std::string& device_name) {
    const Device device(device_name);
    const Model model;
    Server server(model, device);
    std::vector<Request> all = requests(64);
    for (Request& request : all) server.waiting.push_back(&request);
    while (server.busy()) server.step();
    int explained = 0;
    for (const Request& request : all) {
        const int of_request = judge(model, device, request.tokens, request.prompt);
        if (of_request < 0) throw std::runtime_error("an answer is not the reference's");
        explained += of_request;
    }
    if (server.preemptions == 0 || server.shared_pages == 0 || !server.all_pages_free())
        throw std::runtime_error("nothing was preempted, nothing was shared, or a page was lost");
    std::printf("64 requests in %d steps on %s: the tokens of a naive attention; %d preemptions, %d pages shared",
                server.steps, device_name.c_str(), server.preemptions, server.shared_pages);
    if (explained > 0) std::printf(", %d tokens within float16's rounding", explained);
    std::printf("\n");
    return EXIT_SUCCESS;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return serve(count > 1 ? arguments[1] : "cpu");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "serve: %s\n", error.what());
        return EXIT_FAILURE;
    }
}
