// The module foveal._foveal. What a model calls matches its own keywords, quicker than Python or nanobind would; the
// other functions take all their arguments by position, and foveal/_functions.py gives them names and defaults.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "documentation.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "parallel.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

using namespace nb::literals;

using Arguments = PyObject* const*;

// Of a dense problem, without descales: what gradients have.
Options plain_options(Arguments from) {
    return {from[0],  from[1],  from[2],  from[3],  from[4],  from[5],  from[6],  from[7],  from[8],  from[9],
            from[10], from[11], from[12], from[13], from[14], from[15], from[16], from[17], from[18], from[19]};
}

Options dense_options(Arguments from) {
    Options options = plain_options(from);
    options.q_descale = from[20], options.k_descale = from[21], options.v_descale = from[22];
    options.uint8_as = from[23];
    return options;
}

Options varlen_options(Arguments from) {
    return {from[0],  from[1],  from[2],  from[3],  from[4],  from[5],  from[6],  from[7],
            {},       {},       from[8],  from[9],  from[10], from[11], from[12], from[13],
            from[14], from[15], from[16], from[17], from[18], from[19], from[20], from[21]};
}

// Arguments of attention() and attention_varlen() each, without what is behind them, and where they have dropout_p and
// then dropout_state.
constexpr size_t kForwardArguments = 29, kDropoutPlace = 21;

// Must PyTorch's generator be asked for the state of a call's dropout? Not where its dispatcher has brought the call:
// it has been asked then.
bool draws_state(Arguments arguments) {
    if (arguments[kDropoutPlace + 1] != Py_None || tensor_type_of(arguments[0]).framework != Framework::torch)
        return false;
    const double p = PyFloat_AsDouble(arguments[kDropoutPlace]);
    if (PyErr_Occurred() != nullptr) PyErr_Clear();  // what is no number is refused with its name
    return p > 0;
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
    const Course course = dispatched ? Course::plain : problem->course(out);
    const bool is_recorded = course == Course::recorded && out.is_none();
    if (course != Course::plain && !is_recorded)
        return torch::through_dispatcher(dispatcher_function, arguments, count);
    problem->set_backend({});
    if (is_recorded) problem->require_gradient();
    const CurrentDevice guard = problem->enter_device();
    problem->set_results(out, wants_lse || is_recorded);
    problem->launch();
    return is_recorded ? problem->recorded_result(options, wants_lse) : problem->result(wants_lse);
}

// call(arguments), among which is a state that PyTorch's generator has given, if one has to.
template <class Call>
nb::object with_state(Arguments arguments, Call&& call) {
    if (arguments[kForwardArguments] == Py_True || !draws_state(arguments)) return call(arguments);
    std::array<PyObject*, kForwardArguments + 1> all;
    std::copy_n(arguments, all.size(), all.begin());
    const nb::object state = torch::drawn_dropout_state(arguments[0]);
    all[kDropoutPlace + 1] = state.ptr();
    return call(all.data());
}

// q, k, v, scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k,
// block_table, page_indptr, page_indices, query_offset, tree_mask, workspace, dropout_p, dropout_state, q_descale,
// k_descale, v_descale, uint8_as, return_lse, out; dispatched
nb::object attention(Arguments arguments) {
    return with_state(arguments, [](Arguments all) {
        return forward(all, kForwardArguments, {}, {}, dense_options(all + 3), "_attention");
    });
}

// q, k, v, cu_seqlens_q, cu_seqlens_k, the options but bias and mask, return_lse, out; dispatched
nb::object attention_varlen(Arguments arguments) {
    constexpr size_t kSequsedK = 14;
    if (arguments[3] == Py_None) raise_type_error("cu_seqlens_q is None; attention_varlen needs it");
    if (arguments[4] == Py_None && arguments[kSequsedK] == Py_None)
        raise_type_error("cu_seqlens_k is None; attention_varlen needs it, or seqused_k for keys that are not packed");
    return with_state(arguments, [](Arguments all) {
        return forward(all, kForwardArguments, all[3], all[4], varlen_options(all + 5), "_attention_varlen");
    });
}

// dout, dlse, out, lse, wanted, q, k, v, cu_seqlens_q, cu_seqlens_k, the options; dispatched
nb::object attention_backward(Arguments arguments) {
    return backward(arguments, plain_options(arguments + 10), arguments[30] == Py_True);
}

// q, k, v, cu_seqlens_q, cu_seqlens_k, the options
nb::object backward_supports(Arguments arguments) {
    return python::backward_supports(arguments, plain_options(arguments + 5));
}

nb::object append(Arguments arguments) { return python::append(arguments); }

nb::object copy_pages(Arguments arguments) { return python::copy_pages(arguments); }

nb::object gather(Arguments arguments) { return python::gather(arguments); }

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
        set_backend(arguments[kForwardArguments + 1]);
        describe_results(boolean(arguments[kForwardArguments], "return_lse"));
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

