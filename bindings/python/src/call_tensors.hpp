// The tensors of a call that writes to its caller's memory: append, copy_pages, gather.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <optional>

#include "arguments.hpp"
#include "tensor.hpp"
#include "torch.hpp"

namespace foveal::python {

template <class Args>
struct Parameter {
    const char* name;
    foveal_tensor Args::*tensor;
    bool is_written = false;
};

// Borrows the tensors as long as it lives. kParameters: an array of Parameter<Args>.
template <class Args, const auto& kParameters>
class CallTensors {
   public:
    static constexpr size_t kCount = kParameters.size();

    // `argument(i)` is the i-th parameter's; uint8_as: what uint8 elements are, an argument too.
    template <class Argument>
    explicit CallTensors(Argument&& argument, nb::handle uint8_as = {}) : bytes_(bytes_of(uint8_as)) {
        for (size_t i = 0; i < kCount; ++i) objects_[i] = nb::borrow(argument(i));
    }

    bool given(size_t i) const { return !objects_[i].is_none(); }
    // The first of the given ones among these; kCount: none is.
    size_t first_of(std::initializer_list<size_t> candidates) const {
        for (const size_t i : candidates)
            if (given(i)) return i;
        return kCount;
    }
    const Borrowed& operator[](size_t i) const { return *borrowed_[i]; }
    PyObject* object(size_t i) const { return objects_[i].ptr(); }

    void borrow(Form form) {
        for (size_t i = 0; i < kCount; ++i)
            if (given(i)) borrow(i, form);
    }
    // Of what calls allocate; nobody has to be asked whether it may be written to.
    void put_new(size_t i, nb::object object, Form form) {
        objects_[i] = std::move(object);
        is_new_[i] = true;
        borrow(i, form);
    }
    bool is_new(size_t i) const { return is_new_[i]; }

    void require_one_device(size_t first) const {
        for (size_t i = 0; i < kCount; ++i)
            if (given(i))
                require_same_device(*borrowed_[i], kParameters[i].name, *borrowed_[first], kParameters[first].name);
    }
    // True: PyTorch has let tensors like these pass before.
    bool are_familiar(size_t first, torch::MainTensors& main) const {
        main.begin(borrowed_[first]->view.dtype, borrowed_[first]->device);
        for (size_t i = 0; i < kCount; ++i)
            if (given(i)) main.add(object(i), borrowed_[i]->view.rank);
        return torch::are_familiar(main);
    }
    void refuse_lazy() const {
        for (size_t i = 0; i < kCount; ++i) {
            if (!given(i) || !borrowed_[i]->is_torch()) continue;
            torch::refuse_negative(object(i), kParameters[i].name);
            torch::refuse_derivative(object(i), kParameters[i].name, torch::tangents_may_be());
        }
    }
    void prepare_to_write(bool is_familiar) const {
        nb::list written;
        for (size_t i = 0; i < kCount; ++i) {
            if (!kParameters[i].is_written || !given(i) || is_new_[i]) continue;
            require_writable(*borrowed_[i], objects_[i], kParameters[i].name, is_familiar);
            if (borrowed_[i]->is_torch()) written.append(objects_[i]);
        }
        if (nb::len(written) != 0) torch::announce_writes(written);
    }
    void fill(Args& args) const {
        for (size_t i = 0; i < kCount; ++i)
            if (given(i)) args.*kParameters[i].tensor = borrowed_[i]->view;
    }

   private:
    void borrow(size_t i, Form form) { borrowed_[i].emplace(object(i), kParameters[i].name, form, bytes_); }

    Bytes bytes_;
    std::array<nb::object, kCount> objects_;
    std::array<std::optional<Borrowed>, kCount> borrowed_;
    std::array<bool, kCount> is_new_{};
};

// A call on these tensors: past PyTorch's dispatcher where it watches, else `allocate` and `launch`, between which the
// tensors' device is current. `through_dispatcher` calls the operator; `dispatched`: it has brought the call here.
template <class Tensors, class Through, class Allocate, class Launch>
nb::object run_call(Tensors& tensors, size_t first, bool dispatched, const char* first_name, Through through_dispatcher,
                    Allocate allocate, Launch launch) {
    const Form form = dispatched ? Form::dispatched : Form::tensor;
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
        is_familiar = tensors.are_familiar(first, main);
        if (!is_familiar && torch::calls_are_watched()) return through_dispatcher();
    }
    if (!dispatched && !is_familiar) tensors.refuse_lazy();
    tensors.require_one_device(first);
    const foveal_backend backend = backend_on(tensors[first].device, first_name);
    const CurrentDevice guard(tensors[first].type, tensors[first].device);
    allocate(form);
    tensors.prepare_to_write(dispatched || is_familiar);
    if (main.count() != 0 && !is_familiar) torch::make_familiar(main);
    return launch(backend);
}

}  // namespace foveal::python
