// The memory of a gradient: a forward case that has been run, what comes in, and poisoned gradients.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "foveal/foveal.hpp"
#include "tests/support/backward_case.hpp"
#include "tests/support/case_data.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {

// A tensor with the shape, the memory order and the padding of one of the forward case's.
class GradientTensor {
   public:
    GradientTensor(const Case& c, TensorId like, foveal_backend backend, foveal_dtype dtype);

    foveal::Tensor view() { return tensor_.view(); }
    const Shape& shape() const { return shape_; }
    // Row-major, without gaps.
    void set(const std::vector<float>& values) { tensor_.set(values); }
    std::vector<float> values() { return tensor_.values(); }
    // All of its memory.
    std::vector<std::byte> bytes() { return tensor_.bytes(); }
    bool surroundings_untouched() { return tensor_.surroundings_untouched(); }

   private:
    Shape shape_;
    StridedTensor tensor_;
};

// Where row `row` of a sequence and head begins in row-major values of a tensor like q, out (channels of it), k or v.
struct RowPlace {
    static int64_t of_q(const Case& c, int64_t channels, int64_t sequence, int64_t head, int64_t row);
    static int64_t of_k(const Case& c, int64_t channels, int64_t sequence, int64_t head, int64_t row);
    static int64_t of_lse(const Case& c, int64_t sequence, int64_t head, int64_t row);
};

class BackwardData {
   public:
    // The forward's inputs are filled; run_forward() comes before run().
    BackwardData(const BackwardCase& c, foveal_backend backend);

    const BackwardCase& the_case() const { return case_; }
    CaseData& forward() { return *forward_; }

    foveal_status run_forward();
    // All gradients that the case has, of any of which a test may take away what it likes.
    foveal_backward_args args();
    foveal_status run();

    GradientTensor dout, dq, dk, dv;
    std::optional<GradientTensor> dlse, dsinks, dbias, dalibi;

   private:
    void draw();

    BackwardCase case_;
    foveal_backend backend_;
    std::unique_ptr<CaseData> forward_;
    std::optional<BackendMemory> workspace_;
};

// Shapes and options alone: for foveal_backward_supports and plans. `forward` is filled and has to stay.
foveal_backward_args backward_shape_args(const BackwardCase& c, foveal_backend backend, foveal_forward_args& forward);

}  // namespace foveal_testing