PyObject* raised(const std::exception_ptr& exception) noexcept {
    try {
        std::rethrow_exception(exception);
    } catch (nb::python_error& error) {
        error.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// A function of `count` positional arguments.
template <nb::object (*function)(Arguments), Py_ssize_t count>
PyObject* by_position(PyObject*, Arguments arguments, Py_ssize_t given) noexcept {
    try {
        if (given != count)
            raise_type_error("it takes " + std::to_string(count) + " arguments, not " + std::to_string(given));
        return function(arguments).release().ptr();
    } catch (...) {
        return raised(std::current_exception());
    }
}

template <nb::object (*function)(Arguments), Py_ssize_t count>
PyMethodDef positional(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(by_position<function, count>)),
            METH_FASTCALL, nullptr};
}

// Names of parameters, interned; defaults; and how many of them, the first, are required and may go by position.
struct Parameters {
    static constexpr size_t kMost = kForwardArguments;
    const char* function;
    size_t count, required;
    std::array<PyObject*, kMost> names, defaults;

    Parameters(const char* of, std::initializer_list<const char*> required_names, nb::dict options)
        : function(of), count(0), required(required_names.size()) {
        for (const char* const name : required_names) add(nb::str(name), {});
        for (const auto& [name, value] : options) add(name, value);
    }

    // Fills `slots`, [count], with what a caller gave, or with defaults.
    void match(Arguments given, size_t positional_count, PyObject* keywords, PyObject** slots) const {
        if (positional_count > required)
            refuse_call("takes " + std::to_string(required) + " positional arguments but " +
                        std::to_string(positional_count) + " were given");
        std::copy_n(given, positional_count, slots);
        std::copy(defaults.begin() + static_cast<std::ptrdiff_t>(positional_count),
                  defaults.begin() + static_cast<std::ptrdiff_t>(count), slots + positional_count);
        const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_Size(keywords);
        for (Py_ssize_t i = 0; i < named; ++i) {
            PyObject* const keyword = PyTuple_GetItem(keywords, i);
            const size_t place = place_of(keyword);
            if (place == count) refuse_call("got an unexpected keyword argument '" + string_of(keyword) + "'");
            if (place < positional_count) refuse_call("got multiple values for argument '" + string_of(keyword) + "'");
            slots[place] = given[positional_count + static_cast<size_t>(i)];
        }
        for (size_t i = positional_count; i < required; ++i)
            if (slots[i] == nullptr) refuse_call("missing required argument: '" + string_of(names[i]) + "'");
    }

   private:
    void add(nb::handle name, nb::handle value) {
        PyObject* interned = name.inc_ref().ptr();
        PyUnicode_InternInPlace(&interned);
        names[count] = interned;
        defaults[count++] = value.is_valid() ? value.inc_ref().ptr() : nullptr;
    }
    size_t place_of(PyObject* keyword) const {
        const auto end = names.begin() + static_cast<std::ptrdiff_t>(count);
        auto found = std::find(names.begin(), end, keyword);
        if (found == end)  // not interned: by its letters
            found =
                std::find_if(names.begin(), end, [&](PyObject* name) { return PyUnicode_Compare(name, keyword) == 0; });
        return static_cast<size_t>(found - names.begin());
    }
    [[noreturn]] void refuse_call(const std::string& what) const {
        raise_type_error(std::string(function) + "() " + what);
    }
};

// Never released.
const Parameters* attention_parameters;
const Parameters* varlen_parameters;
const Parameters* merge_parameters;
const Parameters* append_parameters;
const Parameters* copy_pages_parameters;
const Parameters* gather_parameters;

// A function with keywords, which `function` gets as arguments by position; behind them False: not dispatched yet.
template <nb::object (*function)(Arguments), const Parameters** parameters>
PyObject* by_keyword(PyObject*, Arguments given, Py_ssize_t positional_count, PyObject* keywords) noexcept {
    try {
        std::array<PyObject*, Parameters::kMost + 1> slots;
        (*parameters)->match(given, static_cast<size_t>(positional_count), keywords, slots.data());
        slots[(*parameters)->count] = Py_False;
        return function(slots.data()).release().ptr();
    } catch (...) {
        return raised(std::current_exception());
    }
}

template <nb::object (*function)(Arguments), const Parameters** parameters>
void define(nb::module_& module, const char* name, const char* doc) {
    static PyMethodDef method{
        name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(by_keyword<function, parameters>)),
        METH_FASTCALL | METH_KEYWORDS, doc};
    const nb::str home("foveal");  // where users find it: pickles and help() say foveal.attention
    const nb::object made = nb::steal(PyCFunction_NewEx(&method, nullptr, home.ptr()));
    if (!made.is_valid()) rethrow();
    module.attr(name) = made;
}

