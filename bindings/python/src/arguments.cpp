#include "arguments.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>

#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

std::string quoted(nb::handle value) { return string_of(nb::repr(value)); }

std::string text_of(dlpack::Device device) {
    return device.type == dlpack::kCpu ? "the CPU" : "cuda:" + std::to_string(device.id);
}

double number(nb::handle value, const char* name) {
    const double result = PyFloat_AsDouble(value.ptr());
    if (result != -1.0 || PyErr_Occurred() == nullptr) return result;
    PyErr_Clear();
    raise_type_error(std::string(name) + " is " + quoted(value) + "; it must be a number");
}

// None: unlimited.
int64_t window_side(nb::handle value, const char* name) {
    if (value.is_none()) return FOVEAL_UNLIMITED;
    const int64_t width = integer(value, name);
    if (width < 0)
        refuse(std::string(name) + " is " + std::to_string(width) + "; it must be >= 0, or None for no limit");
    return width;
}

foveal_alignment alignment_of(nb::handle align) {
    if (PyUnicode_Check(align.ptr())) {
        if (PyUnicode_CompareWithASCIIString(align.ptr(), "bottom_right") == 0) return FOVEAL_BOTTOM_RIGHT;
        if (PyUnicode_CompareWithASCIIString(align.ptr(), "top_left") == 0) return FOVEAL_TOP_LEFT;
    }
    refuse("align is " + quoted(align) + "; known are \"bottom_right\" and \"top_left\"");
}

void shape_view(foveal_tensor& view, foveal_dtype dtype, std::initializer_list<int64_t> shape) {
    view = {};
    view.dtype = dtype;
    for (const int64_t n : shape) view.shape[view.rank++] = n;
    pack_strides(view);
}

}  // namespace

foveal_backend backend_on(dlpack::Device device, const char* tensor) {
    const bool on_cpu = device.type == dlpack::kCpu;
    const char* const forced = std::getenv("FOVEAL_BACKEND");
    if (forced != nullptr) {
        const std::string_view name(forced);
        if (!name.empty() && name != "auto" && name != (on_cpu ? "cpu" : "sm90"))
            refuse("the environment variable FOVEAL_BACKEND is \"" + std::string(name) + "\" but " + tensor +
                   " is on " + text_of(device) + "; from Python, foveal computes where tensors lie: " +
                   (on_cpu ? "cpu" : "sm90") + " or auto is possible here");
    }
    return on_cpu ? FOVEAL_BACKEND_CPU : FOVEAL_BACKEND_SM90;
}

void require_same_device(const Borrowed& tensor, const char* name, const Borrowed& q, const char* q_name) {
    if (!tensor.is_description() && !q.is_description() && tensor.device != q.device)
        refuse(std::string(name) + " is on " + text_of(tensor.device) + " but " + q_name + " is on " +
               text_of(q.device));
}

void require_writable(const Borrowed& tensor, nb::handle object, const char* name, bool is_familiar) {
    if (tensor.type.framework == Framework::jax)
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " is a JAX array; those cannot be written to");
    if (tensor.read_only) refuse(std::string(name) + " is read-only");
    if (tensor.type.framework != Framework::torch) return;
    if (!is_familiar) {
        torch::refuse_negative(object.ptr(), name);
        torch::refuse_derivative(object.ptr(), name, torch::tangents_may_be());
        torch::refuse_uncounted(object.ptr(), name);
    }
}

std::array<uint64_t, 2> dropout_numbers(nb::handle state) {
    if (PySequence_Size(state.ptr()) != 2)
        raise_type_error("dropout_state is " + quoted(state) + "; it must be two integers, seed and offset");
    std::array<uint64_t, 2> numbers{};
    for (size_t i = 0; i < numbers.size(); ++i) {
        const nb::object index = nb::steal(PyNumber_Index(nb::object(state[i]).ptr()));
        if (index.is_valid()) numbers[i] = PyLong_AsUnsignedLongLongMask(index.ptr());
        if (PyErr_Occurred() == nullptr) continue;
        PyErr_Clear();
        raise_type_error("dropout_state is " + quoted(state) + "; it must be two integers, seed and offset");
    }
    return numbers;
}

bool boolean(nb::handle value, const char* name) {
    if (value.ptr() == Py_True) return true;
    if (value.ptr() == Py_False) return false;
    raise_type_error(std::string(name) + " is " + quoted(value) + "; it must be True or False");
}

