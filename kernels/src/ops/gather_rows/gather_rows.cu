// Copies chosen rows of F32; nothing is computed.

#include <stdint.h>

constexpr int THREADS = 256;

// grid [num_rows]; out[i] = x[rows[i]], rows of n values
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows_f32(float* out, const float* x, const uint32_t* rows, uint32_t n) {
    const float* from = x + static_cast<uint64_t>(rows[blockIdx.x]) * n;
    float* to = out + static_cast<uint64_t>(blockIdx.x) * n;
    if (n % 4 == 0) {
        for (uint32_t i = threadIdx.x; i < n / 4; i += THREADS) {
            reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            to[i] = from[i];
        }
    }
}
