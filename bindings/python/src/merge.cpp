// foveal.merge.
#include <array>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

// "outs[0]", "outs[1]", ...: what messages call the parts, made once.
class PartNames {
   public:
    explicit PartNames(const std::string& list) : list_(list) {
        for (size_t i = 0; i < names_.size(); ++i) names_[i] = list + "[" + std::to_string(i) + "]";
    }
    const std::string& list() const { return list_; }
    const char* operator[](size_t i) const { return names_[i].c_str(); }

   private:
    std::string list_;
    std::array<std::string, FOVEAL_MAX_MERGE_PARTS> names_;
};

// outs or lses: as Python hands them over, and as the C ABI sees them.
class Parts {
   public:
    Parts(nb::handle sequence, const PartNames& names) : names_(names) {
        const nb::object list = nb::steal(PySequence_List(sequence.ptr()));
        if (!list.is_valid()) {
            PyErr_Clear();
            raise_type_error(names_.list() + " is " + string_of(nb::repr(sequence)) +
                             "; it must be a sequence of tensors");
        }
        for (const nb::handle part : nb::borrow<nb::list>(list)) objects_.push_back(nb::borrow(part));
    }

    size_t size() const { return objects_.size(); }
    const Borrowed& operator[](size_t i) const { return *borrowed_[i]; }
    PyObject* first() const { return objects_[0].ptr(); }
    const foveal_tensor* views() const { return views_.data(); }

    void borrow(Form form) {
        for (size_t i = 0; i < size(); ++i) {
            borrowed_[i].emplace(objects_[i].ptr(), names_[i], form);
            views_[i] = borrowed_[i]->view;
        }
    }
    void require_device_of(const Borrowed& first) const {
        for (size_t i = 0; i < size(); ++i) require_same_device(*borrowed_[i], names_[i], first, "outs[0]");
    }
    void add_to(torch::MainTensors& tensors) const {
        for (size_t i = 0; i < size(); ++i) tensors.add(objects_[i].ptr(), views_[i].rank);
    }
    void refuse_lazy() const {
        const bool tangents = borrowed_[0]->is_torch() && torch::tangents_may_be();
        for (size_t i = 0; i < size(); ++i) {
            if (!borrowed_[i]->is_torch()) continue;
            torch::refuse_negative(objects_[i].ptr(), names_[i]);
            torch::refuse_derivative(objects_[i].ptr(), names_[i], tangents);
        }
    }

   private:
    const PartNames& names_;
    std::vector<nb::object> objects_;
    std::array<std::optional<Borrowed>, FOVEAL_MAX_MERGE_PARTS> borrowed_;
    std::array<foveal_tensor, FOVEAL_MAX_MERGE_PARTS> views_{};
};

// Where a result goes: what the caller gave, or a new tensor.
class Result {
   public:
    Result(nb::handle given, const char* name, const Parts& outs, const foveal_tensor& like, bool dtype_of_outs,
           bool is_familiar)
        : type_(outs[0].type), is_new_(given.is_none()), object_(nb::borrow(given)) {
        foveal_tensor view = like;
        pack_strides(view);
        if (is_new_) object_ = new_tensor(type_, outs.first(), outs[0].device, view, dtype_of_outs);
        borrowed_.emplace(object_.ptr(), name);
        require_same_device(*borrowed_, name, outs[0], "outs[0]");
        if (!is_new_) require_writable(*borrowed_, object_, name, is_familiar);
    }

    const foveal_tensor& view() const { return borrowed_->view; }
    void add_to(nb::list& written) const {
        if (!is_new_ && borrowed_->is_torch()) written.append(object_);
    }
    nb::object returned() const { return is_new_ ? returned_form(type_, object_) : object_; }

   private:
    TensorType type_;
    bool is_new_;
    nb::object object_;
    std::optional<Borrowed> borrowed_;
};

}  // namespace

nb::object merge(nb::handle outs_given, nb::handle lses_given, nb::handle out, nb::handle lse, bool dispatched) {
    static const PartNames out_names("outs"), lse_names("lses");
    Parts outs(outs_given, out_names), lses(lses_given, lse_names);
    if (outs.size() < 1 || outs.size() > FOVEAL_MAX_MERGE_PARTS)
        refuse("outs has " + std::to_string(outs.size()) + " parts; 1 to " + std::to_string(FOVEAL_MAX_MERGE_PARTS) +
               " can be merged in one call");
    if (lses.size() != outs.size())
        refuse("lses has " + std::to_string(lses.size()) + " parts but outs has " + std::to_string(outs.size()));
    const auto through_dispatcher = [&] {
        PyObject* const arguments[]{outs_given.ptr(), lses_given.ptr(), out.ptr(), lse.ptr()};
        return torch::through_dispatcher("_merge", arguments, std::size(arguments));
    };
    const Form form = dispatched ? Form::dispatched : Form::tensor;
    try {
        outs.borrow(form);
        lses.borrow(form);
    } catch (const Unreadable& tensor) {
        if (!dispatched && tensor_type_of(outs.first()).framework == Framework::torch) return through_dispatcher();
        raise(FOVEAL_UNSUPPORTED, tensor.message);
    }
    const Borrowed& first = outs[0];
    torch::MainTensors main;
    bool is_familiar = false;
    if (!dispatched && first.is_torch()) {
        main.begin(first.view.dtype, first.device);
        for (const Parts* const parts : {&outs, &lses}) parts->add_to(main);
        if (!out.is_none()) main.add(out.ptr(), first.view.rank);
        if (!lse.is_none()) main.add(lse.ptr(), lses[0].view.rank);
        is_familiar = torch::are_familiar(main);
        if (!is_familiar && torch::calls_are_watched()) return through_dispatcher();
    }
    if (!dispatched && !is_familiar) {
        outs.refuse_lazy();
        lses.refuse_lazy();
    }
    outs.require_device_of(first);
    lses.require_device_of(first);

    if (library.merge == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no merge");
    const foveal_backend backend = backend_on(first.device, "outs[0]");
    const CurrentDevice guard(first.type, first.device);
    const Result merged(out, "out", outs, first.view, true, is_familiar),
        merged_lse(lse, "lse", outs, lses[0].view, false, is_familiar);
    nb::list written;
    merged.add_to(written);
    merged_lse.add_to(written);
    if (nb::len(written) != 0) torch::announce_writes(written);
    if (main.count() != 0 && !is_familiar) torch::make_familiar(main);
    foveal_merge_args args;
    library.init(args);
    args.backend = backend;
    args.parts = static_cast<int32_t>(outs.size());
    args.outs = outs.views();
    args.lses = lses.views();
    args.out = merged.view();
    args.lse = merged_lse.view();
    launch_for(first, [&](void* stream) { return library.merge(&args, stream); });
    return nb::make_tuple(merged.returned(), merged_lse.returned());
}

}  // namespace foveal::python
