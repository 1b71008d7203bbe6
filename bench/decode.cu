// What a decode takes, beside the same kernel without its arithmetic:
// `decode_bench [--cold] [--e4m3] [WORDS IN A ROW'S NAME]`.
//
// Each row is a graph of some launches, replayed back to back; product and twin take turns, medians are printed. Keys
// lie in pages in a random order. --cold: every launch of a graph reads other pages. --e4m3: each row once more, with
// caches in e4m3 and a descale. Before it is measured, a row must
// give the same bits split and unsplit.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/decode_rows.hpp"
#include "cuda/kernel_table.hpp"
#include "sm90/decode/kernel.cuh"
#include "sm90/decode/launch.hpp"
#include "sm90/device.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/watchdog.hpp"

namespace foveal_bench {
namespace {

namespace sm90 = foveal::sm90;
using foveal::DType;
using foveal::ForwardPointers;
using foveal::ForwardProblem;
using foveal_testing::DeviceBuffer;
using foveal_testing::require_cuda;
using foveal_testing::Watchdog;
using sm90::DecodeVariant;
using sm90::Sm90DecodePlan;

constexpr double kSecondsOfRow = 10;

template <int32_t kTileIndex>
constexpr foveal::cuda::Kernel twin() {
    return {&sm90::decode_kernel<sm90::DecodeInstance<DType::bf16, kTileIndex, DecodeVariant::only_loads>>,
            sm90::shared_bytes(sm90::kDecodeTiles[kTileIndex].tile)};
}

template <int32_t kTileIndex>
constexpr foveal::cuda::Kernel e4m3_twin() {
    return {&sm90::decode_kernel<sm90::DecodeE4m3Instance<DType::bf16, kTileIndex, DecodeVariant::only_loads>>,
            sm90::shared_bytes(sm90::for_e4m3(sm90::kDecodeTiles[kTileIndex].tile))};
}

constexpr foveal::cuda::Kernel kE4m3Twins[sm90::kDecodeTileCount] = {
    e4m3_twin<sm90::kDecodeD64C4>(),   e4m3_twin<sm90::kDecodeD64C8>(),
    e4m3_twin<sm90::kDecodeD64C16>(),  e4m3_twin<sm90::kDecodeD128C4>(),
    e4m3_twin<sm90::kDecodeD128C8>(),  e4m3_twin<sm90::kDecodeD128C16>(),
    e4m3_twin<sm90::kDecodeD256C4>(),  e4m3_twin<sm90::kDecodeD256C8>(),
    e4m3_twin<sm90::kDecodeD256C16>(), {},  // d 512
};

constexpr foveal::cuda::Kernel kTwins[sm90::kDecodeTileCount] = {
    twin<sm90::kDecodeD64C4>(),  twin<sm90::kDecodeD64C8>(),  twin<sm90::kDecodeD64C16>(),
    twin<sm90::kDecodeD128C4>(), twin<sm90::kDecodeD128C8>(), twin<sm90::kDecodeD128C16>(),
    twin<sm90::kDecodeD256C4>(), twin<sm90::kDecodeD256C8>(), twin<sm90::kDecodeD256C16>(),
    twin<sm90::kDecodeD512C8>(),
};

// Numbers between -2 and 2, all different.
__global__ void fill(__nv_bfloat16* data, int64_t count, uint32_t salt) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
        auto x = static_cast<uint32_t>(i) * 2654435761u + salt;
        x ^= x >> 15;
        x *= 2246822519u;
        x ^= x >> 13;
        data[i] = __float2bfloat16(static_cast<float>(x >> 8) * 0x1p-22f - 2.0f);
    }
}

DeviceBuffer filled(int64_t elements, uint32_t salt) {
    DeviceBuffer buffer(static_cast<size_t>(elements) * 2);
    fill<<<1056, 256>>>(buffer.as<__nv_bfloat16>(), elements, salt);
    require_cuda(cudaGetLastError(), "fill");
    return buffer;
}

// The same memory as numbers in e4m3, of which none is NaN.
__global__ void make_e4m3(uint32_t* words, int64_t count) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
        words[i] = (words[i] ^ static_cast<uint32_t>(i) * 2654435761u) & 0xBFBFBFBFu;
}

// K and V of the largest row; every other uses a part.
struct Pool {
    explicit Pool(int64_t elements) : elements(elements), k(filled(elements, 1)), v(filled(elements, 2)) {}
    int64_t elements;
    DeviceBuffer k, v;
};

