// Memory that a thread works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace foveal::cpu {

// Memory that a thread keeps from call to call: fresh pages would cost as much as a short sequence's work.
class ThreadWorkspace {
   public:
    float* reserve(int64_t floats) {
        if (floats > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(new (kAlignment) float[static_cast<size_t>(floats)]);
            size_ = floats;
        }
        return memory_.get();
    }

    // What reserve() gave last.
    float* memory() const { return memory_.get(); }

   private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(float* memory) const { operator delete[](memory, kAlignment); }
    };
    std::unique_ptr<float[], Free> memory_;
    int64_t size_ = 0;
};

}  // namespace foveal::cpu
