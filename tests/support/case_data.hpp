// The memory of a case: inputs filled from its seed, outputs poisoned, and the foveal_forward_args over both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "foveal/foveal.h"
#include "tests/support/case.hpp"
#include "tests/support/input_values.hpp"

namespace foveal_testing {

inline constexpr int kTensors = 12;  // TensorId
const char* tensor_name(TensorId id);
// Does the case have it? q, k, v and out it always has.
bool has_tensor(const Case& c, TensorId id);

// What outputs hold before a run: a NaN in f32, bf16 and f16 alike, and no NaN that arithmetic makes.
inline constexpr uint16_t kPoison16 = 0x7FE5;
inline constexpr uint32_t kPoison32 = 0x7FE57FE5;

// Where a tensor's elements lie in its buffer. view.data is NULL.
struct TensorLayout {
    foveal_tensor view{};
    int64_t offset = 0;           // of the view's first element in the buffer, in elements
    int64_t buffer_elements = 0;  // the view, its padding and, around outputs, guards

    int64_t element_bytes() const {
        if (view.dtype == FOVEAL_BOOL || view.dtype == FOVEAL_E4M3) return 1;
        return view.dtype == FOVEAL_F32 || view.dtype == FOVEAL_I32 ? 4 : 2;
    }
    int64_t buffer_bytes() const { return buffer_elements * element_bytes(); }
};
TensorLayout layout_of(const Case& c, TensorId id);
// Whose buffer the tensor lies in: its own, but k and v in q's if the case says qkv.
TensorId buffer_of(const Case& c, TensorId id);

// Every element of an output buffer, sorted by what it holds.
struct OutputScan {
    int64_t elements = 0;  // of the buffer
    int64_t poison = 0;    // still as poison_outputs() left it
    int64_t nan = 0;       // NaN, but not poison
    int64_t infinite = 0;  // either sign
    bool operator==(const OutputScan&) const = default;
};

class CaseData {
   public:
    explicit CaseData(const Case& c) : case_(c) {}
    CaseData(const CaseData&) = delete;
    CaseData& operator=(const CaseData&) = delete;
    virtual ~CaseData() = default;

    const Case& the_case() const { return case_; }
    // Ready for foveal_forward; the pointers stay valid as long as this object.
    const foveal_forward_args& args() const { return args_; }

    virtual void poison_outputs() = 0;
    // Fills the inputs anew from another seed (shapes unchanged).
    virtual void refill(uint64_t seed) = 0;
    // Waits for the device; nothing to do on the CPU.
    virtual void synchronize() = 0;
    // Rows [first, first + count) of one sequence and head as floats, to [count, channels]. kLse, kAlibi, kSinks:
    // channels = 1, and the latter two have one row; kBias, kMask: channels = s_k, and a row is a query.
    // What is in e4m3 comes dequantised, in the type that is computed in.
    virtual void read(TensorId id, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) = 0;
    virtual OutputScan scan(TensorId output) = 0;
    // The whole buffer of an output, padding and guards included.
    virtual std::vector<std::byte> bytes(TensorId output) = 0;

   protected:
    Case case_;
    foveal_forward_args args_{};
};

// Memory could not be had; a case too large for this machine.
class OutOfMemory : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

// cpu: host memory; sm90: memory of the current CUDA device. Inputs are filled, outputs poisoned.
std::unique_ptr<CaseData> make_case_data(const Case& c, foveal_backend backend);

// Options and shapes of the case, all data pointers NULL: for foveal_supports and foveal_plan_create.
foveal_forward_args shape_args(const Case& c, foveal_backend backend);

// Is there a GPU that the sm90 backend can use? false in builds without CUDA.
bool has_sm90_device();

}  // namespace foveal_testing
