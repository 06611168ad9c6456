// Residual addition, and the sum over ranks: each value depends on its own inputs alone, added in a
// fixed order.

#include <stdint.h>

constexpr int THREADS = 256;

// grid [ceil(len / (4 * THREADS))]; a last part of less than four values goes one by one.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_assign_f32(float* x, const float* y, uint64_t len) {
    const uint64_t start = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (start + 4 <= len) {
        float4 a = *reinterpret_cast<const float4*>(x + start);
        const float4 b = *reinterpret_cast<const float4*>(y + start);
        a = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        *reinterpret_cast<float4*>(x + start) = a;
    } else {
        for (uint64_t i = start; i < len; ++i) {
            x[i] += y[i];
        }
    }
}

// x[i] = parts[i] + parts[len + i] + ..., in this order. Parts of a length that is no multiple of four
// do not all begin on a border of 16 bytes, so those go one by one.
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_parts_f32(float* x, const float* parts, uint64_t len, uint32_t num_parts) {
    const uint64_t start = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (len % 4 == 0 && start + 4 <= len) {
        float4 sum = *reinterpret_cast<const float4*>(parts + start);
        for (uint32_t part = 1; part < num_parts; ++part) {
            const float4 b = *reinterpret_cast<const float4*>(parts + part * len + start);
            sum = make_float4(sum.x + b.x, sum.y + b.y, sum.z + b.z, sum.w + b.w);
        }
        *reinterpret_cast<float4*>(x + start) = sum;
    } else {
        for (uint64_t i = start; i < len && i < start + 4; ++i) {
            float sum = parts[i];
            for (uint32_t part = 1; part < num_parts; ++part) {
                sum += parts[part * len + i];
            }
            x[i] = sum;
        }
    }
}
