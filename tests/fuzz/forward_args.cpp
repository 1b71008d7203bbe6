// Fuzzes what stands before every forward call: validation, support, planning on both backends; and runs what is small
// on the CPU, and its gradient. Nothing may crash, hang or read a byte that belongs to no tensor.
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "tests/fuzz/drawn_tensor.hpp"

namespace {

using namespace foveal_fuzz;

struct Dimensions {
    int64_t batch, rows_q, rows_k, heads_q, heads_k, head_dim, head_dim_v;
    bool varlen;
    enum class Keys { dense, varlen, table, list, kMaxValue = list } keys;
    int64_t pages, page_size;
    foveal_dtype dtype, keys_dtype, out_dtype;

    bool in_pages() const { return keys == Keys::table || keys == Keys::list; }
};

Dimensions draw_dimensions(FuzzedDataProvider& bytes) {
    Dimensions d{};
    d.varlen = bytes.ConsumeBool();
    const bool alike = bytes.ConsumeBool();
    d.keys =
        alike ? d.varlen ? Dimensions::Keys::varlen : Dimensions::Keys::dense : bytes.ConsumeEnum<Dimensions::Keys>();
    d.pages = draw_size(bytes);
    d.page_size = bytes.ConsumeBool() ? bytes.ConsumeIntegralInRange<int64_t>(0, 20) : draw_size(bytes);
    d.dtype = bytes.PickValueInArray<foveal_dtype>({FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16, FOVEAL_E4M3});
    d.keys_dtype = bytes.ConsumeBool() ? d.dtype : FOVEAL_E4M3;
    d.out_dtype = d.dtype != FOVEAL_E4M3 ? d.dtype : bytes.ConsumeBool() ? FOVEAL_BF16 : FOVEAL_F16;
    d.batch = draw_size(bytes);
    d.rows_q = draw_size(bytes);
    d.rows_k = draw_size(bytes);
    d.heads_k = bytes.ConsumeBool() ? 1 : draw_size(bytes);
    if (__builtin_mul_overflow(d.heads_k, bytes.ConsumeIntegralInRange<int64_t>(1, 4), &d.heads_q)) d.heads_q = 1;
    d.head_dim = bytes.ConsumeBool() ? 8 * bytes.ConsumeIntegralInRange<int64_t>(1, 64) : draw_size(bytes);
    d.head_dim_v = bytes.ConsumeBool() ? d.head_dim : draw_size(bytes);
    return d;
}

void draw_tensors(FuzzedDataProvider& bytes, const Dimensions& d, foveal_forward_args& args) {
    const auto rows = [&](int64_t n, int64_t heads, int64_t channels) {
        return d.varlen ? std::vector{n, heads, channels} : std::vector{d.batch, n, heads, channels};
    };
    args.q = draw_tensor(bytes, d.dtype, rows(d.rows_q, d.heads_q, d.head_dim));
    const auto key_rows = [&](int64_t channels) {
        if (d.in_pages()) return std::vector{d.pages, d.page_size, d.heads_k, channels};
        return d.keys == Dimensions::Keys::varlen ? std::vector{d.rows_k, d.heads_k, channels}
                                                  : std::vector{d.batch, d.rows_k, d.heads_k, channels};
    };
    args.k = draw_tensor(bytes, d.keys_dtype, key_rows(d.head_dim));
    args.v = draw_tensor(bytes, d.keys_dtype, key_rows(d.head_dim_v));
    for (foveal_tensor* descale : {&args.q_descale, &args.k_descale, &args.v_descale})
        if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0)
            *descale = draw_tensor(bytes, FOVEAL_F32,
                                   bytes.ConsumeBool() ? std::vector{d.batch, d.heads_k}
                                                       : std::vector{args.k.shape[0], args.k.shape[1], d.heads_k});
    args.out = draw_tensor(bytes, d.out_dtype, rows(d.rows_q, d.heads_q, d.head_dim_v));
    if (bytes.ConsumeBool())
        args.lse = draw_tensor(bytes, FOVEAL_F32,
                               d.varlen ? std::vector{d.heads_q, d.rows_q} : std::vector{d.batch, d.heads_q, d.rows_q});
    int64_t ends = 0;
    if (__builtin_add_overflow(d.batch, 1, &ends)) ends = d.batch;
    if (d.varlen) args.cu_seqlens_q = draw_tensor(bytes, FOVEAL_I32, {ends});
    if (d.keys == Dimensions::Keys::varlen) args.cu_seqlens_k = draw_tensor(bytes, FOVEAL_I32, {ends});
    if (bytes.ConsumeBool()) args.seqused_q = draw_tensor(bytes, FOVEAL_I32, {d.batch});
    if (d.in_pages() || bytes.ConsumeBool()) args.seqused_k = draw_tensor(bytes, FOVEAL_I32, {d.batch});
    const foveal_dtype pages = bytes.ConsumeBool() ? FOVEAL_I32 : FOVEAL_U32;
    if (d.keys == Dimensions::Keys::table)
        args.block_table = draw_tensor(bytes, pages, {d.batch, bytes.ConsumeIntegralInRange<int64_t>(0, 9)});
    if (d.keys == Dimensions::Keys::list) {
        args.page_indptr = draw_tensor(bytes, FOVEAL_I32, {ends});
        args.page_indices = draw_tensor(bytes, pages, {draw_size(bytes)});
    }
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0) args.query_offset = draw_tensor(bytes, FOVEAL_I32, {d.batch});
    const int64_t words = bytes.ConsumeIntegralInRange<int64_t>(0, 3);
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0)
        args.tree_mask = draw_tensor(bytes, FOVEAL_U32,
                                     d.varlen ? std::vector{d.rows_q, words} : std::vector{d.batch, d.rows_q, words});
}