ForwardArguments::ForwardArguments(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q,
                                   nb::handle cu_seqlens_k, const Options& options, Form form)
    : form_(form),
      objects_{q,
               k,
               v,
               options.bias,
               options.sinks,
               options.alibi_slopes,
               options.mask,
               options.seqused_q,
               options.seqused_k,
               cu_seqlens_q,
               cu_seqlens_k,
               options.block_table,
               options.page_indptr,
               options.page_indices,
               options.query_offset,
               options.tree_mask,
               options.q_descale,
               options.k_descale,
               options.v_descale,
               {},
               options.workspace},
      q_(q.ptr(), "q", form, bytes_of(options.uint8_as)),
      k_(k.ptr(), "k", form, bytes_of(options.uint8_as)),
      v_(v.ptr(), "v", form, bytes_of(options.uint8_as)) {
    library.init(args_);
    require_same_device(k_, "k", q_, "q");
    require_same_device(v_, "v", q_, "q");
    args_.q = q_.view;
    args_.k = k_.view;
    args_.v = v_.view;
    add(args_.cu_seqlens_q, cu_seqlens_q_, cu_seqlens_q, "cu_seqlens_q");
    add(args_.cu_seqlens_k, cu_seqlens_k_, cu_seqlens_k, "cu_seqlens_k");
    add(args_.seqused_q, seqused_q_, options.seqused_q, "seqused_q");
    add(args_.seqused_k, seqused_k_, options.seqused_k, "seqused_k");
    add(args_.alibi_slopes, alibi_slopes_, options.alibi_slopes, "alibi_slopes");
    add(args_.sinks, sinks_, options.sinks, "sinks");
    add(args_.bias, bias_, options.bias, "bias");
    add(args_.mask, mask_, options.mask, "mask");
    add(args_.block_table, block_table_, options.block_table, "block_table");
    add(args_.page_indptr, page_indptr_, options.page_indptr, "page_indptr");
    add(args_.page_indices, page_indices_, options.page_indices, "page_indices");
    add(args_.query_offset, query_offset_, options.query_offset, "query_offset");
    set_tree(options.tree_mask);
    set_descales(options);
    set_dropout(options.dropout_p, options.dropout_state);
    set_workspace(options.workspace);
    set_numbers(options);
}

void ForwardArguments::add(foveal_tensor& slot, std::optional<Borrowed>& borrowed, nb::handle object,
                           const char* name) {
    if (!object.is_valid() || object.is_none()) return;
    borrowed.emplace(object.ptr(), name, form_);
    require_same_device(*borrowed, name, q_, "q");
    slot = borrowed->view;
}

// 32 bits are 32 bits: most functions of PyTorch take no uint32.
void ForwardArguments::set_tree(nb::handle tree_mask) {
    add(args_.tree_mask, tree_mask_, tree_mask, "tree_mask");
    if (args_.tree_mask.dtype == FOVEAL_I32) args_.tree_mask.dtype = FOVEAL_U32;
}

void ForwardArguments::set_descales(const Options& options) {
    add(args_.q_descale, q_descale_, options.q_descale, "q_descale");
    add(args_.k_descale, k_descale_, options.k_descale, "k_descale");
    add(args_.v_descale, v_descale_, options.v_descale, "v_descale");
}

// A description says nothing of memory.
void ForwardArguments::set_dropout(nb::handle dropout_p, nb::handle state) {
    if (dropout_p.is_none() && state.is_none()) return;  // of a call that knows no dropout
    args_.dropout_p = static_cast<float>(number(dropout_p, "dropout_p"));
    if (state.is_none() && args_.dropout_p > 0 && form_ == Form::tensor)
        refuse("dropout_state is None and dropout_p is " + quoted(dropout_p) +
               "; a seed and an offset are needed here");
    if (state.is_none() || form_ == Form::description) return;
    if (PyTuple_Check(state.ptr()) || PyList_Check(state.ptr())) {
        if (q_.device.type != dlpack::kCpu)
            refuse("dropout_state is a pair of integers but q is on " + text_of(q_.device) +
                   "; it must be a tensor there, int64 [2]");
        dropout_numbers_ = python::dropout_numbers(state);
        args_.dropout_state = dropout_numbers_.data();
        return;
    }
    objects_[kDropoutState] = state;
    foveal_tensor view{};
    add(view, dropout_state_, state, "dropout_state");
    if (view.rank != 1 || view.shape[0] != 2 || view.stride[0] != 1)
        refuse("dropout_state must be packed, of shape [2]: seed and offset");
    args_.dropout_state = static_cast<const uint64_t*>(view.data);
}

