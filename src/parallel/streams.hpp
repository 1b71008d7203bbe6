// Order between the caller's two streams, without waiting for either. On the CPU, and with one stream, nothing to do.
#pragma once

#include <cstdint>

namespace foveal::parallel {

// What it takes to order one stream behind another: events, made when first needed, on the device of the streams.
class StreamEvents {
   public:
    StreamEvents() = default;
    ~StreamEvents();
    StreamEvents(const StreamEvents&) = delete;
    StreamEvents& operator=(const StreamEvents&) = delete;

    // What is enqueued on `later` from now on begins when all that is on `earlier` now has ended. Throws Error.
    void order(void* earlier, void* later);

   private:
    [[maybe_unused]] void* event_ = nullptr;
    [[maybe_unused]] int32_t device_ = -1;
};

// Has all work on the stream ended? Throws Error where it has failed.
bool has_ended(void* stream);

}  // namespace foveal::parallel
