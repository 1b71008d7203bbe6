// foveal, the C++20 layer over the C ABI (foveal.h): views, options with defaults, exceptions. Header only.
//
//   foveal::Tensor q = foveal::Tensor::packed(data, foveal::DType::bf16, {b, s_q, h_q, d}); ...
//   foveal::forward(q, k, v, out, {.causal = true}, stream);
//
// Shapes, strides, units and errors are those of foveal.h. The inline namespace gets another number whenever a
// structure of this file or of foveal.h grows: objects compiled against different headers must not share these inline
// functions.
#ifndef FOVEAL_FOVEAL_HPP
#define FOVEAL_FOVEAL_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "foveal/foveal.h"
#include "foveal/types.hpp"

static_assert(sizeof(void*) != 8 || (sizeof(foveal_forward_args) == 1760 && sizeof(foveal_backward_args) == 672 &&
                                     sizeof(foveal_merge_args) == 192 && sizeof(foveal_append_args) == 1376 &&
                                     sizeof(foveal_copy_pages_args) == 248 && sizeof(foveal_gather_args) == 728),
              "a structure has grown: the inline namespace of this file gets another number");

namespace foveal {
inline namespace v3 {

// Who computes.
enum class Backend : foveal_backend {
    automatic = FOVEAL_BACKEND_AUTO,  // where q's memory lies
    cpu = FOVEAL_BACKEND_CPU,
    sm90 = FOVEAL_BACKEND_SM90
};
// Which elements of a row turn together, as foveal_rotary_layout.
enum class RotaryLayout : foveal_rotary_layout {
    half_split = FOVEAL_ROTARY_HALF_SPLIT,
    interleaved = FOVEAL_ROTARY_INTERLEAVED
};
// off of the window: s_k - s_q for bottom_right, 0 for top_left.
enum class Alignment : foveal_alignment { bottom_right = FOVEAL_BOTTOM_RIGHT, top_left = FOVEAL_TOP_LEFT };

// A strided view of memory that the caller owns; foveal never takes ownership. Default-constructed: absent.
struct Tensor : foveal_tensor {
    Tensor() noexcept : foveal_tensor{} {}

    // Row-major, without gaps.
    static Tensor packed(void* data, DType dtype, std::initializer_list<int64_t> shape) {
        Tensor t = with_shape(data, dtype, shape);
        int64_t stride = 1;
        for (int32_t i = t.rank - 1; i >= 0; --i) {
            t.stride[i] = stride;
            stride *= t.shape[i] > 0 ? t.shape[i] : 1;
        }
        return t;
    }

    // Strides in elements, one a dimension; the last must be 1. 0 shares what is read along a dimension.
    static Tensor strided(void* data, DType dtype, std::initializer_list<int64_t> shape,
                          std::initializer_list<int64_t> strides) {
        Tensor t = with_shape(data, dtype, shape);
        if (strides.size() != shape.size())
            throw Error(FOVEAL_INVALID_ARGUMENT, "as many strides as dimensions are needed");
        int32_t i = 0;
        for (const int64_t s : strides) t.stride[i++] = s;
        return t;
    }

    // Inputs are never written, so const data may be viewed as well.
    static Tensor packed(const void* data, DType dtype, std::initializer_list<int64_t> shape) {
        return packed(const_cast<void*>(data), dtype, shape);
    }
    // Likewise.
    static Tensor strided(const void* data, DType dtype, std::initializer_list<int64_t> shape,
                          std::initializer_list<int64_t> strides) {
        return strided(const_cast<void*>(data), dtype, shape, strides);
    }

   private:
    static Tensor with_shape(void* data, DType dtype, std::initializer_list<int64_t> shape) {
        if (shape.size() > FOVEAL_MAX_RANK) throw Error(FOVEAL_INVALID_ARGUMENT, "a tensor has at most 4 dimensions");
        Tensor t;
        t.data = data;
        t.dtype = static_cast<foveal_dtype>(dtype);
        for (const int64_t n : shape) t.shape[t.rank++] = n;
        return t;
    }
};

// Everything but q, k, v and out; the defaults are plain, unmasked attention.
struct ForwardOptions {
    bool causal = false;                            // right = 0; may be combined with `left`, not with `right`
    std::optional<int64_t> left = {};               // window; absent: unlimited
    std::optional<int64_t> right = {};              // likewise
    Alignment alignment = Alignment::bottom_right;  // where s_q and s_k differ
    std::optional<float> scale = {};                // absent: 1/sqrt(d)
    Tensor lse = {};                                // f32 [b, h_q, s_q], varlen [h_q, total_q]
    Tensor cu_seqlens_q = {};                       // i32 [b + 1]; both present: varlen
    Tensor cu_seqlens_k = {};                       // i32 [b + 1]
    Tensor seqused_q = {};                          // i32 [b]
    Tensor seqused_k = {};                          // i32 [b]
    int64_t chunk = 0;                              // attention chunks of so many positions; 0: none
    float softcap = 0;                              // c: scores become c * tanh(x / c); 0: none
    Tensor alibi_slopes = {};                       // f32 [h_q] or [b, h_q]
    Tensor sinks = {};                              // f32 [h_q]
    Tensor bias = {};                               // dense: broadcasts to [b, h_q, s_q, s_k]; q's type or f32
    Tensor mask = {};                               // dense: DType::boolean, shaped likewise; false hides
    Backend backend = Backend::automatic;           // who computes
    Tensor block_table = {};                        // i32 or u32 [b, max_pages]: k and v are pages; or ...
    Tensor page_indptr = {};                        // ... i32 [b + 1], with page_indices
    Tensor page_indices = {};                       // i32 or u32 [n]
    Tensor query_offset = {};                       // i32 [b]: off of each sequence, in place of alignment
    Tensor tree_mask = {};                          // u32 [b, s_q, words], varlen [total_q, words]
    std::span<std::byte> workspace = {};            // Plan::workspace_bytes() of zeros make a call fast
    Tensor q_descale = {};                          // f32 [b, h_k], of q in e4m3; absent: 1
    Tensor k_descale = {};                          // likewise, of k; or of each row, [pages, page_size, h_k]
    Tensor v_descale = {};                          // likewise, of v
    float dropout_p = 0;                            // with which a weight is dropped
    const uint64_t* dropout_state = nullptr;        // [2]: seed, offset, where q lies; needed if dropout_p > 0
};

// The C structure of a call.
inline foveal_forward_args forward_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                        const ForwardOptions& options = {}) {
    if (options.causal && options.right.value_or(0) != 0)
        throw Error(FOVEAL_INVALID_ARGUMENT,
                    "causal and right = " + std::to_string(*options.right) + " contradict each other");
    foveal_forward_args args;
    foveal_forward_args_init_sized(&args, sizeof args);
    args.q = q;
    args.k = k;
    args.v = v;
    args.out = out;
    args.lse = options.lse;
    args.cu_seqlens_q = options.cu_seqlens_q;
    args.cu_seqlens_k = options.cu_seqlens_k;
    args.seqused_q = options.seqused_q;
    args.seqused_k = options.seqused_k;
    args.chunk = options.chunk;
    args.softcap = options.softcap;
    args.alibi_slopes = options.alibi_slopes;
    args.sinks = options.sinks;
    args.bias = options.bias;
    args.mask = options.mask;
    args.block_table = options.block_table;
    args.page_indptr = options.page_indptr;
    args.page_indices = options.page_indices;
    args.query_offset = options.query_offset;
    args.tree_mask = options.tree_mask;
    args.q_descale = options.q_descale;
    args.k_descale = options.k_descale;
    args.v_descale = options.v_descale;
    args.dropout_p = options.dropout_p;
    args.dropout_state = options.dropout_state;
    args.workspace = options.workspace.data();
    args.workspace_bytes = options.workspace.size();
    args.backend = static_cast<foveal_backend>(options.backend);
    args.alignment = static_cast<foveal_alignment>(options.alignment);
    args.scale = options.scale.value_or(std::numeric_limits<float>::quiet_NaN());
    args.window_left = options.left.value_or(FOVEAL_UNLIMITED);
    args.window_right = options.causal ? 0 : options.right.value_or(FOVEAL_UNLIMITED);
    return args;
}

// Throws the thread's last error unless `status` is FOVEAL_OK.
inline void check(foveal_status status) {
    if (status != FOVEAL_OK) throw Error(status, foveal_last_error());
}

// out (and options.lse) from q, k, v. `stream`: a cudaStream_t for sm90, null for the CPU.
inline void forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                    const ForwardOptions& options = {}, void* stream = nullptr) {
    const foveal_forward_args args = forward_args(q, k, v, out, options);
    check(foveal_forward(&args, stream));
}

