#include <cstdio>
#include <foveal/foveal.hpp>

int main() {
    float q[] = {1, 0, 0, 1}, k[] = {1, 0, 0, 1}, v[] = {1, 2, 3, 4}, out[4];
    auto view = [](float* data) {  // [b, s, h, d]
        return foveal::Tensor::packed(data, foveal::DType::f32, {1, 2, 1, 2});
    };
    foveal::forward(view(q), view(k), view(v), view(out), {.causal = true});  // throws foveal::Error
    std::printf("%g %g  %g %g\n", out[0], out[1], out[2], out[3]);
}
