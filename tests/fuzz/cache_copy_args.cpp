// Fuzzes the validation of copies of pages and of gathers, and runs what is small on the CPU: whatever it accepts must
// stay inside its tensors, whatever pairs, lengths and tables hold.
#include "tests/fuzz/drawn_tensor.hpp"

namespace {

using namespace foveal_fuzz;

struct Shapes {
    explicit Shapes(FuzzedDataProvider& bytes)
        : dtype(bytes.PickValueInArray<foveal_dtype>({FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16})),
          pages(draw_size(bytes)),
          page_size(draw_size(bytes)),
          heads(draw_size(bytes)),
          d(draw_size(bytes)),
          d_v(bytes.ConsumeBool() ? d : draw_size(bytes)) {}
    foveal_tensor cache(FuzzedDataProvider& bytes, int64_t channels) const {
        return draw_tensor(bytes, dtype, {pages, page_size, heads, channels});
    }
    foveal_dtype dtype;
    int64_t pages, page_size, heads, d, d_v;
};

void draw(FuzzedDataProvider& bytes, foveal_copy_pages_args& args) {
    const Shapes shapes(bytes);
    if (bytes.ConsumeBool()) args.k_cache = shapes.cache(bytes, shapes.d);
    if (bytes.ConsumeBool()) args.v_cache = shapes.cache(bytes, shapes.d_v);
    args.pairs = draw_tensor(bytes, bytes.ConsumeBool() ? FOVEAL_I32 : FOVEAL_I64, {draw_size(bytes), 2});
}

void draw(FuzzedDataProvider& bytes, foveal_gather_args& args) {
    const Shapes shapes(bytes);
    const int64_t total = draw_size(bytes), batch = std::min<int64_t>(draw_size(bytes), 1 << 20);
    if (bytes.ConsumeBool()) {
        args.k_cache = shapes.cache(bytes, shapes.d);
        args.k = draw_tensor(bytes, shapes.dtype, {total, shapes.heads, shapes.d});
    }
    if (bytes.ConsumeBool()) {
        args.v_cache = shapes.cache(bytes, shapes.d_v);
        args.v = draw_tensor(bytes, shapes.dtype, {total, shapes.heads, shapes.d_v});
    }
    args.cu_seqlens_k = draw_tensor(bytes, FOVEAL_I32, {batch + 1});
    if (bytes.ConsumeBool()) args.seqused_k = draw_tensor(bytes, FOVEAL_I32, {batch});
    const foveal_dtype numbers = bytes.ConsumeBool() ? FOVEAL_I32 : FOVEAL_U32;
    if (bytes.ConsumeBool()) {
        args.block_table = draw_tensor(bytes, numbers, {batch, draw_size(bytes)});
        return;
    }
    args.page_indptr = draw_tensor(bytes, FOVEAL_I32, {batch + 1});
    args.page_indices = draw_tensor(bytes, numbers, {draw_size(bytes)});
}

// Validated by the sm90 backend of a build without CUDA, which then refuses; run on the CPU if it is small.
template <class Args, size_t kCount>
void run(FuzzedDataProvider& bytes, Args& args, foveal_tensor Args::*const (&tensors)[kCount],
         foveal_status (*call)(const Args*, void*)) {
    draw(bytes, args);
    for (int n = bytes.ConsumeIntegralInRange<int>(-3, 3); n > 0; --n)
        spoil(bytes, args.*bytes.PickValueInArray(tensors));
    args.backend = FOVEAL_BACKEND_SM90;
    for (const auto tensor : tensors)
        (args.*tensor).data =
            reinterpret_cast<void*>(4096 + (static_cast<uintptr_t>(bytes.ConsumeIntegral<uint8_t>()) << 32));
    if (call(&args, nullptr) != FOVEAL_NO_DEVICE) return;
    Memory memory;
    for (const auto tensor : tensors) {
        const foveal_tensor& t = args.*tensor;
        if (!Memory::fits(t)) return;
        // Without channels there is no memory, and any number of rows.
        for (int i = 0; i < t.rank; ++i)
            if (t.shape[i] > 1 << 12) return;
    }
    for (const auto tensor : tensors) (args.*tensor).data = nullptr, memory.attach(bytes, args.*tensor);
    args.backend = FOVEAL_BACKEND_CPU;
    call(&args, nullptr);
}

constexpr foveal_tensor foveal_copy_pages_args::*kCopied[] = {
    &foveal_copy_pages_args::k_cache, &foveal_copy_pages_args::v_cache, &foveal_copy_pages_args::pairs};
constexpr foveal_tensor foveal_gather_args::*kGathered[] = {
    &foveal_gather_args::k_cache,     &foveal_gather_args::v_cache,      &foveal_gather_args::k,
    &foveal_gather_args::v,           &foveal_gather_args::cu_seqlens_k, &foveal_gather_args::seqused_k,
    &foveal_gather_args::block_table, &foveal_gather_args::page_indptr,  &foveal_gather_args::page_indices};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    FuzzedDataProvider bytes(data, size);
    if (bytes.ConsumeBool()) {
        foveal_copy_pages_args args;
        foveal_copy_pages_args_init(&args);
        run(bytes, args, kCopied, foveal_copy_pages);
    } else {
        foveal_gather_args args;
        foveal_gather_args_init(&args);
        run(bytes, args, kGathered, foveal_gather);
    }
    return 0;
}