// Which gradients backward() computes, and what else it is given; each tensor is that of foveal_backward_args.
struct Gradients {
    Tensor dlse = {};                     // optional, read: of what follows with respect to the log-sum-exp
    Tensor dq = {};                       // as q; or f32 (cpu), unrounded
    Tensor dk = {};                       // as k, likewise
    Tensor dv = {};                       // as v, likewise
    Tensor dsinks = {};                   // f32 [h_q]
    Tensor dbias = {};                    // shape of bias; f32 or bias's type
    Tensor dalibi_slopes = {};            // f32, shape of alibi_slopes
    std::span<std::byte> workspace = {};  // Plan::workspace_bytes() of the backward's plan, zeros at first
};

// The C structure of a call. forward: of the call whose gradient is asked, with its lse; it is kept by reference.
inline foveal_backward_args backward_args(const foveal_forward_args& forward, const Tensor& dout,
                                          const Gradients& gradients) {
    foveal_backward_args args;
    foveal_backward_args_init_sized(&args, sizeof args);
    args.forward = &forward;
    args.dout = dout;
    args.dlse = gradients.dlse;
    args.dq = gradients.dq;
    args.dk = gradients.dk;
    args.dv = gradients.dv;
    args.dsinks = gradients.dsinks;
    args.dbias = gradients.dbias;
    args.dalibi_slopes = gradients.dalibi_slopes;
    args.workspace = gradients.workspace.data();
    args.workspace_bytes = gradients.workspace.size();
    return args;
}

