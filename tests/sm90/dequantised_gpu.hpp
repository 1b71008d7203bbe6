// A case with e4m3 keys on the GPU, beside the same with dequantised ones.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "tests/support/case_data.hpp"
#include "tests/support/dequantised.hpp"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {

struct WithDequantised {
    std::unique_ptr<CaseData> e4m3, plain;
};

inline WithDequantised with_dequantised(const std::string& text) {
    WithDequantised both;
    both.e4m3 = on_gpu(text);
    const Case c = both.e4m3->the_case(), plain = dequantised_case(c, c.dtype);
    both.plain = make_case_data(plain, kSm90);
    const auto on_host = make_case_data(c, FOVEAL_BACKEND_CPU), dequantised = dequantised_data(*on_host, plain);
    for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV}) {
        const foveal_forward_args& args = both.plain->args();
        const foveal_tensor& t = id == TensorId::kQ ? args.q : id == TensorId::kK ? args.k : args.v;
        const TensorLayout layout = layout_of(plain, id);
        const std::vector<std::byte> bytes = dequantised->bytes(id);
        if (bytes.empty()) continue;
        require_cuda(cudaMemcpy(static_cast<std::byte*>(t.data) - layout.offset * layout.element_bytes(), bytes.data(),
                                bytes.size(), cudaMemcpyHostToDevice),
                     "dequantised");
    }
    return both;
}

}  // namespace foveal_testing
