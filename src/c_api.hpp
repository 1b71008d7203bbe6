// What every function of the C ABI has in common: exceptions become statuses and the thread's last message, and a
// caller's structure is read as long as the caller knows it. Used by c_api.cpp and parallel/api.cpp.
#pragma once

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string>

#include "foveal/foveal.h"
#include "foveal/types.hpp"

namespace foveal {

// Keeps the message as the thread's last; returns status.
foveal_status fail(foveal_status status, const char* message) noexcept;

template <typename Body>
foveal_status guarded(Body&& body) noexcept {
    try {
        body();
        return FOVEAL_OK;
    } catch (const Error& error) {
        return fail(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return fail(FOVEAL_OUT_OF_MEMORY, "out of host memory");
    } catch (const std::exception& error) {
        return fail(FOVEAL_INTERNAL_ERROR, error.what());
    } catch (...) {
        return fail(FOVEAL_INTERNAL_ERROR, "unknown exception");
    }
}

template <typename T>
T& required(T* pointer, const char* name) {
    if (pointer == nullptr) throw Error(FOVEAL_INVALID_ARGUMENT, std::string(name) + " is NULL");
    return *pointer;
}

// Each structure as the first version that has it knows it: no caller's is shorter.
template <class Args>
inline constexpr size_t kFirstSize = 0;

// Is the structure that the caller says to be `size` long one of an older, of this or of a later version? A later one
// may only carry zeros where this version knows nothing.
inline void check_struct_size(const void* args, uint32_t size, size_t first_size, size_t known_size, const char* init) {
    const auto name = [size] { return "args.struct_size is " + std::to_string(size); };
    if (size < first_size)
        throw Error(FOVEAL_INVALID_ARGUMENT,
                    name() + "; it must be at least " + std::to_string(first_size) + " (call " + init + ")");
    constexpr uint32_t kMaxStructSize = 1u << 16;
    if (size > kMaxStructSize) throw Error(FOVEAL_INVALID_ARGUMENT, name() + "; no version is that large");
    const auto* bytes = static_cast<const unsigned char*>(args);
    for (size_t i = known_size; i < size; ++i)
        if (bytes[i] != 0)
            throw Error(FOVEAL_UNSUPPORTED,
                        name() + " and byte " + std::to_string(i) + " is set: an option of a later version of foveal");
}

// The caller's arguments as this version knows them. An older caller's structure ends before this version's does: then
// a copy, completed with defaults.
template <class Args>
class Known {
   public:
    Known(const Args* args, const char* init_name, void (*init)(Args*, size_t)) : args_(args) {
        const uint32_t size = required(args, "args").struct_size;
        check_struct_size(args, size, kFirstSize<Args>, sizeof(Args), init_name);
        if (size >= sizeof(Args)) return;
        args_ = &completed_.emplace();
        init(&*completed_, sizeof(Args));
        std::memcpy(&*completed_, args, size);
        completed_->struct_size = sizeof(Args);
    }
    Known(const Known&) = delete;
    Known& operator=(const Known&) = delete;

    const Args& operator*() const { return *args_; }
    const Args* operator->() const { return args_; }

   private:
    const Args* args_;
    std::optional<Args> completed_;
};

// The caller's structure, `size` bytes as it knows it; behind what this version knows, zeros.
template <class Args>
void initialise(Args* args, size_t size, Args defaults = {}) {
    static_assert(FOVEAL_BACKEND_AUTO == 0, "the default backend");
    if (args == nullptr) return;
    defaults.struct_size = static_cast<uint32_t>(size);
    std::memset(static_cast<void*>(args), 0, size);
    std::memcpy(static_cast<void*>(args), &defaults, size < sizeof defaults ? size : sizeof defaults);
}

// The forward arguments as this version knows them: the first `size` bytes, sizeof of who asks, to *known.
void complete(const foveal_forward_args* given, foveal_forward_args* known, size_t size);
// The same of gradients; what they are of, `forward`, is left as it is.
void complete(const foveal_backward_args* given, foveal_backward_args* known, size_t size);

// Text for the caller: as much as fits, and its full size with the NUL (may be NULL).
inline void copy_text(const std::string& whole, char* text, size_t size, size_t* needed) {
    if (needed != nullptr) *needed = whole.size() + 1;
    if (size == 0) return;
    const size_t copied = whole.size() < size ? whole.size() : size - 1;
    std::memcpy(&required(text, "text"), whole.data(), copied);
    text[copied] = '\0';
}

}  // namespace foveal