void draw_scores(FuzzedDataProvider& bytes, const Dimensions& d, foveal_forward_args& args) {
    const auto matrix = [&] {
        return std::vector{bytes.ConsumeBool() ? d.batch : 1, bytes.ConsumeBool() ? d.heads_q : 1, d.rows_q, d.rows_k};
    };
    if (bytes.ConsumeBool())
        args.alibi_slopes = draw_tensor(bytes, FOVEAL_F32,
                                        bytes.ConsumeBool() ? std::vector{d.heads_q} : std::vector{d.batch, d.heads_q});
    if (bytes.ConsumeBool()) args.sinks = draw_tensor(bytes, FOVEAL_F32, {d.heads_q});
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0)
        args.bias = draw_tensor(bytes, bytes.ConsumeBool() ? d.out_dtype : FOVEAL_F32, matrix());
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0) args.mask = draw_tensor(bytes, FOVEAL_BOOL, matrix());
}

float draw_float(FuzzedDataProvider& bytes) {
    const auto bits = bytes.ConsumeIntegral<uint32_t>();
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

void draw_options(FuzzedDataProvider& bytes, foveal_forward_args& args) {
    if (bytes.ConsumeBool()) args.scale = bytes.ConsumeBool() ? 0.25f : draw_float(bytes);
    if (bytes.ConsumeBool()) args.alignment = bytes.ConsumeIntegralInRange<int32_t>(-1, 2);
    if (bytes.ConsumeBool()) args.window_left = bytes.ConsumeBool() ? draw_size(bytes) : draw_any(bytes);
    if (bytes.ConsumeBool()) args.window_right = bytes.ConsumeBool() ? draw_size(bytes) : draw_any(bytes);
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0) args.chunk = draw_any(bytes);
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0) args.softcap = bytes.ConsumeBool() ? 30.0f : draw_float(bytes);
    if (bytes.ConsumeIntegralInRange<int>(0, 3) != 0) return;
    static constexpr uint64_t kState[] = {1, 2};
    args.dropout_p = bytes.ConsumeBool() ? 0.25f : draw_float(bytes);
    args.dropout_state = bytes.ConsumeBool() ? kState : nullptr;
}

foveal_tensor* tensors_of(foveal_forward_args& args, size_t i) {
    foveal_tensor* all[] = {&args.q,
                            &args.k,
                            &args.v,
                            &args.out,
                            &args.lse,
                            &args.cu_seqlens_q,
                            &args.cu_seqlens_k,
                            &args.seqused_q,
                            &args.seqused_k,
                            &args.alibi_slopes,
                            &args.sinks,
                            &args.bias,
                            &args.mask,
                            &args.block_table,
                            &args.page_indptr,
                            &args.page_indices,
                            &args.query_offset,
                            &args.tree_mask,
                            &args.q_descale,
                            &args.k_descale,
                            &args.v_descale};
    return i < std::size(all) ? all[i] : nullptr;
}
constexpr size_t kTensors = 21;

// The plan's text walks over all rows; many take long without showing anything new.
constexpr int64_t kMaxDescribedRows = 1 << 16;

void plan(foveal_forward_args args, foveal_backend backend) {
    args.backend = backend;
    foveal_plan* plan = nullptr;
    if (foveal_plan_create(&args, -1, &plan) != FOVEAL_OK) return;
    char text[256];
    if (args.q.shape[args.q.rank == 4 ? 1 : 0] <= kMaxDescribedRows)
        foveal_plan_describe(plan, text, sizeof text, nullptr);
    foveal_plan_destroy(plan);
}

// Multiply-adds of a small run.
constexpr double kMaxWork = 1e6;

bool small(foveal_forward_args& args) {
    double work = 1;
    for (const int i : {0, 1, 2, 3}) work *= args.q.rank > i ? static_cast<double>(args.q.shape[i]) + 1 : 1;
    for (const int i : {0, 1}) work *= args.k.rank > i ? static_cast<double>(args.k.shape[i]) + 1 : 1;
    if (args.block_table.rank != 0) work *= static_cast<double>(args.block_table.shape[1]) + 1;
    if (args.page_indices.rank != 0) work *= static_cast<double>(args.page_indices.shape[0]) + 1;
    work *= 1 + static_cast<double>(args.v.shape[args.v.rank - 1]) / static_cast<double>(args.q.shape[args.q.rank - 1]);
    bool fits = work <= kMaxWork;
    for (size_t i = 0; i < kTensors; ++i) fits = fits && Memory::fits(*tensors_of(args, i));
    return fits;
}

