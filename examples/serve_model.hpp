// What serve.cpp serves: a small decoder with random weights in plain C++, where its attention is computed, and a naive
// attention to hold the answers to.
#ifndef FOVEAL_EXAMPLES_SERVE_MODEL_HPP
#define FOVEAL_EXAMPLES_SERVE_MODEL_HPP

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <foveal/foveal.hpp>
#include <initializer_list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#ifndef FOVEAL_HAS_CUDA  // the build that has the GPU backend says 1
#define FOVEAL_HAS_CUDA 0
#endif
#if FOVEAL_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace serving {

using Floats = std::vector<float>;
using foveal::DType;
using foveal::Tensor;

constexpr int kVocabulary = 199, kHidden = 64, kInner = 96, kLayers = 2, kHeads = 4, kHeadsKv = 2, kDim = 16;
constexpr int kPositions = 256;

// ---- Where attention is computed

// float32 on the host, float16 on a GPU: what the backends take.
inline uint16_t to_f16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (size < 0x38800000)  // subnormal: the sum rounds as the type does
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::fabs(x) + 0.5f) - 0x3f000000));
    return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

inline float from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return (bits & 0x8000) != 0 ? -size : size;
}

class Device {
   public:
    explicit Device(const std::string& name) : on_gpu_(name == "cuda") {
        if (name != "cpu" && name != "cuda") throw std::invalid_argument("device is \"" + name + "\"; cpu or cuda");
        if (on_gpu_ && (!FOVEAL_HAS_CUDA || foveal_backend_built(FOVEAL_BACKEND_SM90) == 0))
            throw std::invalid_argument("device is \"cuda\"; this build computes on the CPU alone");
    }
    DType dtype() const { return on_gpu_ ? DType::f16 : DType::f32; }
    float rounded(float x) const { return on_gpu_ ? from_f16(to_f16(x)) : x; }

    std::shared_ptr<void> allocate(size_t bytes) const {
        void* memory = nullptr;
#if FOVEAL_HAS_CUDA
        if (on_gpu_) {
            require(cudaMalloc(&memory, bytes));
            require(cudaMemset(memory, 0, bytes));
            return {memory, [](void* p) { (void)cudaFree(p); }};
        }
#endif
        memory = std::calloc(bytes, 1);
        return {memory, std::free};
    }
    // Waits for what the GPU does.
    void copy(void* to, const void* from, size_t bytes) const {
#if FOVEAL_HAS_CUDA
        if (on_gpu_) return require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
#endif
        std::memcpy(to, from, bytes);
    }

   private:
#if FOVEAL_HAS_CUDA
    static void require(cudaError_t error) {
        if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
    }
#endif
    bool on_gpu_;
};

// Room for a tensor that is filled anew at each step.
class Buffer {
   public:
    Buffer(const Device& device, size_t bytes) : device_(&device), memory_(device.allocate(bytes)) {}

    Tensor floats(const Floats& values, std::initializer_list<int64_t> shape) {
        if (device_->dtype() == DType::f32) return put(values, DType::f32, shape);
        std::vector<uint16_t> halves(values.size());
        std::transform(values.begin(), values.end(), halves.begin(), to_f16);
        return put(halves, DType::f16, shape);
    }
    template <class T>
    Tensor put(const std::vector<T>& values, DType dtype, std::initializer_list<int64_t> shape) {
        device_->copy(memory_.get(), values.data(), values.size() * sizeof(T));
        return Tensor::packed(memory_.get(), dtype, shape);
    }
    Tensor view(std::initializer_list<int64_t> shape) const {
        return Tensor::packed(memory_.get(), device_->dtype(), shape);
    }
    Floats read(size_t count) const {
        Floats values(count);
        if (device_->dtype() == DType::f32) {
            device_->copy(values.data(), memory_.get(), 4 * count);
            return values;
        }
        std::vector<uint16_t> halves(count);
        device_->copy(halves.data(), memory_.get(), 2 * count);
        std::transform(halves.begin(), halves.end(), values.begin(), from_f16);
        return values;
    }

   private:
    const Device* device_;
    std::shared_ptr<void> memory_;
};

// ---- The model

struct Layer {
    Floats q, k, v, o, gate, up, down;  // [out, in]
};

struct Model {
    Model() {
        std::mt19937 random(1);
        std::normal_distribution<float> normal(0, 0.2f);
        const auto draw = [&](int rows, int columns) {
            Floats weights(static_cast<size_t>(rows * columns));
            for (float& weight : weights) weight = normal(random);
            return weights;
        };
        embedding = draw(kVocabulary, kHidden), head = draw(kVocabulary, kHidden);
        for (int i = 0; i < kLayers; ++i)
            layers.push_back({draw(kHeads * kDim, kHidden), draw(kHeadsKv * kDim, kHidden),
                              draw(kHeadsKv * kDim, kHidden), draw(kHidden, kHeads * kDim), draw(kInner, kHidden),
                              draw(kInner, kHidden), draw(kHidden, kInner)});
        for (int position = 0; position < kPositions; ++position)
            for (int i = 0; i < kDim / 2; ++i) {
                const double angle = position * std::pow(10000.0, -2.0 * i / kDim);
                cos.push_back(static_cast<float>(std::cos(angle)));
                sin.push_back(static_cast<float>(std::sin(angle)));
            }
    }
    Floats embedding, head;  // [vocabulary, hidden]
    std::vector<Layer> layers;
    Floats cos, sin;  // [positions, dim / 2]
};