// One row, ready to run.
class Decode {
   public:
    Decode(const DecodeRow& row, const Pool& pool, int32_t copies, bool e4m3)
        : row_(row),
          problem_(problem_of(row, pool, e4m3)),
          plan_(problem_, 0, sm90::traits_of(0)),
          lengths_(row.lengths),
          tables_(tables(row, copies)),
          q_(filled(elements_of_q(), 3)),
          out_(static_cast<size_t>(elements_of_q()) * 2),
          lse_(static_cast<size_t>(elements_of_q()) * 4),
          workspace_(static_cast<size_t>(plan_.workspace_bytes())),
          descale_(std::vector<float>{0.37f}),
          twin_(foveal::cuda::load((e4m3 ? kE4m3Twins : kTwins)[plan_.kernel().schedule.choice.tile_index])) {
        require_cuda(cudaMemset(workspace_.as<>(), 0, workspace_.bytes()), "cudaMemset");
        at_.k = pool.k.as<>();
        at_.v = pool.v.as<>();
        at_.q = q_.as<>();
        at_.out = out_.as<>();
        at_.lse = lse_.as<float>();
        at_.seqused_k = lengths_.as<int32_t>();
        if (e4m3) at_.k_descale = at_.v_descale = descale_.as<float>();
        at_.workspace = workspace_.as<>();
        at_.workspace_bytes = workspace_.bytes();
    }

    void run(cudaStream_t stream, int32_t copy) { plan_.launch(at(copy), stream); }
    void load(cudaStream_t stream, int32_t copy) {
        sm90::enqueue_decode(twin_, problem_, plan_.kernel(), at(copy), stream);
    }

    // Output and LSE of one launch.
    std::vector<char> result(bool splits) {
        require_cuda(cudaMemset(out_.as<>(), 0xFF, out_.bytes()), "cudaMemset");
        ForwardPointers pointers = at(0);
        if (!splits) {
            pointers.workspace = nullptr;
            pointers.workspace_bytes = 0;
        }
        plan_.launch(pointers, nullptr);
        require_cuda(cudaDeviceSynchronize(), "decode");
        std::vector<char> bytes(out_.bytes() + lse_.bytes());
        out_.download(bytes.data());
        lse_.download(bytes.data() + out_.bytes());
        return bytes;
    }

   private:
    static int32_t longest(const DecodeRow& row) { return *std::max_element(row.lengths.begin(), row.lengths.end()); }
    static int32_t entries_of(const DecodeRow& row) { return (longest(row) + row.page_size - 1) / row.page_size; }
    int64_t elements_of_q() const { return problem_.batch * problem_.rows_q * problem_.heads_q * problem_.head_dim; }

    static ForwardProblem problem_of(const DecodeRow& row, const Pool& pool, bool e4m3) {
        ForwardProblem p;
        const int64_t d = row.head_dim;
        p.dtype = DType::bf16;
        p.keys = foveal::KeyForm::paged;
        p.has_seqused_k = true;
        p.wants_lse = true;
        p.batch = static_cast<int64_t>(row.lengths.size());
        p.rows_q = row.queries;
        p.rows_k = int64_t{entries_of(row)} * row.page_size;
        p.heads_q = row.heads_q;
        p.heads_k = row.heads_k;
        p.head_dim = p.head_dim_v = d;
        p.q = p.out = {row.queries * row.heads_q * d, row.heads_q * d, d};
        p.lse = {int64_t{row.heads_q} * row.queries, 1, row.queries};
        p.page_size = row.page_size;
        p.k = p.v = {row.page_size * row.heads_k * d, row.heads_k * d, d};
        p.pages = pool.elements / p.k.batch;
        p.page_entries = p.page_table_stride = entries_of(row);
        p.scale = 0.088f;
        p.window_right = 0;
        p.keys_dtype = e4m3 ? DType::e4m3 : p.dtype;
        p.k_descale.present = p.v_descale.present = e4m3;  // one for all
        return p;
    }

    // Pages in a random order; every copy has pages of its own, as far as there are enough.
    std::vector<uint32_t> tables(const DecodeRow& row, int32_t copies) {
        std::vector<uint32_t> pages(static_cast<size_t>(problem_.pages));
        std::iota(pages.begin(), pages.end(), 0u);
        std::mt19937 random(1);
        const size_t entries = static_cast<size_t>(copies) * row.lengths.size() * static_cast<size_t>(entries_of(row));
        // The first of a shuffle are enough.
        for (size_t i = 0; i < std::min(entries, pages.size() - 1); ++i)
            std::swap(pages[i], pages[i + random() % (pages.size() - i)]);
        std::vector<uint32_t> table;
        size_t next = 0;
        for (int32_t copy = 0; copy < copies; ++copy)
            for (const int32_t length : row.lengths)
                for (int32_t n = 0; n < entries_of(row); ++n)
                    table.push_back(n * row.page_size < length ? pages[next++ % pages.size()] : 0xFFFFFFFFu);
        return table;
    }

    ForwardPointers at(int32_t copy) const {
        ForwardPointers pointers = at_;
        pointers.page_entries = tables_.as<uint32_t>() + int64_t{copy} * problem_.batch * problem_.page_entries;
        return pointers;
    }

    const DecodeRow& row_;
    const ForwardProblem problem_;
    const Sm90DecodePlan plan_;
    const DeviceBuffer lengths_, tables_, q_, out_, lse_, workspace_, descale_;
    const CUfunction twin_;
    ForwardPointers at_;
};