// The gradients of a forward call, of which `forward` are the arguments and out and lse the results.
inline void backward(const foveal_forward_args& forward, const Tensor& dout, const Gradients& gradients,
                     void* stream = nullptr) {
    const foveal_backward_args args = backward_args(forward, dout, gradients);
    check(foveal_backward(&args, stream));
}

// A partial result: attention over some of the keys, as forward() gives it with a log-sum-exp.
struct Part {
    Tensor out;  // [b, s_q, h_q, d_v] or [total_q, h_q, d_v]
    Tensor lse;  // f32 [b, h_q, s_q] or [h_q, total_q]
};

// Everything of merge() but the parts and out.
struct MergeOptions {
    Tensor lse = {};                       // where the merged log-sum-exp goes, if it is wanted
    Backend backend = Backend::automatic;  // who computes
};

// out (and options.lse) from partial results over disjoint sets of keys: as attention over all of them. out may be one
// of the parts' (and options.lse likewise).
inline void merge(std::span<const Part> parts, const Tensor& out, const MergeOptions& options = {},
                  void* stream = nullptr) {
    if (parts.size() > FOVEAL_MAX_MERGE_PARTS)
        throw Error(FOVEAL_INVALID_ARGUMENT, "there are " + std::to_string(parts.size()) +
                                                 " parts; one call merges at most " +
                                                 std::to_string(FOVEAL_MAX_MERGE_PARTS));
    std::array<foveal_tensor, FOVEAL_MAX_MERGE_PARTS> outs, lses;
    for (size_t n = 0; n < parts.size(); ++n) {
        outs[n] = parts[n].out;
        lses[n] = parts[n].lse;
    }
    foveal_merge_args args;
    foveal_merge_args_init_sized(&args, sizeof args);
    args.backend = static_cast<foveal_backend>(options.backend);
    args.parts = static_cast<int32_t>(parts.size());
    args.outs = outs.data();
    args.lses = lses.data();
    args.out = out;
    args.lse = options.lse;
    check(foveal_merge(&args, stream));
}

// The same of two.
inline void merge(const Part& a, const Part& b, const Tensor& out, const MergeOptions& options = {},
                  void* stream = nullptr) {
    const Part parts[] = {a, b};
    merge(parts, out, options, stream);
}

