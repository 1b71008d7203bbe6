#include "support.hpp"

#include <cmath>
#include <limits>
#include <string>

#include "tiles.hpp"

namespace foveal::sm90 {
namespace {

constexpr int64_t kCopyEngineBytes = 16;  // alignment of addresses and strides in a tensor map
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

std::string supported_head_dims() {
    std::string text;
    for (const auto& entry : kForwardTiles)
        if (entry.plain) text += (text.empty() ? "" : ", ") + std::to_string(entry.tile.head_dim);
    return text;
}

void check_stride(const char* tensor, const char* which, int64_t stride, int64_t element_bytes) {
    if (stride * element_bytes % kCopyEngineBytes != 0)
        refuse(std::string(tensor) + "'s " + which + " stride is " + std::to_string(stride) +
               " elements; the sm90 backend needs a multiple of " + std::to_string(kCopyEngineBytes / element_bytes) +
               " (16 bytes)");
    if (stride * element_bytes >= kMaxStrideBytes)
        refuse(std::string(tensor) + "'s " + which + " stride is " + std::to_string(stride) +
               " elements; the sm90 backend needs less than 2^40 bytes");
}

void check_strides(const char* tensor, const Strides& strides, int64_t element_bytes) {
    check_stride(tensor, "batch", strides.batch, element_bytes);
    check_stride(tensor, "row", strides.row, element_bytes);
    check_stride(tensor, "head", strides.head, element_bytes);
}

void check_alignment(const char* tensor, const void* data) {
    if (reinterpret_cast<uintptr_t>(data) % kCopyEngineBytes != 0)
        refuse(std::string(tensor) + ".data is not aligned to 16 bytes, which the sm90 backend needs");
}

// Tiles are counted in 32 bits.
void check_tile_count(const Problem& p, const ForwardTile& tile) {
    const double row_blocks =
        std::ceil(static_cast<double>(p.total_rows_q()) / tile.rows()) + static_cast<double>(p.batch);
    const double tiles = row_blocks * static_cast<double>(p.heads_q);
    if (tiles >= std::numeric_limits<int32_t>::max() / 2)
        refuse("q has " + std::to_string(p.batch) + " sequences, " + std::to_string(p.rows_q) + " rows and " +
               std::to_string(p.heads_q) + " heads: more than 2^30 tiles, which the sm90 backend does not support");
}

// ---- what no sm90 kernel honours yet: a line goes when its kernel comes
// -----------------------------------------------

void refuse_unbuilt_options(const Problem& p) {
    if (p.softcap > 0) refuse("softcap is " + std::to_string(p.softcap) + "; the sm90 backend supports 0 (none) yet");
    if (p.has_alibi) refuse("alibi_slopes is present; the sm90 backend does not support ALiBi yet");
    if (p.has_sinks) refuse("sinks is present; the sm90 backend does not support sinks yet");
    if (p.has_bias) refuse("bias is present; the sm90 backend does not support a bias yet");
    if (p.has_mask) refuse("mask is present; the sm90 backend supports windows but no boolean mask yet");
    if (p.chunk > 0) refuse("chunk is " + std::to_string(p.chunk) + "; the sm90 backend supports 0 (no chunks) yet");
}

// ---------------------------------------------------------------------------------------------------------------------

}  // namespace

int32_t tile_index_of(const Problem& p) {
    for (int32_t i = 0; const auto& entry : kForwardTiles) {
        if (entry.tile.head_dim == p.head_dim && (p.wants_lse ? entry.lse : entry.plain)) return i;
        ++i;
    }
    refuse("q's head dimension is " + std::to_string(p.head_dim) + "; the sm90 backend supports " +
           supported_head_dims());
}

void check_supported(const Problem& p) {
    if (p.dtype == DType::f32) refuse("q.dtype is f32; the sm90 backend supports bf16 and f16");
    refuse_unbuilt_options(p);
    const ForwardTile& tile = kForwardTiles[tile_index_of(p)].tile;
    if (p.head_dim_v != p.head_dim)
        refuse("v's head dimension is " + std::to_string(p.head_dim_v) + " and q's is " + std::to_string(p.head_dim) +
               "; the sm90 backend needs them equal");
    if (!(p.scale >= std::numeric_limits<float>::min()))
        refuse("scale is " + std::to_string(p.scale) + "; the sm90 backend needs a positive, normal number");
    const int64_t element = bytes_of(p.dtype);
    check_strides("q", p.q, element);
    check_strides("k", p.k, element);
    check_strides("v", p.v, element);
    check_strides("out", p.out, element);
    check_tile_count(p, tile);
}

void check_pointers(const Pointers& pointers) {
    check_alignment("q", pointers.q);
    check_alignment("k", pointers.k);
    check_alignment("v", pointers.v);
    check_alignment("out", pointers.out);
}

}  // namespace foveal::sm90