// x [rows, in] times the transpose of weights [out, in].
inline Floats times(const Floats& x, const Floats& weights, int in) {
    const size_t n = static_cast<size_t>(in), rows = x.size() / n, out = weights.size() / n;
    Floats y(rows * out);
    for (size_t row = 0; row < rows; ++row)
        for (size_t i = 0; i < out; ++i) {
            float sum = 0;
            for (size_t j = 0; j < n; ++j) sum += x[row * n + j] * weights[i * n + j];
            y[row * out + i] = sum;
        }
    return y;
}

inline Floats normalised(const Floats& x) {
    Floats y = x;
    for (size_t row = 0; row < x.size(); row += kHidden) {
        float square = 0;
        for (size_t i = 0; i < kHidden; ++i) square += x[row + i] * x[row + i];
        for (size_t i = 0; i < kHidden; ++i) y[row + i] /= std::sqrt(square / kHidden + 1e-6f);
    }
    return y;
}

inline void add(Floats& x, const Floats& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// The layers over rows of tokens; attention(layer, q, k, v) is the caller's. Returns [rows, hidden].
template <class Attention>
Floats run(const Model& model, const std::vector<int>& tokens, Attention&& attention) {
    Floats x;
    for (const int token : tokens)
        x.insert(x.end(), model.embedding.begin() + token * kHidden, model.embedding.begin() + (token + 1) * kHidden);
    for (int i = 0; i < kLayers; ++i) {
        const Layer& layer = model.layers[static_cast<size_t>(i)];
        const Floats h = normalised(x);
        add(x, times(attention(i, times(h, layer.q, kHidden), times(h, layer.k, kHidden), times(h, layer.v, kHidden)),
                     layer.o, kHeads * kDim));
        const Floats g = normalised(x);
        Floats inner = times(g, layer.gate, kHidden);
        const Floats up = times(g, layer.up, kHidden);
        for (size_t n = 0; n < inner.size(); ++n) inner[n] *= up[n] / (1 + std::exp(-inner[n]));
        add(x, times(inner, layer.down, kInner));
    }
    return normalised(x);
}

// ---- The reference

// Turns rows of heads as foveal::append does, whose types round what goes in and what comes out.
inline Floats turned(const Model& model, const Device& device, const Floats& x, size_t heads) {
    Floats y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const size_t position = i / (heads * kDim), in_row = i % kDim, half = kDim / 2;
        const float a = device.rounded(x[i]), b = device.rounded(in_row < half ? x[i + half] : x[i - half]);
        const size_t angle = position * half + in_row % half;
        y[i] = device.rounded(a * model.cos[angle] + (in_row < half ? -b : b) * model.sin[angle]);
    }
    return y;
}

// Causal attention of one sequence, all of it at once. rounds_p: P is rounded as the device's types do it.
inline Floats naive_attention(const Model& model, const Device& device, const Floats& q_given, const Floats& k_given,
                              const Floats& v, bool rounds_p) {
    const Floats q = turned(model, device, q_given, kHeads), k = turned(model, device, k_given, kHeadsKv);
    const size_t rows = q.size() / (kHeads * kDim);
    Floats out(q.size());
    for (size_t row = 0; row < rows; ++row)
        for (size_t head = 0; head < kHeads; ++head) {
            const size_t head_kv = head / (kHeads / kHeadsKv);
            const float* query = &q[(row * kHeads + head) * kDim];
            std::vector<double> p(row + 1);
            double most = -INFINITY, sum = 0, result[kDim] = {};
            for (size_t key = 0; key <= row; ++key) {
                for (size_t i = 0; i < kDim; ++i)
                    p[key] += double{query[i]} * k[(key * kHeadsKv + head_kv) * kDim + i] / std::sqrt(double{kDim});
                most = std::max(most, p[key]);
            }
            for (size_t key = 0; key <= row; ++key) {
                p[key] = std::exp(p[key] - most), sum += p[key];
                const double weight = rounds_p ? device.rounded(static_cast<float>(p[key])) : p[key];
                for (size_t i = 0; i < kDim; ++i)
                    result[i] += weight * device.rounded(v[(key * kHeadsKv + head_kv) * kDim + i]);
            }
            for (size_t i = 0; i < kDim; ++i)
                out[(row * kHeads + head) * kDim + i] = device.rounded(static_cast<float>(result[i] / sum));
        }
    return out;
}

// Is each token behind the prompt the reference's? Returns how many are not, but may be: within twice what rounding P
// changes in the logits. -1: one is wrong.
inline int judge(const Model& model, const Device& device, const std::vector<int>& tokens, size_t prompt) {
    const std::vector<int> seen(tokens.begin(), tokens.end() - 1);
    const auto logits = [&](bool rounds_p) {
        return times(run(model, seen,
                         [&](int, const Floats& q, const Floats& k, const Floats& v) {
                             return naive_attention(model, device, q, k, v, rounds_p);
                         }),
                     model.head, kHidden);
    };
    const Floats exact = logits(false), rounded = logits(true);
    float moved = 0;
    for (size_t i = 0; i < exact.size(); ++i) moved = std::max(moved, std::fabs(exact[i] - rounded[i]));
    int explained = 0;
    for (size_t i = prompt; i < tokens.size(); ++i) {
        const float* const row = &exact[(i - 1) * kVocabulary];
        const float lost = *std::max_element(row, row + kVocabulary) - row[tokens[i]];
        if (lost > 0 && (device.dtype() == DType::f32 || lost > 2 * moved)) return -1;
        explained += lost > 0 ? 1 : 0;
    }
    return explained;
}

}  // namespace serving

#endif