void define_functions(nb::module_& module) {
    nb::dict options, varlen_options, merge_options, append_options, gather_options;
    for (const char* const name :
         {"scale",        "causal",       "window",    "align",      "softcap",   "chunk",         "alibi_slopes",
          "sinks",        "bias",         "mask",      "seqused_q",  "seqused_k", "block_table",   "page_indptr",
          "page_indices", "query_offset", "tree_mask", "workspace",  "dropout_p", "dropout_state", "q_descale",
          "k_descale",    "v_descale",    "uint8_as",  "return_lse", "out"})
        options[name] = nb::none();
    options["causal"] = options["return_lse"] = nb::bool_(false);
    options["window"] = nb::make_tuple(nb::none(), nb::none());
    options["align"] = "bottom_right";
    options["softcap"] = options["dropout_p"] = 0.0;
    options["chunk"] = 0;
    for (const auto& [name, value] : options)
        if (string_of(name) != "bias" && string_of(name) != "mask") varlen_options[name] = value;
    merge_options["out"] = nb::none();
    merge_options["lse"] = nb::none();
    for (const char* const name :
         {"slot_mapping", "cache_lengths", "cu_seqlens", "block_table", "cos", "sin", "positions", "interleaved", "q",
          "q_out", "k_scale", "v_scale", "k_scale_out", "v_scale_out", "uint8_as"})
        append_options[name] = nb::none();
    append_options["interleaved"] = nb::bool_(false);
    for (const char* const name : {"total_k", "seqused_k", "block_table", "page_indptr", "page_indices", "k", "v"})
        gather_options[name] = nb::none();
    attention_parameters = new Parameters("attention", {"q", "k", "v"}, options);
    varlen_parameters =
        new Parameters("attention_varlen", {"q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"}, varlen_options);
    merge_parameters = new Parameters("merge", {"outs", "lses"}, merge_options);
    define<attention, &attention_parameters>(module, "attention", kAttentionDoc);
    define<attention_varlen, &varlen_parameters>(module, "attention_varlen", kVarlenDoc);
    append_parameters = new Parameters("append", {"k", "v", "k_cache", "v_cache"}, append_options);
    define<merge, &merge_parameters>(module, "merge", kMergeDoc);
    define<append, &append_parameters>(module, "append", kAppendDoc);
    copy_pages_parameters = new Parameters("copy_pages", {"k_cache", "v_cache", "pairs"}, {});
    gather_parameters = new Parameters("gather", {"k_cache", "v_cache", "cu_seqlens_k"}, gather_options);
    define<copy_pages, &copy_pages_parameters>(module, "copy_pages", kCopyPagesDoc);
    define<gather, &gather_parameters>(module, "gather", kGatherDoc);
}

NB_MODULE(_foveal, module) {
    define_errors(module);
    define_host_buffer(module);

    define_functions(module);
    define_parallel(module);
    static PyMethodDef functions[]{positional<attention, kForwardArguments + 1>("attention_dispatched"),
                                   positional<attention_varlen, kForwardArguments + 1>("attention_varlen_dispatched"),
                                   positional<merge, 5>("merge_dispatched"),
                                   positional<append, 20>("append_dispatched"),
                                   positional<attention_backward, 31>("attention_backward"),
                                   positional<backward_supports, 25>("backward_supports"),
                                   positional<copy_pages, 4>("copy_pages_dispatched"),
                                   positional<gather, 11>("gather_dispatched"),
                                   positional<supports, kForwardArguments + 2>("supports"),
                                   positional<plan, kForwardArguments + 2>("plan"),
                                   {}};
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
    module.def(
        "set_num_threads",
        [](int32_t threads) {
            if (library.set_num_threads == nullptr) refuse("this build of libfoveal has no foveal_set_num_threads");
            check(library.set_num_threads(threads));
        },
        "threads"_a, nb::sig("def set_num_threads(threads: int, /) -> None"));
    module.def("dropout_mask", [](int64_t b, int64_t h_q, int64_t s_q, int64_t s_k, double p, nb::handle state) {
        if (library.dropout_mask == nullptr) refuse("this build of libfoveal has no foveal_dropout_mask");
        const std::array<uint64_t, 2> numbers = dropout_numbers(state);
        std::vector<uint8_t> mask(static_cast<size_t>(std::max<int64_t>(b * h_q * s_q * s_k, 0)));
        check(library.dropout_mask(b, h_q, s_q, s_k, static_cast<float>(p), numbers.data(), mask.data()));
        return nb::bytes(mask.data(), mask.size());
    });
    module.def("get_num_threads", [] {
        if (library.get_num_threads == nullptr) refuse("this build of libfoveal has no foveal_get_num_threads");
        const int32_t threads = library.get_num_threads();
        if (threads < 0) raise(FOVEAL_INVALID_ARGUMENT, library.last_error());
        return threads;
    });
    module.def("use_library", use_library, "path"_a,
               "Calls the libfoveal at `path` from now on (\"\": the package's own); returns the one before. "
               "For measuring several builds side by side.");
}

}  // namespace
}  // namespace foveal::python
