// Fuzzes the validation of a merge, and runs what is small on the CPU: whatever it accepts must stay inside its
// tensors.
#include <array>

#include "tests/fuzz/drawn_tensor.hpp"

namespace {

using namespace foveal_fuzz;

struct Parts {
    std::array<foveal_tensor, FOVEAL_MAX_MERGE_PARTS> outs{}, lses{};
};

void draw(FuzzedDataProvider& bytes, foveal_merge_args& args, Parts& parts) {
    const bool varlen = bytes.ConsumeBool();
    const int64_t batch = draw_size(bytes), rows = draw_size(bytes), heads = draw_size(bytes), d = draw_size(bytes);
    const std::vector<int64_t> out = varlen ? std::vector{rows, heads, d} : std::vector{batch, rows, heads, d};
    const std::vector<int64_t> lse = varlen ? std::vector{heads, rows} : std::vector{batch, heads, rows};
    const auto dtype = bytes.PickValueInArray<foveal_dtype>({FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16});
    args.parts = bytes.ConsumeIntegralInRange<int32_t>(1, 5);
    for (size_t n = 0; n < static_cast<size_t>(args.parts); ++n) {
        parts.outs[n] = draw_tensor(bytes, dtype, out);
        parts.lses[n] = draw_tensor(bytes, FOVEAL_F32, lse);
    }
    args.out = draw_tensor(bytes, bytes.ConsumeBool() ? dtype : FOVEAL_F32, out);
    if (bytes.ConsumeBool()) args.lse = draw_tensor(bytes, FOVEAL_F32, lse);
    args.outs = parts.outs.data();
    args.lses = parts.lses.data();
}

foveal_tensor& any_tensor(FuzzedDataProvider& bytes, foveal_merge_args& args, Parts& parts) {
    const auto n = bytes.ConsumeIntegralInRange<size_t>(0, parts.outs.size() - 1) % static_cast<size_t>(args.parts);
    foveal_tensor* all[] = {&args.out, &args.lse, &parts.outs[n], &parts.lses[n]};
    return *bytes.PickValueInArray(all);
}

// Addresses that are never used, close enough to overlap.
void place_nowhere(FuzzedDataProvider& bytes, foveal_tensor& t) {
    t.data = reinterpret_cast<void*>(4096 + 4 * static_cast<uintptr_t>(bytes.ConsumeIntegral<uint8_t>()));
}

bool small(const foveal_merge_args& args, const Parts& parts) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < args.out.rank; ++i) rows *= std::min<int64_t>(args.out.shape[i], 1 << 12);
    bool fits = rows <= 1 << 12 && Memory::fits(args.out) && Memory::fits(args.lse);
    for (size_t n = 0; n < static_cast<size_t>(args.parts); ++n)
        fits = fits && Memory::fits(parts.outs[n]) && Memory::fits(parts.lses[n]);
    return fits;
}

void run(FuzzedDataProvider& bytes, foveal_merge_args args, Parts& parts) {
    Memory memory;
    memory.attach(bytes, args.out);
    memory.attach(bytes, args.lse);
    for (size_t n = 0; n < static_cast<size_t>(args.parts); ++n) {
        memory.attach(bytes, parts.outs[n]);
        memory.attach(bytes, parts.lses[n]);
    }
    if (bytes.ConsumeBool()) args.out = parts.outs[0];  // in place, if the types allow it
    foveal_merge(&args, nullptr);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    FuzzedDataProvider bytes(data, size);
    foveal_merge_args args;
    foveal_merge_args_init(&args);
    Parts parts;
    draw(bytes, args, parts);
    for (int n = bytes.ConsumeIntegralInRange<int>(-3, 3); n > 0; --n) spoil(bytes, any_tensor(bytes, args, parts));

    args.backend = FOVEAL_BACKEND_SM90;  // a build without CUDA: validated, then refused
    for (foveal_tensor* t : {&args.out, &args.lse, &parts.outs[0], &parts.lses[0], &parts.outs[1], &parts.lses[1]})
        place_nowhere(bytes, *t);
    const foveal_status status = foveal_merge(&args, nullptr);
    for (foveal_tensor* t : {&args.out, &args.lse, &parts.outs[0], &parts.lses[0], &parts.outs[1], &parts.lses[1]})
        t->data = nullptr;
    args.backend = FOVEAL_BACKEND_CPU;
    if (status == FOVEAL_NO_DEVICE && small(args, parts)) run(bytes, args, parts);
    return 0;
}
