// foveal.copy_pages and foveal.gather.
#include <array>
#include <string>

#include "arguments.hpp"
#include "call_tensors.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

using CopyArgs = foveal_copy_pages_args;
constexpr std::array kCopied{Parameter<CopyArgs>{"k_cache", &CopyArgs::k_cache, true},
                             Parameter<CopyArgs>{"v_cache", &CopyArgs::v_cache, true},
                             Parameter<CopyArgs>{"pairs", &CopyArgs::pairs}};

using GatherArgs = foveal_gather_args;
// As foveal.gather() has them, but for `total_k` behind cu_seqlens_k.
constexpr std::array kGathered{Parameter<GatherArgs>{"k_cache", &GatherArgs::k_cache},
                               Parameter<GatherArgs>{"v_cache", &GatherArgs::v_cache},
                               Parameter<GatherArgs>{"cu_seqlens_k", &GatherArgs::cu_seqlens_k},
                               Parameter<GatherArgs>{"seqused_k", &GatherArgs::seqused_k},
                               Parameter<GatherArgs>{"block_table", &GatherArgs::block_table},
                               Parameter<GatherArgs>{"page_indptr", &GatherArgs::page_indptr},
                               Parameter<GatherArgs>{"page_indices", &GatherArgs::page_indices},
                               Parameter<GatherArgs>{"k", &GatherArgs::k, true},
                               Parameter<GatherArgs>{"v", &GatherArgs::v, true}};
constexpr size_t kTotal = 3;  // the place of total_k among the arguments
constexpr size_t kCuSeqlens = 2, kUsed = 3, kK = 7, kV = 8;

using Gathered = CallTensors<GatherArgs, kGathered>;

// [total_k, h, d] of a cache's library; zeros where seqused_k leaves rows unwritten.
void make_result(Gathered& tensors, size_t result, size_t cache, nb::handle total, Form form) {
    if (tensors.given(result)) return;
    if (total.is_none())
        raise_type_error(std::string(kGathered[result].name) + " is None, and total_k, how many rows it gets, as well");
    const Borrowed& from = tensors[cache];
    if (from.view.rank != 4)
        refuse(std::string(kGathered[cache].name) + ".rank is " + std::to_string(from.view.rank) +
               "; a cache ([pages, page_size, heads, d]) needs 4");
    foveal_tensor view = from.view;
    view.rank = 3;
    view.shape[0] = integer(total, "total_k");
    if (view.shape[0] < 0) refuse("total_k is " + std::to_string(view.shape[0]) + "; a length is not negative");
    view.shape[1] = from.view.shape[2], view.shape[2] = from.view.shape[3];
    pack_strides(view);
    tensors.put_new(result, new_tensor(from.type, tensors.object(cache), from.device, view, true), form);
    if (tensors.given(kUsed)) fill(from.type, tensors.object(result), 0);
}

nb::object result_of(const Gathered& tensors, size_t result, size_t cache) {
    nb::object object = nb::borrow(tensors.object(result));
    return tensors.is_new(result) ? returned_form(tensors[cache].type, std::move(object)) : object;
}

}  // namespace

nb::object copy_pages(PyObject* const* arguments) {
    const bool dispatched = arguments[kCopied.size()] == Py_True;
    using Tensors = CallTensors<CopyArgs, kCopied>;
    Tensors tensors([&](size_t i) { return arguments[i]; });
    const size_t first = tensors.first_of({0, 1});
    if (first == Tensors::kCount) refuse("k_cache and v_cache are None; there is nothing to copy");
    const auto launch = [&](foveal_backend backend) {
        if (library.copy_pages == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no copy_pages");
        CopyArgs args;
        library.init(args);
        args.backend = backend;
        tensors.fill(args);
        launch_for(tensors[first], [&](void* stream) { return library.copy_pages(&args, stream); });
        return nb::object(nb::none());
    };
    return run_call(
        tensors, first, dispatched, kCopied[first].name,
        [&] { return torch::through_dispatcher("_copy_pages", arguments, kCopied.size()); }, [](Form) {}, launch);
}

nb::object gather(PyObject* const* arguments) {
    constexpr size_t kArguments = kGathered.size() + 1;
    const bool dispatched = arguments[kArguments] == Py_True;
    Gathered tensors([&](size_t i) { return arguments[i < kTotal ? i : i + 1]; });
    for (const size_t i : {size_t{0}, size_t{1}, kCuSeqlens})
        if (!tensors.given(i)) raise_type_error(std::string(kGathered[i].name) + " is None; gather needs it");
    const auto launch = [&](foveal_backend backend) {
        if (library.gather == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no gather");
        GatherArgs args;
        library.init(args);
        args.backend = backend;
        tensors.fill(args);
        launch_for(tensors[0], [&](void* stream) { return library.gather(&args, stream); });
        return nb::object(nb::make_tuple(result_of(tensors, kK, 0), result_of(tensors, kV, 1)));
    };
    return run_call(
        tensors, 0, dispatched, kGathered[0].name,
        [&] { return torch::through_dispatcher("_gather", arguments, kArguments); },
        [&](Form form) {
            make_result(tensors, kK, 0, arguments[kTotal], form);
            make_result(tensors, kV, 1, arguments[kTotal], form);
        },
        launch);
}

}  // namespace foveal::python
