// What foveal.parallel is made of: spans, communicators (over a Python function, or NCCL) and one rank's call. It calls
// the libfoveal beside the extension, whatever use_library() says.
#include "parallel.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "errors.hpp"
#include "foveal/foveal_parallel.h"

namespace foveal::python {
namespace {

using namespace nb::literals;

using Span = std::tuple<int32_t, int64_t, int64_t, int64_t>;  // rank, sequence, position, rows
using Message = std::tuple<uintptr_t, uint64_t, int32_t>;     // address, bytes, peer

void check_parallel(foveal_status status) {
    if (status != FOVEAL_OK) raise(status, foveal_last_error());
}

std::vector<foveal_span> spans_of(const std::vector<Span>& given) {
    std::vector<foveal_span> spans;
    for (const auto& [rank, sequence, position, rows] : given) spans.push_back({sequence, position, rows, rank, 0});
    return spans;
}

std::vector<Span> place(const std::string& placement, const std::vector<int64_t>& lengths, int32_t ranks) {
    if (placement != "contiguous" && placement != "zigzag")
        refuse("placement is \"" + placement + "\"; known are \"contiguous\" and \"zigzag\"");
    const foveal_placement how = placement == "zigzag" ? FOVEAL_ZIGZAG : FOVEAL_CONTIGUOUS;
    const auto sequences = static_cast<int64_t>(lengths.size());
    int64_t needed = 0;
    check_parallel(foveal_place(how, lengths.data(), sequences, ranks, nullptr, 0, &needed));
    std::vector<foveal_span> spans(static_cast<size_t>(needed));
    check_parallel(foveal_place(how, lengths.data(), sequences, ranks, spans.data(), needed, &needed));
    std::vector<Span> placed;
    for (const foveal_span& span : spans) placed.emplace_back(span.rank, span.sequence, span.position, span.rows);
    return placed;
}

// A transport that gathers what is to travel and has a Python function do it: exchange(sends, receives, timeout).
struct PythonTransport {
    nb::object exchange;
    std::vector<Message> sends, receives;
    std::string message;
};

PythonTransport& python_transport(void* context) { return *static_cast<PythonTransport*>(context); }

foveal_transport transport_over(nb::object exchange, int32_t rank, int32_t ranks) {
    foveal_transport t{};
    t.struct_size = sizeof t;
    t.rank = rank;
    t.ranks = ranks;
    t.context = new PythonTransport{std::move(exchange), {}, {}, {}};
    t.begin = [](void* context) {
        python_transport(context).sends.clear();
        python_transport(context).receives.clear();
        return foveal_status{FOVEAL_OK};
    };
    t.send = [](void* context, const void* data, uint64_t bytes, int32_t peer, void*) {
        python_transport(context).sends.emplace_back(reinterpret_cast<uintptr_t>(data), bytes, peer);
        return foveal_status{FOVEAL_OK};
    };
    t.recv = [](void* context, void* data, uint64_t bytes, int32_t peer, void*) {
        python_transport(context).receives.emplace_back(reinterpret_cast<uintptr_t>(data), bytes, peer);
        return foveal_status{FOVEAL_OK};
    };
    t.end = [](void* context, void*, double timeout_seconds) {
        const nb::gil_scoped_acquire held;
        PythonTransport& of = python_transport(context);
        try {
            of.exchange(of.sends, of.receives, timeout_seconds);
            return foveal_status{FOVEAL_OK};
        } catch (const nb::python_error& error) {
            of.message = error.what();
            return foveal_status{FOVEAL_INTERNAL_ERROR};
        }
    };
    t.abort_all = [](void*) {};  // a peer that waits for this rank has a timeout
    t.message = [](void* context) { return python_transport(context).message.c_str(); };
    t.destroy = [](void* context) { delete &python_transport(context); };
    return t;
}

class Communicator {
   public:
    Communicator(int32_t rank, int32_t ranks, double timeout_seconds, nb::object exchange) {
        const foveal_transport transport = transport_over(std::move(exchange), rank, ranks);
        const foveal_status status = foveal_communicator_create(&transport, timeout_seconds, &communicator_);
        if (status != FOVEAL_OK) transport.destroy(transport.context);
        check_parallel(status);
    }
    Communicator(uintptr_t nccl_comm, const std::string& library, double timeout_seconds) {
        check_parallel(foveal_communicator_create_nccl(reinterpret_cast<void*>(nccl_comm),
                                                       library.empty() ? nullptr : library.c_str(), timeout_seconds,
                                                       &communicator_));
    }
    ~Communicator() { foveal_communicator_destroy(communicator_); }
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    foveal_communicator* get() const { return communicator_; }
    void abort() { check_parallel(foveal_communicator_abort(communicator_)); }
    void wait(uintptr_t stream) {
        foveal_status status = FOVEAL_OK;
        {
            const nb::gil_scoped_release released;
            status = foveal_communicator_wait(communicator_, reinterpret_cast<void*>(stream));
        }
        check_parallel(status);
    }