// A foveal.Workspace, of which the tensor counts. A description says nothing of memory.
void ForwardArguments::set_workspace(nb::handle workspace) {
    if (!workspace.is_valid() || workspace.is_none() || form_ == Form::description) return;
    if (nb::hasattr(workspace, "tensor"))
        objects_[kWorkspace] = workspace_object_ = nb::object(workspace.attr("tensor"));
    foveal_tensor bytes{};
    add(bytes, workspace_, objects_[kWorkspace], "workspace");
    require_writable(*workspace_, objects_[kWorkspace], "workspace", true);
    if (!is_packed(bytes)) refuse("workspace has gaps; it must be packed");
    int64_t size = bytes.dtype == FOVEAL_BOOL                                ? 1
                   : bytes.dtype == FOVEAL_I64                               ? 8
                   : bytes.dtype == FOVEAL_BF16 || bytes.dtype == FOVEAL_F16 ? 2
                                                                             : 4;
    for (int32_t i = 0; i < bytes.rank; ++i) size *= bytes.shape[i];
    if (size == 0) return;
    args_.workspace = bytes.data;
    args_.workspace_bytes = static_cast<uint64_t>(size);
}

void ForwardArguments::set_numbers(const Options& options) {
    if (!options.scale.is_none()) {
        args_.scale = static_cast<float>(number(options.scale, "scale"));
        if (std::isnan(args_.scale)) refuse("scale is nan; it must be finite, or None for 1/sqrt(d)");
    }
    args_.softcap = static_cast<float>(number(options.softcap, "softcap"));
    args_.chunk = options.chunk.is_none() ? 0 : integer(options.chunk, "chunk");
    args_.alignment = alignment_of(options.align);
    set_window(options.window, boolean(options.causal, "causal"));
}

void ForwardArguments::set_window(nb::handle window, bool causal) {
    const bool unlimited = window.is_none() ||
                           (PyTuple_CheckExact(window.ptr()) && PyTuple_Size(window.ptr()) == 2 &&
                            PyTuple_GetItem(window.ptr(), 0) == Py_None && PyTuple_GetItem(window.ptr(), 1) == Py_None);
    if (!unlimited) {
        if (PySequence_Check(window.ptr()) == 0 || PySequence_Size(window.ptr()) != 2) {
            PyErr_Clear();
            raise_type_error("window is " + quoted(window) + "; it must be a pair (left, right) of integers or None");
        }
        args_.window_left = window_side(nb::object(window[0]), "window[0]");
        args_.window_right = window_side(nb::object(window[1]), "window[1]");
    }
    if (!causal) return;
    if (args_.window_right > 0)
        refuse("window[1] is " + std::to_string(args_.window_right) + " and causal is True, which means 0");
    args_.window_right = 0;
}

void ForwardArguments::set_backend(nb::handle backend) {
    if (backend.is_valid() && !backend.is_none()) {
        const std::string name = string_of(backend);
        if (name != "cpu" && name != "sm90") refuse("backend is \"" + name + "\"; known are \"cpu\" and \"sm90\"");
        args_.backend = name == "cpu" ? FOVEAL_BACKEND_CPU : FOVEAL_BACKEND_SM90;
    } else if (!q_.is_description()) {
        args_.backend = backend_on(q_.device, "q");
    }
}

// Only as far as q and v have the rank that it takes: what they lack, the library says. Keys, and so v, may have
// another form than q.
void ForwardArguments::shape_results(bool wants_lse) {
    const foveal_tensor &q = args_.q, &v = args_.v;
    const bool varlen = args_.cu_seqlens_q.rank != 0;
    const foveal_dtype dtype = q.dtype == FOVEAL_E4M3 ? foveal_dtype{FOVEAL_BF16} : q.dtype;
    const int32_t rank = varlen ? 3 : 4;
    const bool same_form = args_.cu_seqlens_k.rank == args_.cu_seqlens_q.rank && args_.block_table.rank == 0 &&
                           args_.page_indices.rank == 0;
    if (q.rank != rank || (same_form ? v.rank != rank : v.rank < 1))
        refuse(std::string(q.rank != rank ? "q" : "v") + " has rank " +
               std::to_string(q.rank != rank ? q.rank : v.rank) + "; " +
               (varlen ? "attention_varlen needs 3: [total, heads, d]" : "attention needs 4: [b, s, heads, d]"));
    if (varlen) {
        shape_view(args_.out, dtype, {q.shape[0], q.shape[1], v.shape[v.rank - 1]});
        if (wants_lse) shape_view(args_.lse, FOVEAL_F32, {q.shape[1], q.shape[0]});
    } else {
        shape_view(args_.out, dtype, {q.shape[0], q.shape[1], q.shape[2], v.shape[v.rank - 1]});
        if (wants_lse) shape_view(args_.lse, FOVEAL_F32, {q.shape[0], q.shape[2], q.shape[1]});
    }
}

void ForwardArguments::describe_results(bool wants_lse) { shape_results(wants_lse); }

