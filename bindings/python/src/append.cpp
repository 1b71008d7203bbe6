// foveal.append.
#include <array>
#include <string>

#include "arguments.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

struct Parameter {
    const char* name;
    foveal_tensor foveal_append_args::*tensor;
    bool is_written = false;
};
// As foveal.append() has them, but for `interleaved` behind positions.
constexpr std::array kParameters{Parameter{"k", &foveal_append_args::k},
                                 Parameter{"v", &foveal_append_args::v},
                                 Parameter{"k_cache", &foveal_append_args::k_cache, true},
                                 Parameter{"v_cache", &foveal_append_args::v_cache, true},
                                 Parameter{"slot_mapping", &foveal_append_args::slot_mapping},
                                 Parameter{"cache_lengths", &foveal_append_args::cache_lengths},
                                 Parameter{"cu_seqlens", &foveal_append_args::cu_seqlens},
                                 Parameter{"block_table", &foveal_append_args::block_table},
                                 Parameter{"cos", &foveal_append_args::cos},
                                 Parameter{"sin", &foveal_append_args::sin},
                                 Parameter{"positions", &foveal_append_args::positions},
                                 Parameter{"q", &foveal_append_args::q},
                                 Parameter{"q_out", &foveal_append_args::q_out, true},
                                 Parameter{"k_scale", &foveal_append_args::k_scale},
                                 Parameter{"v_scale", &foveal_append_args::v_scale}};
constexpr size_t kInterleaved = 11;  // its place among the arguments
constexpr size_t kK = 0, kV = 1, kQ = 11, kQOut = 12;

// The tensors of a call. Borrows them as long as it lives.
class Tensors {
   public:
    // The arguments of foveal.append() by position.
    explicit Tensors(PyObject* const* arguments) {
        for (size_t i = 0; i < kParameters.size(); ++i)
            objects_[i] = nb::borrow(arguments[i < kInterleaved ? i : i + 1]);
    }

    bool given(size_t i) const { return !objects_[i].is_none(); }
    // k, v or q.
    size_t first() const {
        for (const size_t i : {kK, kV, kQ})
            if (given(i)) return i;
        refuse("k, v and q are None; there is nothing to append");
    }
    const Borrowed& operator[](size_t i) const { return *borrowed_[i]; }
    PyObject* object(size_t i) const { return objects_[i].ptr(); }

    void borrow(Form form) {
        for (size_t i = 0; i < kParameters.size(); ++i)
            if (given(i)) borrow(i, form);
    }
    void require_one_device() const {
        for (size_t i = 0; i < kParameters.size(); ++i)
            if (given(i))
                require_same_device(*borrowed_[i], kParameters[i].name, *borrowed_[first()], kParameters[first()].name);
    }
    // True: PyTorch has let tensors like these pass before.
    bool are_familiar(torch::MainTensors& main) const {
        main.begin(borrowed_[first()]->view.dtype, borrowed_[first()]->device);
        for (size_t i = 0; i < kParameters.size(); ++i)
            if (given(i)) main.add(object(i), borrowed_[i]->view.rank);
        return torch::are_familiar(main);
    }
    void refuse_lazy() const {
        for (size_t i = 0; i < kParameters.size(); ++i) {
            if (!given(i) || !borrowed_[i]->is_torch()) continue;
            torch::refuse_negative(object(i), kParameters[i].name);
            torch::refuse_derivative(object(i), kParameters[i].name, torch::tangents_may_be());
        }
    }
    // q's own result, if there is none to write to; of q's device, which is current.
    void make_q_out(Form form) {
        if (!given(kQ) || given(kQOut)) return;
        foveal_tensor view = borrowed_[kQ]->view;
        pack_strides(view);
        objects_[kQOut] = new_tensor(borrowed_[kQ]->type, object(kQ), borrowed_[kQ]->device, view, true);
        q_out_is_new_ = true;
        borrow(kQOut, form);
    }
    void prepare_to_write(bool is_familiar) const {
        nb::list written;
        for (size_t i = 0; i < kParameters.size(); ++i) {
            if (!kParameters[i].is_written || !given(i) || (i == kQOut && q_out_is_new_)) continue;
            require_writable(*borrowed_[i], objects_[i], kParameters[i].name, is_familiar);
            if (borrowed_[i]->is_torch()) written.append(objects_[i]);
        }
        if (nb::len(written) != 0) torch::announce_writes(written);
    }
    void fill(foveal_append_args& args) const {
        for (size_t i = 0; i < kParameters.size(); ++i)
            if (given(i)) args.*kParameters[i].tensor = borrowed_[i]->view;
    }
    nb::object q_out() const {
        return q_out_is_new_ ? returned_form(borrowed_[kQ]->type, objects_[kQOut]) : objects_[kQOut];
    }

   private:
    void borrow(size_t i, Form form) { borrowed_[i].emplace(object(i), kParameters[i].name, form); }

    std::array<nb::object, kParameters.size()> objects_;
    std::array<std::optional<Borrowed>, kParameters.size()> borrowed_;
    bool q_out_is_new_ = false;
};

}  // namespace

nb::object append(PyObject* const* arguments) {
    constexpr size_t kArguments = kParameters.size() + 1;
    const bool dispatched = arguments[kArguments] == Py_True;
    const Form form = dispatched ? Form::dispatched : Form::tensor;
    const bool interleaved = boolean(arguments[kInterleaved], "interleaved");
    Tensors tensors(arguments);
    const size_t first = tensors.first();
    const auto through_dispatcher = [&] { return torch::through_dispatcher("_append", arguments, kArguments); };
    try {
        tensors.borrow(form);
    } catch (const Unreadable& tensor) {
        if (!dispatched && tensor_type_of(tensors.object(first)).framework == Framework::torch)
            return through_dispatcher();
        raise(FOVEAL_UNSUPPORTED, tensor.message);
    }
    torch::MainTensors main;
    bool is_familiar = false;
    if (!dispatched && tensors[first].is_torch()) {
        is_familiar = tensors.are_familiar(main);
        if (!is_familiar && torch::calls_are_watched()) return through_dispatcher();
    }
    if (!dispatched && !is_familiar) tensors.refuse_lazy();
    tensors.require_one_device();

    if (library.append == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no append");
    const foveal_backend backend = backend_on(tensors[first].device, kParameters[first].name);
    const CurrentDevice guard(tensors[first].type, tensors[first].device);
    tensors.make_q_out(form);
    tensors.prepare_to_write(dispatched || is_familiar);
    if (main.count() != 0 && !is_familiar) torch::make_familiar(main);
    foveal_append_args args;
    library.init(args);
    args.backend = backend;
    args.rotary_layout = interleaved ? FOVEAL_ROTARY_INTERLEAVED : FOVEAL_ROTARY_HALF_SPLIT;
    tensors.fill(args);
    launch_for(tensors[first], [&](void* stream) { return library.append(&args, stream); });
    return tensors.q_out();
}

}  // namespace foveal::python