// What append() is given; each tensor is that of foveal_append_args.
struct AppendOptions {
    Tensor k = {};              // [b, s_new, h_k, d] or [total_new, h_k, d]
    Tensor v = {};              // [b, s_new, h_k, d_v] or [total_new, h_k, d_v]
    Tensor k_cache = {};        // [pages, page_size, h_k, d]
    Tensor v_cache = {};        // [pages, page_size, h_k, d_v]
    Tensor slot_mapping = {};   // i64, a number for each new row: rows go to slots, or ...
    Tensor cache_lengths = {};  // ... i32 [b]: behind what the cache holds
    Tensor cu_seqlens = {};     // i32 [b + 1], of ragged rows
    Tensor block_table = {};    // i32 or u32 [b, max_pages]; absent: page i is all of sequence i
    Tensor cos = {};            // [positions, rot/2]
    Tensor sin = {};            // [positions, rot/2]
    Tensor positions = {};      // i32 or i64, a number for each new row; absent: the row's number as a key
    RotaryLayout rotary_layout = RotaryLayout::half_split;  // which elements turn together
    Tensor q = {};                                          // [b, s_new, h_q, d] or [total_new, h_q, d]
    Tensor q_out = {};                                      // as q
    Tensor k_scale = {};                                    // f32 [1] or [h_k]; absent: 1
    Tensor v_scale = {};                                    // f32 [1] or [h_k]; absent: 1
    Tensor k_scale_out = {};                                // f32 [h_k] or [pages, page_size, h_k]: worked out, written
    Tensor v_scale_out = {};                                // likewise
    Backend backend = Backend::automatic;                   // who computes
};

// Writes new rows of k and v to a cache, turned by a rotary embedding, and rows of q turned alike to q_out.
inline void append(const AppendOptions& options, void* stream = nullptr) {
    foveal_append_args args;
    foveal_append_args_init_sized(&args, sizeof args);
    args.backend = static_cast<foveal_backend>(options.backend);
    args.k = options.k;
    args.v = options.v;
    args.k_cache = options.k_cache;
    args.v_cache = options.v_cache;
    args.slot_mapping = options.slot_mapping;
    args.cache_lengths = options.cache_lengths;
    args.cu_seqlens = options.cu_seqlens;
    args.block_table = options.block_table;
    args.cos = options.cos;
    args.sin = options.sin;
    args.positions = options.positions;
    args.rotary_layout = static_cast<foveal_rotary_layout>(options.rotary_layout);
    args.q = options.q;
    args.q_out = options.q_out;
    args.k_scale = options.k_scale;
    args.v_scale = options.v_scale;
    args.k_scale_out = options.k_scale_out;
    args.v_scale_out = options.v_scale_out;
    check(foveal_append(&args, stream));
}

// What copy_pages() is given; each tensor is that of foveal_copy_pages_args.
struct CopyPagesOptions {
    Tensor k_cache = {};                   // [pages, page_size, h_k, d]
    Tensor v_cache = {};                   // [pages, page_size, h_k, d_v]
    Tensor pairs = {};                     // i32 or i64 [n, 2]: src, dst; negative: nothing is copied
    Backend backend = Backend::automatic;  // who computes
};

// Copies whole pages of a cache, bit for bit.
inline void copy_pages(const CopyPagesOptions& options, void* stream = nullptr) {
    foveal_copy_pages_args args;
    foveal_copy_pages_args_init_sized(&args, sizeof args);
    args.backend = static_cast<foveal_backend>(options.backend);
    args.k_cache = options.k_cache;
    args.v_cache = options.v_cache;
    args.pairs = options.pairs;
    check(foveal_copy_pages(&args, stream));
}

// What gather() is given; each tensor is that of foveal_gather_args.
struct GatherOptions {
    Tensor k_cache = {};                   // [pages, page_size, h_k, d]
    Tensor v_cache = {};                   // [pages, page_size, h_k, d_v]
    Tensor k = {};                         // [total_k, h_k, d]; written
    Tensor v = {};                         // [total_k, h_k, d_v]; written
    Tensor cu_seqlens_k = {};              // i32 [b + 1]: sequence i's rows of k and v
    Tensor seqused_k = {};                 // i32 [b]; absent: all rows
    Tensor block_table = {};               // i32 or u32 [b, max_pages], or ...
    Tensor page_indptr = {};               // ... i32 [b + 1] and ...
    Tensor page_indices = {};              // ... i32 or u32 [n]
    Backend backend = Backend::automatic;  // who computes
};