void ForwardArguments::set_results(nb::handle out, bool wants_lse) {
    shape_results(wants_lse);
    PyObject* const q = objects_[0].ptr();
    const bool has_unused_rows = args_.seqused_q.rank != 0;  // which the library does not write
    out_is_new_ = out.is_none();
    const bool is_as_q = args_.out.dtype == args_.q.dtype;
    out_object_ = out_is_new_ ? new_tensor(q_.type, q, q_.device, args_.out, is_as_q) : nb::borrow(out);
    if (out_is_new_ && has_unused_rows) fill(q_.type, out_object_, 0);
    out_.emplace(out_object_.ptr(), "out");
    if (!out_is_new_) {
        require_same_device(*out_, "out", q_, "q");
        require_writable(*out_, out_object_, "out", is_familiar_);
        if (out_->is_torch()) torch::announce_writes(nb::make_tuple(out_object_));
    }
    args_.out = out_->view;
    if (main_.count() != 0 && !is_familiar_) torch::make_familiar(main_);
    if (!wants_lse) return;
    lse_object_ = new_tensor(q_.type, q, q_.device, args_.lse, false);
    if (has_unused_rows) fill(q_.type, lse_object_, -std::numeric_limits<float>::infinity());
    lse_.emplace(lse_object_.ptr(), "lse");
    args_.lse = lse_->view;
}

void ForwardArguments::borrow_results(nb::handle out, nb::handle lse) {
    out_.emplace(out.ptr(), "out", form_);
    lse_.emplace(lse.ptr(), "lse", form_);
    require_same_device(*out_, "out", q_, "q");
    require_same_device(*lse_, "lse", q_, "q");
    args_.out = out_->view;
    args_.lse = lse_->view;
}

const Borrowed* ForwardArguments::borrowed(size_t i) const {
    const std::array<const std::optional<Borrowed>*, kTensors> optional{
        nullptr,        nullptr,     nullptr,        &bias_,         &sinks_,       &alibi_slopes_,  &mask_,
        &seqused_q_,    &seqused_k_, &cu_seqlens_q_, &cu_seqlens_k_, &block_table_, &page_indptr_,   &page_indices_,
        &query_offset_, &tree_mask_, &q_descale_,    &k_descale_,    &v_descale_,   &dropout_state_, &workspace_};
    const std::array main{&q_, &k_, &v_};
    if (i < main.size()) return main[i];
    return *optional[i] ? &**optional[i] : nullptr;
}

Course ForwardArguments::course(nb::handle out) {
    constexpr std::array<const char*, kTensors> kNames{"q",
                                                       "k",
                                                       "v",
                                                       "bias",
                                                       "sinks",
                                                       "alibi_slopes",
                                                       "mask",
                                                       "seqused_q",
                                                       "seqused_k",
                                                       "cu_seqlens_q",
                                                       "cu_seqlens_k",
                                                       "block_table",
                                                       "page_indptr",
                                                       "page_indices",
                                                       "query_offset",
                                                       "tree_mask",
                                                       "q_descale",
                                                       "k_descale",
                                                       "v_descale",
                                                       "dropout_state",
                                                       "workspace"};
    constexpr size_t kMain = kV + 1;
    if (q_.is_torch()) {
        main_.begin(q_.view.dtype, q_.device);
        for (size_t i = 0; i < kMain; ++i) main_.add(objects_[i].ptr(), borrowed(i)->view.rank);
        if (!out.is_none()) main_.add(out.ptr(), q_.view.rank);
        is_familiar_ = torch::are_familiar(main_);
        if (!is_familiar_ && torch::calls_are_watched()) return Course::watched;
    }
    bool records_gradient = false;
    for (size_t i = is_familiar_ ? kMain : 0; i < kTensors; ++i) {
        if (borrowed(i) == nullptr || !borrowed(i)->is_torch()) continue;
        torch::refuse_negative(objects_[i].ptr(), kNames[i]);
        if (i >= kMask) continue;
        torch::refuse_tangent(objects_[i].ptr(), kNames[i], torch::tangents_may_be());
        if (torch::records_gradient(objects_[i].ptr())) records_gradient = true;
    }
    if (!records_gradient) return Course::plain;
    return all_are_plain_tensors() && !torch::is_transformed() ? Course::recorded : Course::watched;
}

CurrentDevice ForwardArguments::enter_device() const { return {q_.type, q_.device}; }

void ForwardArguments::launch() {
    launch_for(q_, [&](void* stream) { return library.forward(&args_, stream); });
}

nb::object ForwardArguments::result(bool wants_lse) const {
    const nb::object out = out_is_new_ ? returned_form(q_.type, out_object_) : out_object_;
    if (!wants_lse) return out;
    return nb::make_tuple(out, returned_form(q_.type, lse_object_));
}

}  // namespace foveal::python
