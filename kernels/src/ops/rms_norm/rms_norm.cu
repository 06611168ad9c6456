// Root-mean-square norm of whole rows, alone or after a residual addition.
//
// One block per row. Thread t takes the vectors t, t + 256, ... of four values; squares are added
// per place in the vector, then over places, lanes and warps in a fixed order. So a row's bits
// depend on the row and its length alone.
//
// The row is read once and kept in registers up to VECTORS * 1024 values; longer rows are read
// again. Rows are a multiple of four values long.

#include "rows.cuh"

constexpr int THREADS = 256;
constexpr int VECTORS = 8;

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ void add_squares(float4& sums, float4 x) {
    sums.x = fmaf(x.x, x.x, sums.x);
    sums.y = fmaf(x.y, x.y, sums.y);
    sums.z = fmaf(x.z, x.z, sums.z);
    sums.w = fmaf(x.w, x.w, sums.w);
}

template <typename Act>
__device__ __forceinline__ void write(Act* out, float4 x, float scale, float4 weight) {
    store4(out, x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z,
           x.w * scale * weight.w);
}

// Row `row` of `hidden` plus, unless null, of `delta` goes back to `hidden_out` unless that is null.
template <typename Act>
__device__ __forceinline__ void norm_row(Act* out, float* hidden_out, const float* hidden,
                                         const float* delta, const float* weight, uint32_t n,
                                         float eps) {
    __shared__ float partial[THREADS / 32];
    const uint32_t num_vectors = n / 4;
    auto vector = [&](uint32_t i) {
        float4 x = reinterpret_cast<const float4*>(hidden)[i];
        return delta ? add(x, reinterpret_cast<const float4*>(delta)[i]) : x;
    };
    auto write_sum = [&](uint32_t i, float4 x) {
        if (hidden_out) {
            reinterpret_cast<float4*>(hidden_out)[i] = x;
        }
    };
    const float4* weights = reinterpret_cast<const float4*>(weight);

    float4 kept[VECTORS];
    float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t i = v * THREADS + threadIdx.x;
        if (i < num_vectors) {
            kept[v] = vector(i);
        }
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t i = v * THREADS + threadIdx.x;
        if (i < num_vectors) {
            write_sum(i, kept[v]);
            add_squares(sums, kept[v]);
        }
    }
    for (uint32_t i = VECTORS * THREADS + threadIdx.x; i < num_vectors; i += THREADS) {
        const float4 x = vector(i);
        write_sum(i, x);
        add_squares(sums, x);
    }
    const float sum = sum_block<THREADS / 32>((sums.x + sums.y) + (sums.z + sums.w), partial);
    const float scale = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);

#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t i = v * THREADS + threadIdx.x;
        if (i < num_vectors) {
            write(out + 4 * i, kept[v], scale, weights[i]);
        }
    }
    for (uint32_t i = VECTORS * THREADS + threadIdx.x; i < num_vectors; i += THREADS) {
        // Where `hidden` was written, this very thread wrote the sum.
        const float4 x = hidden_out ? reinterpret_cast<const float4*>(hidden_out)[i] : vector(i);
        write(out + 4 * i, x, scale, weights[i]);
    }
}

// grid [num_tokens]
template <typename Act>
__device__ __forceinline__ void rms_norm(Act* out, const float* x, const float* weight, uint32_t n,
                                         float eps) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * n;
    norm_row(out + start, nullptr, x + start, nullptr, weight, n, eps);
}

// grid [num_tokens]; hidden += delta, then out = norm(hidden)
template <typename Act>
__device__ __forceinline__ void add_rms_norm(float* hidden, const float* delta, Act* out,
                                             const float* weight, uint32_t n, float eps) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * n;
    norm_row(out + start, hidden + start, hidden + start, delta + start, weight, n, eps);
}

#define KERNELS(Act, NAME)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) rms_norm_##NAME(                         \
        Act* out, const float* x, const float* weight, uint32_t n, float eps) {                      \
        rms_norm(out, x, weight, n, eps);                                                          \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) add_rms_norm_##NAME(                     \
        float* hidden, const float* delta, Act* out, const float* weight, uint32_t n, float eps) {   \
        add_rms_norm(hidden, delta, out, weight, n, eps);                                          \
    }

KERNELS(__nv_bfloat16, bf16)
KERNELS(__half, f16)
