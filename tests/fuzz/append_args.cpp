// Fuzzes the validation of an append, and runs what is small on the CPU: whatever it accepts must stay inside its
// tensors, whatever slots, lengths, pages and positions hold.
#include "tests/fuzz/drawn_tensor.hpp"

namespace {

using namespace foveal_fuzz;

foveal_dtype draw_float(FuzzedDataProvider& bytes) {
    return bytes.PickValueInArray<foveal_dtype>({FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16});
}

void draw_places(FuzzedDataProvider& bytes, foveal_append_args& args, const std::vector<int64_t>& numbers,
                 int64_t batch) {
    if (bytes.ConsumeBool()) {
        args.slot_mapping = draw_tensor(bytes, FOVEAL_I64, numbers);
        return;
    }
    args.cache_lengths = draw_tensor(bytes, FOVEAL_I32, {batch});
    if (numbers.size() == 1) args.cu_seqlens = draw_tensor(bytes, FOVEAL_I32, {batch + 1});
    if (bytes.ConsumeBool())
        args.block_table = draw_tensor(bytes, bytes.ConsumeBool() ? FOVEAL_I32 : FOVEAL_U32, {batch, draw_size(bytes)});
}

void draw(FuzzedDataProvider& bytes, foveal_append_args& args) {
    const int64_t batch = std::min<int64_t>(draw_size(bytes), 1 << 20), rows = draw_size(bytes);
    const int64_t heads = draw_size(bytes), d = draw_size(bytes), d_v = draw_size(bytes);
    const foveal_dtype dtype = draw_float(bytes), cache = bytes.ConsumeBool() ? draw_float(bytes) : FOVEAL_E4M3;
    const std::vector<int64_t> numbers = bytes.ConsumeBool() ? std::vector{rows} : std::vector{batch, rows};
    const auto rows_of = [&](int64_t h, int64_t n) {
        std::vector<int64_t> shape = numbers;
        shape.insert(shape.end(), {h, n});
        return draw_tensor(bytes, dtype, shape);
    };
    const int64_t pages = draw_size(bytes), page_size = draw_size(bytes);
    if (bytes.ConsumeBool()) {
        args.k = rows_of(heads, d), args.k_cache = draw_tensor(bytes, cache, {pages, page_size, heads, d});
        if (bytes.ConsumeBool()) args.k_scale = draw_tensor(bytes, FOVEAL_F32, {bytes.ConsumeBool() ? heads : 1});
        if (bytes.ConsumeBool())
            args.k_scale_out = draw_tensor(
                bytes, FOVEAL_F32, bytes.ConsumeBool() ? std::vector{heads} : std::vector{pages, page_size, heads});
    }
    if (bytes.ConsumeBool())
        args.v = rows_of(heads, d_v), args.v_cache = draw_tensor(bytes, cache, {pages, page_size, heads, d_v});
    draw_places(bytes, args, numbers, batch);
    if (bytes.ConsumeBool()) return;
    const std::vector<int64_t> angles = {draw_size(bytes), bytes.ConsumeBool() ? d / 2 : draw_size(bytes)};
    const foveal_dtype angle = bytes.ConsumeBool() ? FOVEAL_F32 : dtype;
    args.cos = draw_tensor(bytes, angle, angles), args.sin = draw_tensor(bytes, angle, angles);
    args.rotary_layout = bytes.ConsumeIntegralInRange<int32_t>(0, 1);
    if (bytes.ConsumeBool())
        args.positions = draw_tensor(bytes, bytes.ConsumeBool() ? FOVEAL_I32 : FOVEAL_I64, numbers);
    const int64_t heads_q = heads < 1 << 20 ? 2 * heads : heads;
    if (bytes.ConsumeBool()) args.q = rows_of(heads_q, d), args.q_out = rows_of(heads_q, d);
}

constexpr foveal_tensor foveal_append_args::*kTensors[] = {
    &foveal_append_args::k,          &foveal_append_args::v,
    &foveal_append_args::k_cache,    &foveal_append_args::v_cache,
    &foveal_append_args::q,          &foveal_append_args::q_out,
    &foveal_append_args::cos,        &foveal_append_args::sin,
    &foveal_append_args::positions,  &foveal_append_args::slot_mapping,
    &foveal_append_args::cu_seqlens, &foveal_append_args::cache_lengths,
    &foveal_append_args::k_scale,    &foveal_append_args::block_table,
    &foveal_append_args::k_scale_out};

bool small(const foveal_append_args& args) {
    bool fits = true;
    for (const auto tensor : kTensors) fits = fits && Memory::fits(args.*tensor);
    // Without channels there is no memory, and any number of rows.
    for (const foveal_tensor* t : {&args.k, &args.v, &args.q})
        for (int i = 0; i < t->rank; ++i) fits = fits && t->shape[i] <= 1 << 12;
    return fits;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    FuzzedDataProvider bytes(data, size);
    foveal_append_args args;
    foveal_append_args_init(&args);
    draw(bytes, args);
    for (int n = bytes.ConsumeIntegralInRange<int>(-3, 3); n > 0; --n)
        spoil(bytes, args.*bytes.PickValueInArray(kTensors));

    args.backend = FOVEAL_BACKEND_SM90;  // a build without CUDA: validated, then refused
    for (const auto tensor : kTensors)
        (args.*tensor).data =
            reinterpret_cast<void*>(4096 + (static_cast<uintptr_t>(bytes.ConsumeIntegral<uint8_t>()) << 32));
    const foveal_status status = foveal_append(&args, nullptr);
    if (status != FOVEAL_NO_DEVICE || !small(args)) return 0;
    Memory memory;
    for (const auto tensor : kTensors) (args.*tensor).data = nullptr, memory.attach(bytes, args.*tensor);
    args.backend = FOVEAL_BACKEND_CPU;
    foveal_append(&args, nullptr);
    return 0;
}
