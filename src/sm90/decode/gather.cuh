// Putting a sequence together: the CTA that brings its last piece reads the nodes that all have left in the workspace,
// and finishes the tree.
#pragma once

#include <cstdint>

#include "sm90/decode/nodes.cuh"
#include "sm90/decode/params.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"

namespace foveal::sm90 {

// So many nodes of the map at once, of which all are read together: neighbours in the tree, whose root becomes `node`.
template <DecodeTile kTile, int32_t kNodes>
class NodesAtOnce {
    static constexpr int32_t kColumns = kTile.warp_columns(), kValues = kTile.values();
    static constexpr int32_t kFew = kNodes < 8 ? kNodes : 8;  // that are passed over together where there are none

   public:
    // present: places of the map from `first` on that there are. columns: of the piece.
    __device__ __forceinline__ NodesAtOnce(const NodeMap& map, float* nodes, int32_t first, int32_t present,
                                           int32_t columns, int32_t thread)
        : present_(present), lane_(thread % kWarpThreads), warp_(thread / kWarpThreads) {
        const int32_t place = lane_ < min_i32(present, kNodes) ? map.places[first + lane_] : -1;
        read_sums(nodes, place, columns);
        read_values(nodes, place, columns, thread);
    }

    __device__ __forceinline__ void join(Node<kTile>& node) {
#pragma unroll
        for (int32_t k = 0; k < kColumns; ++k) {
#pragma unroll
            for (int32_t distance = 1; distance < kNodes; distance *= 2) join_neighbours(k, distance);
#pragma unroll
            for (int32_t x = 0; x < kValues; ++x) node.values[k][x] = values_[0][k][x];
            node.reference[k] = __shfl_sync(~0u, reference_[k], 0);
            node.rounded[k] = __shfl_sync(~0u, rounded_[k], 0);
            node.exact[k] = __shfl_sync(~0u, exact_[k], 0);
        }
    }

   private:
    static __device__ __forceinline__ float* at(float* nodes, int32_t place) {
        return nodes + int64_t{place} * kTile.node_floats();
    }

    // Lane i reads those of node i.
    __device__ __forceinline__ void read_sums(float* nodes, int32_t place, int32_t columns) {
#pragma unroll
        for (int32_t k = 0; k < kColumns; ++k) {
            const int32_t column = warp_ + kWarpgroupWarps * k;
            float sums[4] = {kNoKeys, 0.0f, 0.0f, 0.0f};
            load_floats_if(sums, sums_in<kTile>(at(nodes, place), column), place >= 0 && column < columns);
            reference_[k] = sums[0];
            rounded_[k] = sums[1];
            exact_[k] = sums[2];
        }
    }

    __device__ __forceinline__ void read_values(float* nodes, int32_t place, int32_t columns, int32_t thread) {
#pragma unroll
        for (int32_t i = 0; i < kNodes; ++i) {
#pragma unroll
            for (int32_t k = 0; k < kColumns; ++k)
#pragma unroll
                for (int32_t x = 0; x < kValues; ++x) values_[i][k][x] = -0.0f;
        }
#pragma unroll
        for (int32_t few = 0; few < kNodes; few += kFew) {
            if (few >= present_) continue;
#pragma unroll
            for (int32_t i = few; i < few + kFew; ++i) {
                const int32_t of_node = __shfl_sync(~0u, place, i);
#pragma unroll
                for (int32_t k = 0; k < kColumns; ++k)
                    load_floats_if(values_[i][k], values_in<kTile>(at(nodes, of_node), k, thread),
                                   of_node >= 0 && warp_ + kWarpgroupWarps * k < columns);
            }
        }
    }

    // Every node at a multiple of 2 * distance with the one `distance` further on. Its sums are in the lane of its
    // number.
    __device__ __forceinline__ void join_neighbours(int32_t k, int32_t distance) {
        float reference = __shfl_down_sync(~0u, reference_[k], distance),
              rounded = __shfl_down_sync(~0u, rounded_[k], distance),
              exact = __shfl_down_sync(~0u, exact_[k], distance);
        const Factors own = join_sums(reference_[k], rounded_[k], exact_[k], reference, rounded, exact);
        reference_[k] = reference;
        rounded_[k] = rounded;
        exact_[k] = exact;
#pragma unroll
        for (int32_t i = 0; i < kNodes; i += 2 * distance) {
            if (i + distance >= present_) continue;
            const Factors factors{__shfl_sync(~0u, own.left, i), __shfl_sync(~0u, own.right, i)};
#pragma unroll
            for (int32_t x = 0; x < kValues; ++x)
                values_[i][k][x] = joined(values_[i][k][x], values_[i + distance][k][x], factors);
        }
    }

    const int32_t present_, lane_, warp_;
    float values_[kNodes][kColumns][kValues];
    float reference_[kColumns], rounded_[kColumns], exact_[kColumns];
};

}  // namespace foveal::sm90
