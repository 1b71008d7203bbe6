// The sm90 backend's host side: devices, tensor maps, launches. The only host code that talks to CUDA.
#pragma once

#include <cstdint>

#include "backend/plan.hpp"
#include "problem/forward.hpp"

namespace foveal::sm90 {

// Is this host pointer device memory? false where there is no driver.
bool is_device_pointer(const void* pointer);

// The device that a stream belongs to. Throws Error(NO_DEVICE) where there is none.
int32_t device_of(void* stream);

// Throws Error(NO_DEVICE) unless `device` is a Hopper GPU. The first call for a device sets its kernels up.
const DeviceTraits& traits_of(int32_t device);

// Enqueues the plan's kernel on `stream`, whose device must be plan.device.
void launch_forward(const Plan& plan, const Pointers& pointers, void* stream);

// Tests: where kernels count the warps that corrected their softmax reference; null: nowhere. Device memory.
void set_rescale_counter(unsigned long long* counter);

}  // namespace foveal::sm90
