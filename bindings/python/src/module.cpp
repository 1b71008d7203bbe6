// The module foveal._foveal. Its functions take all their arguments by position: foveal/_functions.py gives them names,
// defaults and documentation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

using namespace nb::literals;

using Arguments = PyObject* const*;

Options dense_options(Arguments from) {
    return {from[0], from[1], from[2], from[3], from[4],  from[5],
            from[6], from[7], from[8], from[9], from[10], from[11]};
}

Options varlen_options(Arguments from) {
    return {from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7], {}, {}, from[8], from[9]};
}

// A forward call. `count` arguments as Python gave them, which `dispatcher_function` of foveal.torch takes as well. The
// last but two are return_lse and out; the one after them says whether PyTorch's dispatcher has brought the call here.
nb::object forward(Arguments arguments, size_t count, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                   const Options& options, const char* dispatcher_function) {
    const nb::handle out = arguments[count - 1];
    const bool wants_lse = boolean(arguments[count - 2], "return_lse"), dispatched = arguments[count] == Py_True;
    std::optional<ForwardArguments> problem;
    try {
        problem.emplace(arguments[0], arguments[1], arguments[2], cu_seqlens_q, cu_seqlens_k, options,
                        dispatched ? Form::dispatched : Form::tensor);
    } catch (const Unreadable& tensor) {
        if (!dispatched && tensor_type_of(arguments[0]).framework == Framework::torch)
            return torch::through_dispatcher(dispatcher_function, arguments, count);
        raise(FOVEAL_UNSUPPORTED, tensor.message);
    }
    if (!dispatched && !problem->is_plain(out)) return torch::through_dispatcher(dispatcher_function, arguments, count);
    problem->set_backend({});
    const CurrentDevice guard = problem->enter_device();
    problem->set_results(out, wants_lse);
    problem->launch();
    return problem->result(wants_lse);
}

// q, k, v, scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k,
// return_lse, out; dispatched
nb::object attention(Arguments arguments) {
    return forward(arguments, 17, {}, {}, dense_options(arguments + 3), "_attention");
}

// q, k, v, cu_seqlens_q, cu_seqlens_k, the options but bias and mask, return_lse, out; dispatched
nb::object attention_varlen(Arguments arguments) {
    for (const auto& [name, i] : {std::pair{"cu_seqlens_q", 3}, {"cu_seqlens_k", 4}})
        if (arguments[i] == Py_None) raise_type_error(std::string(name) + " is None; attention_varlen needs it");
    return forward(arguments, 17, arguments[3], arguments[4], varlen_options(arguments + 5), "_attention_varlen");
}

nb::object merge(Arguments arguments) {
    return python::merge(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4] == Py_True);
}

// Of supports() and plan(), which take the arguments of either form: q, k, v, cu_seqlens_q, cu_seqlens_k, the options,
// return_lse, backend.
class Described : public ForwardArguments {
   public:
    explicit Described(Arguments arguments)
        : ForwardArguments(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                           dense_options(arguments + 5), Form::description) {
        set_backend(arguments[18]);
        describe_results(boolean(arguments[17], "return_lse"));
    }
};

// Why the problem is not supported; empty if it is.
nb::object supports(Arguments arguments) {
    const Described problem(arguments);
    const foveal_status status = library.supports(&problem.args());
    if (status == FOVEAL_OK) return nb::str("");
    if (status == FOVEAL_UNSUPPORTED || status == FOVEAL_NO_DEVICE) return nb::str(library.last_error());
    raise(status, library.last_error());
}

// (text, bytes of workspace)
nb::object plan(Arguments arguments) {
    const Described problem(arguments);
    foveal_plan* plan = nullptr;
    check(library.plan_create(&problem.args(), problem.cuda_device(), &plan));
    const std::unique_ptr<foveal_plan, decltype(library.plan_destroy)> owner(plan, library.plan_destroy);
    size_t needed = 0;
    check(library.plan_describe(plan, nullptr, 0, &needed));
    std::vector<char> text(needed);
    check(library.plan_describe(plan, text.data(), text.size(), nullptr));
    return nb::make_tuple(nb::str(text.data()), library.plan_workspace_bytes(plan));
}

// A function of `count` positional arguments. Called directly, past nanobind's matching of arguments: 0.3 us less a
// call.
template <nb::object (*function)(Arguments), Py_ssize_t count>
PyObject* entry(PyObject*, Arguments arguments, Py_ssize_t given) noexcept {
    try {
        if (given != count)
            raise_type_error("it takes " + std::to_string(count) + " arguments, not " + std::to_string(given));
        return function(arguments).release().ptr();
    } catch (nb::python_error& error) {
        error.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

template <nb::object (*function)(Arguments), Py_ssize_t count>
PyMethodDef method(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry<function, count>)), METH_FASTCALL,
            "See the function of this name in foveal."};
}

NB_MODULE(_foveal, module) {
    define_errors(module);
    define_host_buffer(module);

    static PyMethodDef functions[]{method<attention, 18>("attention"), method<attention_varlen, 18>("attention_varlen"),
                                   method<merge, 5>("merge"),          method<supports, 19>("supports"),
                                   method<plan, 19>("plan"),           {}};
    if (PyModule_AddFunctions(module.ptr(), functions) != 0) rethrow();

    module.def(
        "version", [] { return library.version(); }, "The version of libfoveal.");
    module.def(
        "backends",
        [] {
            nb::list names;
            names.append("cpu");
            if (library.backend_built(FOVEAL_BACKEND_SM90) != 0) names.append("sm90");
            return names;
        },
        "The backends of this build: \"cpu\", and \"sm90\" if it has the CUDA part.");
    module.def("use_library", use_library, "path"_a,
               "Calls the libfoveal at `path` from now on (\"\": the package's own); returns the one before. "
               "For measuring several builds side by side.");
}

}  // namespace
}  // namespace foveal::python