   private:
    foveal_communicator* communicator_ = nullptr;
};

foveal_parallel_method method_of(const std::string& name) {
    const char* const names[] = {"auto", "ring", "all_gather", "ulysses"};
    for (int32_t i = 0; i < 4; ++i)
        if (name == names[i]) return i;
    refuse("method is \"" + name + "\"; known are \"auto\", \"ring\", \"all_gather\" and \"ulysses\"");
}

std::string text_of(const foveal_parallel_plan* plan) {
    size_t needed = 0;
    check_parallel(foveal_parallel_plan_describe(plan, nullptr, 0, &needed));
    std::string text(needed, '\0');
    check_parallel(foveal_parallel_plan_describe(plan, text.data(), text.size(), nullptr));
    text.pop_back();
    return text;
}

struct PlanDeleter {
    void operator()(foveal_parallel_plan* plan) const { foveal_parallel_plan_destroy(plan); }
};

// Who calls, and how: what foveal.parallel hands over beside tensors and options.
struct Call {
    std::vector<foveal_span> spans_q, spans_k;
    foveal_parallel_args args;

    Call(const nb::dict& given, const foveal_forward_args& forward) {
        spans_q = spans_of(nb::cast<std::vector<Span>>(given["spans_q"]));
        foveal_parallel_args_init(&args);
        args.method = method_of(nb::cast<std::string>(given["method"]));
        args.rank = nb::cast<int32_t>(given["rank"]);
        args.ranks = nb::cast<int32_t>(given["ranks"]);
        args.head_ranks = nb::cast<int32_t>(given["head_ranks"]);
        args.forward = &forward;
        args.spans_q = spans_q.data();
        args.spans_q_count = static_cast<int64_t>(spans_q.size());
        if (given["spans_k"].is_none()) return;
        spans_k = spans_of(nb::cast<std::vector<Span>>(given["spans_k"]));
        args.spans_k = spans_k.data();
        args.spans_k_count = static_cast<int64_t>(spans_k.size());
    }
    // gradients: NULL of a forward call.
    std::unique_ptr<foveal_parallel_plan, PlanDeleter> plan(const foveal_backward_args* gradients = nullptr) const {
        foveal_parallel_plan* plan = nullptr;
        check_parallel(gradients == nullptr ? foveal_parallel_plan_create(&args, &plan)
                                            : foveal_parallel_backward_plan_create(&args, gradients, &plan));
        return std::unique_ptr<foveal_parallel_plan, PlanDeleter>(plan);
    }
    void allocate(const foveal_parallel_plan* plan, const nb::callable& allocator) {
        args.workspace_bytes = foveal_parallel_plan_workspace_bytes(plan);
        args.workspace = reinterpret_cast<void*>(nb::cast<uintptr_t>(allocator(args.workspace_bytes)));
    }
};

// By name; what is not there is absent.
Options options_of(const nb::dict& given) {
    const auto at = [&](const char* name) {
        return given.contains(name) ? nb::handle(given[name].ptr()) : nb::handle(Py_None);  // the dictionary holds it
    };
    const nb::handle absent(Py_None);
    return {at("scale"),
            at("causal"),
            at("window"),
            at("align"),
            at("softcap"),
            at("chunk"),
            at("alibi_slopes"),
            at("sinks"),
            at("bias"),
            at("mask"),
            absent,
            at("seqused_k"),
            at("block_table"),
            at("page_indptr"),
            at("page_indices"),
            absent,
            absent,
            absent,
            absent,
            absent};
}

// tensors: (q, k, v); options by name; call: see Call; communicator; allocate(bytes) and upload(offsets) return
// addresses on q's device; communication_stream: of q's device, or 0.
nb::object attention(nb::tuple tensors, nb::dict options, nb::dict call, Communicator& communicator,
                     nb::callable allocate, nb::callable upload, uintptr_t communication_stream, bool return_lse) {
    ForwardArguments problem(tensors[0], tensors[1], tensors[2], {}, {}, options_of(options), Form::tensor);
    if (problem.course(nb::none()) != Course::plain)
        raise(FOVEAL_UNSUPPORTED,
              "PyTorch watches this call (a trace or a mode), or would record another gradient than those of q, k, v, "
              "sinks and alibi_slopes; foveal.parallel has neither yet");
    problem.set_backend({});
    const CurrentDevice guard = problem.enter_device();
    problem.set_results(nb::none(), return_lse);
    Call given(call, problem.args());
    const auto plan = given.plan();
    given.allocate(plan.get(), allocate);
    int64_t count = 0;
    const int32_t* const offsets = foveal_parallel_plan_offsets(plan.get(), &count);
    if (count > 0 && problem.cuda_device() >= 0)
        given.args.offsets = reinterpret_cast<const int32_t*>(
            nb::cast<uintptr_t>(upload(std::vector<int32_t>(offsets, offsets + count))));
    given.args.communication_stream = reinterpret_cast<void*>(communication_stream);
    check_parallel(problem.launch_with(
        [&](void* stream) { return foveal_parallel_forward(plan.get(), communicator.get(), &given.args, stream); }));
    return problem.result(return_lse);
}

// results: (out, lse) of the forward call; gradients: dout and dlse, and those that are asked, by the names of
// foveal_backward_args, each a tensor or None; what is asked is written. The others as those of attention().
void gradients(nb::tuple tensors, nb::tuple results, nb::dict gradients, nb::dict options, nb::dict call,
               Communicator& communicator, nb::callable allocate) {
    ForwardArguments problem(tensors[0], tensors[1], tensors[2], {}, {}, options_of(options), Form::tensor);
    problem.set_backend({});
    problem.borrow_results(results[0], results[1]);
    foveal_backward_args args;
    foveal_backward_args_init(&args);
    args.forward = &problem.args();
    const struct {
        const char* name;
        foveal_tensor* tensor;
    } given[] = {
        {"dout", &args.dout}, {"dlse", &args.dlse},     {"dq", &args.dq},       {"dk", &args.dk},
        {"dv", &args.dv},     {"dsinks", &args.dsinks}, {"dbias", &args.dbias}, {"dalibi_slopes", &args.dalibi_slopes}};
    std::vector<std::unique_ptr<Borrowed>> borrowed;
    for (const auto& [name, tensor] : given) {
        const nb::handle object(gradients[name].ptr());  // the dictionary holds it
        if (object.is_none()) continue;
        borrowed.push_back(std::make_unique<Borrowed>(object.ptr(), name, Form::tensor));
        require_same_device(*borrowed.back(), name, problem.q(), "q");
        *tensor = borrowed.back()->view;
    }
    Call of(call, problem.args());
    const auto plan = of.plan(&args);
    of.allocate(plan.get(), allocate);
    check_parallel(problem.launch_with([&](void* stream) {
        return foveal_parallel_backward(plan.get(), communicator.get(), &of.args, &args, stream);
    }));
}

// options: with those of the cache. The others as those of attention().
nb::object decode(nb::tuple tensors, nb::dict options, Communicator& communicator, int32_t ranks, nb::callable allocate,
                  bool return_lse) {
    ForwardArguments problem(tensors[0], tensors[1], tensors[2], {}, {}, options_of(options), Form::tensor);
    if (problem.course(nb::none()) != Course::plain)
        raise(FOVEAL_UNSUPPORTED,
              "PyTorch watches this call (a trace or a mode), or would record a gradient; decoding over ranks has "
              "neither");
    problem.set_backend({});
    const CurrentDevice guard = problem.enter_device();
    problem.set_results(nb::none(), return_lse);
    foveal_parallel_decode_args args;
    foveal_parallel_decode_args_init(&args);
    args.forward = &problem.args();
    check_parallel(foveal_parallel_decode_workspace_bytes(&args, ranks, &args.workspace_bytes));
    args.workspace = reinterpret_cast<void*>(nb::cast<uintptr_t>(allocate(args.workspace_bytes)));
    check_parallel(
        problem.launch_with([&](void* stream) { return foveal_parallel_decode(communicator.get(), &args, stream); }));
    return problem.result(return_lse);
}

std::string plan_text(nb::tuple tensors, nb::dict options, nb::dict call, const std::string& backend, bool return_lse) {
    ForwardArguments problem(tensors[0], tensors[1], tensors[2], {}, {}, options_of(options), Form::description);
    problem.set_backend(nb::str(backend.c_str()));
    problem.describe_results(return_lse);
    return text_of(Call(call, problem.args()).plan().get());
}

}  // namespace

void define_parallel(nb::module_& module) {
    module.def("parallel_place", place);
    module.def("parallel_attention", attention);
    module.def("parallel_gradients", gradients);
    module.def("parallel_decode", decode);
    module.def("parallel_plan", plan_text);
    nb::class_<Communicator>(module, "Communicator")
        .def(nb::init<int32_t, int32_t, double, nb::object>())
        .def(nb::init<uintptr_t, const std::string&, double>())
        .def("abort", &Communicator::abort)
        .def("wait", &Communicator::wait);
}

}  // namespace foveal::python