// Offsets drawn at random are refused nearly always: these ascend from 0 to the number of rows.
void ascend(foveal_tensor& offsets, int64_t rows) {
    if (offsets.rank == 0) return;
    auto* const values = static_cast<int32_t*>(offsets.data);
    const int64_t last = offsets.shape[0] - 1;
    for (int64_t i = 0; i <= last; ++i)
        values[i] = static_cast<int32_t>(static_cast<uint32_t>(values[i]) % (static_cast<uint64_t>(rows) + 1));
    std::sort(values, values + last + 1);
    values[last] = static_cast<int32_t>(rows);
    values[0] = 0;
}

// Likewise: numbers in [0, most].
void bound(foveal_tensor& numbers, int64_t most) {
    if (numbers.rank == 0 || numbers.data == nullptr) return;
    auto* const values = static_cast<uint32_t*>(numbers.data);
    const int64_t rows = numbers.rank == 2 ? numbers.shape[0] : 1, columns = numbers.shape[numbers.rank - 1];
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < columns; ++i) {
            uint32_t& value = values[(numbers.rank == 2 ? row * numbers.stride[0] : 0) + (columns > 1 ? i : 0)];
            value = static_cast<uint32_t>(value % (static_cast<uint64_t>(most) + 1));
        }
}

// Of a call that has been run, or of one whose results hold anything.
void differentiate(FuzzedDataProvider& bytes, Memory& memory, const foveal_forward_args& forward) {
    foveal_backward_args args;
    foveal_backward_args_init(&args);
    args.forward = &forward;
    args.dout = forward.out;
    args.dlse = bytes.ConsumeBool() ? forward.lse : foveal_tensor{};
    args.dq = forward.q;
    args.dk = forward.k;
    args.dv = forward.v;
    args.dsinks = forward.sinks;
    args.dbias = forward.bias;
    args.dalibi_slopes = forward.alibi_slopes;
    if (args.dbias.rank != 0 && bytes.ConsumeBool()) args.dbias.dtype = FOVEAL_F32;
    foveal_tensor* const all[] = {&args.dq,   &args.dk,  &args.dv, &args.dsinks, &args.dbias, &args.dalibi_slopes,
                                  &args.dout, &args.dlse};
    for (foveal_tensor* const t : all) {
        t->data = nullptr;
        if (bytes.ConsumeIntegralInRange<int>(0, 7) == 0) t->rank = 0;
        if (bytes.ConsumeIntegralInRange<int>(0, 15) == 0) spoil(bytes, *t);
    }
    if (foveal_backward_supports(&args) != FOVEAL_OK) return;
    for (foveal_tensor* const t : all)
        if (!Memory::fits(*t)) return;
    for (foveal_tensor* const t : all) memory.attach(bytes, *t);
    foveal_backward(&args, nullptr);
}

void run(FuzzedDataProvider& bytes, foveal_forward_args args) {
    Memory memory;
    for (size_t i = 0; i < kTensors; ++i) memory.attach(bytes, *tensors_of(args, i));
    if (bytes.ConsumeIntegralInRange<int>(0, 7) != 0) {
        ascend(args.cu_seqlens_q, args.q.shape[0]);
        ascend(args.cu_seqlens_k, args.k.shape[0]);
        ascend(args.page_indptr, args.page_indices.shape[0]);
        bound(args.block_table, args.k.shape[0]);
        bound(args.page_indices, args.k.shape[0]);
        if (args.seqused_k.rank != 0 && args.seqused_k.stride[0] == 1)
            bound(args.seqused_k, args.k.shape[args.k.rank == 4 ? 1 : 0]);
    }
    args.backend = FOVEAL_BACKEND_CPU;
    if (bytes.ConsumeIntegralInRange<int>(0, 7) != 0) foveal_forward(&args, nullptr);
    if (bytes.ConsumeBool()) differentiate(bytes, memory, args);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    FuzzedDataProvider bytes(data, size);
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    const Dimensions dimensions = draw_dimensions(bytes);
    draw_tensors(bytes, dimensions, args);
    draw_options(bytes, args);
    if (bytes.ConsumeBool()) draw_scores(bytes, dimensions, args);
    for (int n = bytes.ConsumeIntegralInRange<int>(-3, 3); n > 0; --n)
        spoil(bytes, *tensors_of(args, bytes.ConsumeIntegralInRange<size_t>(0, kTensors - 1)));

    args.backend = bytes.ConsumeIntegralInRange<int32_t>(-1, 3);
    foveal_supports(&args);
    plan(args, FOVEAL_BACKEND_SM90);
    plan(args, FOVEAL_BACKEND_CPU);
    args.backend = FOVEAL_BACKEND_CPU;
    if (foveal_supports(&args) == FOVEAL_OK && small(args)) run(bytes, args);
    return 0;
}