// Writes the keys and values of sequences in pages one behind the other, as varlen k and v, bit for bit.
inline void gather(const GatherOptions& options, void* stream = nullptr) {
    foveal_gather_args args;
    foveal_gather_args_init_sized(&args, sizeof args);
    args.backend = static_cast<foveal_backend>(options.backend);
    args.k_cache = options.k_cache;
    args.v_cache = options.v_cache;
    args.k = options.k;
    args.v = options.v;
    args.cu_seqlens_k = options.cu_seqlens_k;
    args.seqused_k = options.seqused_k;
    args.block_table = options.block_table;
    args.page_indptr = options.page_indptr;
    args.page_indices = options.page_indices;
    check(foveal_gather(&args, stream));
}

// Threads that a call on the CPU may use at most, for all threads of the process; 0: the default. foveal.h has the
// order in which this, FOVEAL_NUM_THREADS, OMP_NUM_THREADS and the CPUs at hand count. Throws Error outside [0, 4096].
inline void set_num_threads(int32_t threads) { check(foveal_set_num_threads(threads)); }

// Another pool's threads in place of the library's own; null: its own again. foveal.h says what a runner does.
inline void set_thread_runner(foveal_thread_runner runner, void* context) noexcept {
    foveal_set_thread_runner(runner, context);
}

// What this thread's next call may use. Throws Error if FOVEAL_NUM_THREADS is asked and malformed.
inline int32_t get_num_threads() {
    const int32_t threads = foveal_get_num_threads();
    if (threads < 0) throw Error(FOVEAL_INVALID_ARGUMENT, foveal_last_error());
    return threads;
}

// Would forward() accept these shapes and options? If not, *reason (may be null) says why.
inline bool supports(const foveal_forward_args& args, std::string* reason = nullptr) {
    if (foveal_supports(&args) == FOVEAL_OK) return true;
    if (reason != nullptr) *reason = foveal_last_error();
    return false;
}

// The same of backward().
inline bool supports(const foveal_backward_args& args, std::string* reason = nullptr) {
    if (foveal_backward_supports(&args) == FOVEAL_OK) return true;
    if (reason != nullptr) *reason = foveal_last_error();
    return false;
}

// A kept plan. Copies share it.
class Plan {
   public:
    // device -1: a generic H200. args.backend must not be automatic.
    explicit Plan(const foveal_forward_args& args, int32_t device = -1) {
        foveal_plan* plan = nullptr;
        check(foveal_plan_create(&args, device, &plan));
        plan_.reset(plan, &foveal_plan_destroy);
    }
    // The same of backward().
    explicit Plan(const foveal_backward_args& args, int32_t device = -1) {
        foveal_plan* plan = nullptr;
        check(foveal_backward_plan_create(&args, device, &plan));
        plan_.reset(plan, &foveal_plan_destroy);
    }

    // For people to read: kernel, tile, grid, order of work, predicted bound.
    std::string describe() const {
        size_t size = 0;
        check(foveal_plan_describe(plan_.get(), nullptr, 0, &size));
        std::string text(size, '\0');
        check(foveal_plan_describe(plan_.get(), text.data(), text.size(), nullptr));
        text.pop_back();  // the terminating NUL
        return text;
    }

    // Bytes of device workspace with which a launch is fast; 0: it needs none.
    size_t workspace_bytes() const { return foveal_plan_workspace_bytes(plan_.get()); }

    // args must describe the problem that the plan was made for; pointers may differ.
    void launch(const foveal_forward_args& args, void* stream = nullptr) const {
        check(foveal_plan_launch(plan_.get(), &args, stream));
    }
    // Likewise.
    void launch(const foveal_backward_args& args, void* stream = nullptr) const {
        check(foveal_backward_plan_launch(plan_.get(), &args, stream));
    }

   private:
    std::shared_ptr<foveal_plan> plan_;
};

}  // namespace v3
}  // namespace foveal

#endif