// A graph of launches.
class Timed {
   public:
    template <class Launch>
    Timed(cudaStream_t stream, int32_t launches, Launch launch) : stream_(stream), launches_(launches) {
        cudaGraph_t graph = nullptr;
        require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
        for (int32_t i = 0; i < launches; ++i) launch(i);
        require_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
        require_cuda(cudaGraphInstantiate(&executable_, graph, 0), "instantiate");
        require_cuda(cudaGraphDestroy(graph), "destroy graph");
        require_cuda(cudaEventCreate(&begin_), "event");
        require_cuda(cudaEventCreate(&end_), "event");
    }
    Timed(const Timed&) = delete;
    ~Timed() {
        (void)cudaGraphExecDestroy(executable_);
        (void)cudaEventDestroy(begin_);
        (void)cudaEventDestroy(end_);
    }

    // Microseconds a launch.
    double replay() const {
        require_cuda(cudaEventRecord(begin_, stream_), "record");
        require_cuda(cudaGraphLaunch(executable_, stream_), "replay");
        require_cuda(cudaEventRecord(end_, stream_), "record");
        require_cuda(cudaEventSynchronize(end_), "synchronize");
        float ms = 0;
        require_cuda(cudaEventElapsedTime(&ms, begin_, end_), "elapsed");
        return ms * 1e3 / launches_;
    }

   private:
    const cudaStream_t stream_;
    const int32_t launches_;
    cudaGraphExec_t executable_ = nullptr;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

void measure(const DecodeRow& row, const Pool& pool, bool cold, bool e4m3, cudaStream_t stream) {
    const Watchdog watchdog(kSecondsOfRow, row.name);
    constexpr double kBytesOfCaches = 120e6, kMicrosecondsOfGraph = 3000;
    const double bytes = row.bytes() / (e4m3 ? 2 : 1), expected = std::max(5.0, bytes / 4.5e6);
    const auto launches = static_cast<int32_t>(std::clamp(kMicrosecondsOfGraph / expected, 2.0, 100.0));
    const int32_t copies = cold ? std::min(launches, static_cast<int32_t>(kBytesOfCaches / bytes) + 2) : 1;
    Decode decode(row, pool, copies, e4m3);
    const bool same = decode.result(true) == decode.result(false);
    const Timed product(stream, launches, [&](int32_t i) { decode.run(stream, i % copies); });
    const Timed twin(stream, launches, [&](int32_t i) { decode.load(stream, i % copies); });
    std::vector<double> us, load_us;
    constexpr int32_t kWarmUps = 2, kRounds = 15;
    for (int32_t i = -kWarmUps; i < kRounds; ++i) {
        const double a = product.replay(), b = twin.replay();
        if (i < 0) continue;
        us.push_back(a);
        load_us.push_back(b);
    }
    const double t = median(us), load = median(load_us);
    std::printf("%-22s %s%9.2f us  load %9.2f  ratio %6.3f  %5.2f TB/s%s\n", row.name.c_str(), e4m3 ? "e4m3 " : "", t,
                load, t / load, bytes / t * 1e-6, same ? "" : "  SPLIT AND UNSPLIT DIFFER");
    std::fflush(stdout);
}

bool has_all(const std::string& name, const std::vector<std::string>& words) {
    return std::all_of(words.begin(), words.end(),
                       [&](const std::string& word) { return name.find(word) != std::string::npos; });
}

int run(int argc, char** argv) {
    bool cold = false, e4m3 = false;
    std::vector<std::string> words;
    for (int i = 1; i < argc; ++i)
        if (std::strcmp(argv[i], "--cold") == 0)
            cold = true;
        else if (std::strcmp(argv[i], "--e4m3") == 0)
            e4m3 = true;
        else
            words.emplace_back(argv[i]);
    std::vector<DecodeRow> rows;
    int64_t elements = int64_t{1} << 28;
    for (DecodeRow& row : decode_rows()) {
        if (!has_all(row.name, words)) continue;
        elements = std::max(elements, row.keys() * row.heads_k * row.head_dim);
        rows.push_back(std::move(row));
    }
    cudaDeviceProp card{};
    require_cuda(cudaGetDeviceProperties(&card, 0), "cudaGetDeviceProperties");
    std::printf("%s, L2 %s\n", card.name, cold ? "cold" : "warm");
    const Pool pool(elements + (int64_t{1} << 24));
    require_cuda(cudaDeviceSynchronize(), "fill");
    cudaStream_t stream = nullptr;
    require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (const DecodeRow& row : rows) measure(row, pool, cold, false, stream);
    if (!e4m3) return 0;
    for (const DeviceBuffer* buffer : {&pool.k, &pool.v}) {
        make_e4m3<<<1056, 256>>>(buffer->as<uint32_t>(), static_cast<int64_t>(buffer->bytes() / 4));
        require_cuda(cudaDeviceSynchronize(), "make_e4m3");
    }
    for (const DecodeRow& row : rows)
        if (row.head_dim <= sm90::kWidestE4m3Head) measure(row, pool, cold, true, stream);
    return 0;
}

}  // namespace
}  // namespace foveal_bench

int main(int argc, char** argv) {
    try {
        return foveal_bench::run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "decode_bench: %s\n", error.what());
        return 1;
    }
}
