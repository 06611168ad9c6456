// The gate of the SwiGLU MLP, elementwise: each value depends on its own two inputs alone.

#include "rows.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float silu_mul(float gate, float up) {
    // The fast exponential and division are good to a few ulp of f32, far below one of the result.
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// grid [ceil(len / (8 * THREADS))]; a last part of less than eight values goes one by one.
template <typename Act>
__device__ __forceinline__ void silu_mul(Act* out, const Act* gate, const Act* up, uint64_t len) {
    using N = Number<Act>;
    const uint64_t start = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (start + 8 <= len) {
        float gates[8], ups[8];
        load8(gates, gate + start);
        load8(ups, up + start);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            gates[i] = silu_mul(gates[i], ups[i]);
        }
        store8(out + start, gates);
    } else {
        for (uint64_t i = start; i < len; ++i) {
            out[i] = N::from_f32(silu_mul(N::to_f32(gate[i]), N::to_f32(up[i])));
        }
    }
}

#define KERNEL(Act, NAME)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                          \
        silu_mul_##NAME(Act* out, const Act* gate, const Act* up, uint64_t len) {                        \
        silu_mul(out, gate, up, len);                                                              \
    }

KERNEL(__nv_bfloat16, bf16)
KERNEL(__half, f16)
