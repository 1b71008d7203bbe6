#include "cpu/amx.hpp"

#include <atomic>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define FOVEAL_COMPILES_AMX 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define FOVEAL_AMX __attribute__((target("amx-tile,amx-bf16")))
#else
#define FOVEAL_COMPILES_AMX 0
#endif

namespace foveal::cpu {
namespace {

std::atomic<bool> allowed_in_test{true};

#if FOVEAL_COMPILES_AMX
// Linux gives a process the tile registers, 8 KiB a thread, when it asks for them:
// https://docs.kernel.org/arch/x86/xstate.html
bool ask_for_amx() {
    constexpr unsigned kOsSavesRegisters = 1U << 27, kHasBf16 = 1U << 22, kHasTiles = 1U << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsSavesRegisters) == 0) return false;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    if ((d & kHasBf16) == 0 || (d & kHasTiles) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct alignas(64) TileConfiguration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

// Not a local variable: GCC 12 takes the instruction to read 8 bytes of it, and stores no others.
constexpr TileConfiguration kAllOf16Rows;

FOVEAL_AMX void set_up_registers() { _tile_loadconfig(&kAllOf16Rows); }
FOVEAL_AMX void release_registers() { _tile_release(); }
#else
bool ask_for_amx() { return false; }
void set_up_registers() {}
void release_registers() {}
#endif

}  // namespace

bool has_amx() {
    static const bool has = ask_for_amx();
    return has && allowed_in_test.load(std::memory_order_relaxed);
}

void allow_amx_for_test(bool allowed) { allowed_in_test.store(allowed, std::memory_order_relaxed); }

AmxRegisters::AmxRegisters(bool wanted) : are_set_up_(wanted) {
    if (are_set_up_) set_up_registers();
}
AmxRegisters::~AmxRegisters() {
    if (are_set_up_) release_registers();
}

#if FOVEAL_COMPILES_AMX

// Registers 0 to 5 have results, three of each of two groups of 16 rows; 6 has rows of the first operand, 7 columns of
// the second. Their numbers are part of the instruction.
FOVEAL_AMX void amx_score_keys(const uint32_t* q, int64_t vectors, const uint32_t* k, int64_t pitch, int64_t words,
                               int64_t keys, float* s) {
    const int64_t width = vectors * kAmxWords;
    const auto width_bytes = static_cast<size_t>(width * 4), pitch_bytes = static_cast<size_t>(pitch * 4);
    for (int64_t j = 0; j < keys; j += 2 * kAmxRows) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
        for (int64_t w = 0; w < words; w += kAmxWords) {
            const uint32_t* const queries = q + w * width;
            _tile_loadd(6, k + j * pitch + w, pitch_bytes);
            _tile_loadd(7, queries, width_bytes);
            _tile_dpbf16ps(0, 6, 7);
            if (vectors > 1) {
                _tile_loadd(7, queries + kAmxWords, width_bytes);
                _tile_dpbf16ps(1, 6, 7);
            }
            if (vectors > 2) {
                _tile_loadd(7, queries + 2 * kAmxWords, width_bytes);
                _tile_dpbf16ps(2, 6, 7);
            }
            _tile_loadd(6, k + (j + kAmxRows) * pitch + w, pitch_bytes);
            _tile_loadd(7, queries, width_bytes);
            _tile_dpbf16ps(3, 6, 7);
            if (vectors > 1) {
                _tile_loadd(7, queries + kAmxWords, width_bytes);
                _tile_dpbf16ps(4, 6, 7);
            }
            if (vectors > 2) {
                _tile_loadd(7, queries + 2 * kAmxWords, width_bytes);
                _tile_dpbf16ps(5, 6, 7);
            }
        }
        float* const first = s + j * width;
        float* const second = first + kAmxRows * width;
        _tile_stored(0, first, width_bytes);
        _tile_stored(3, second, width_bytes);
        if (vectors > 1) {
            _tile_stored(1, first + kAmxWords, width_bytes);
            _tile_stored(4, second + kAmxWords, width_bytes);
        }
        if (vectors > 2) {
            _tile_stored(2, first + 2 * kAmxWords, width_bytes);
            _tile_stored(5, second + 2 * kAmxWords, width_bytes);
        }
    }
}

FOVEAL_AMX void amx_accumulate_values(const uint32_t* p, int64_t vectors, const uint32_t* v, int64_t pitch,
                                      int64_t channels, int64_t keys, float* o) {
    const int64_t width = vectors * kAmxWords;
    const auto width_bytes = static_cast<size_t>(width * 4), tile_bytes = static_cast<size_t>(kAmxWords * 4);
    for (int64_t c = 0; c < channels; c += kAmxRows, v += pitch) {
        float* const sums = o + c * width;
        _tile_loadd(0, sums, width_bytes);
        if (vectors > 1) _tile_loadd(1, sums + kAmxWords, width_bytes);
        if (vectors > 2) _tile_loadd(2, sums + 2 * kAmxWords, width_bytes);
        for (int64_t j = 0; j < keys; j += kAmxKeys) {
            const uint32_t* const weights = p + j / 2 * width;
            _tile_loadd(6, v + j / kAmxKeys * kAmxTile, tile_bytes);
            _tile_loadd(7, weights, width_bytes);
            _tile_dpbf16ps(0, 6, 7);
            if (vectors > 1) {
                _tile_loadd(7, weights + kAmxWords, width_bytes);
                _tile_dpbf16ps(1, 6, 7);
            }
            if (vectors > 2) {
                _tile_loadd(7, weights + 2 * kAmxWords, width_bytes);
                _tile_dpbf16ps(2, 6, 7);
            }
        }
        _tile_stored(0, sums, width_bytes);
        if (vectors > 1) _tile_stored(1, sums + kAmxWords, width_bytes);
        if (vectors > 2) _tile_stored(2, sums + 2 * kAmxWords, width_bytes);
    }
}

#else

void amx_score_keys(const uint32_t*, int64_t, const uint32_t*, int64_t, int64_t, int64_t, float*) {}
void amx_accumulate_values(const uint32_t*, int64_t, const uint32_t*, int64_t, int64_t, int64_t, float*) {}

#endif

}  // namespace foveal::cpu
