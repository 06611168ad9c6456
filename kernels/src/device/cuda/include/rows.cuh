// What the kernels that go along rows share: 16-byte reads and writes of activations, and sums over
// a warp or a block in an order that depends on the block's shape alone.
#pragma once

#include "numbers.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

// Eight activations from a 16-byte boundary.
template <typename Act>
__device__ __forceinline__ void load8(float (&out)[8], const Act* from) {
    unpack8<Act>(out, *reinterpret_cast<const uint4*>(from));
}

template <typename Act>
__device__ __forceinline__ void store8(Act* to, const float (&values)[8]) {
    *reinterpret_cast<uint4*>(to) = pack8<Act>(values);
}

// Four activations, 8 bytes: what a thread writes that read four f32.
template <typename Act>
__device__ __forceinline__ void store4(Act* to, float x, float y, float z, float w) {
    const uint2 packed =
        make_uint2(Number<Act>::pair_from_f32(x, y), Number<Act>::pair_from_f32(z, w));
    *reinterpret_cast<uint2*>(to) = packed;
}

// The sum over each group of `width` neighbouring lanes (a power of two), in all of them. Every
// lane of the warp calls this.
__device__ __forceinline__ float sum_lanes(float x, int width) {
    for (int step = width / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, step);
    }
    return x;
}

// The sum over a block of WARPS warps, in all threads: a tree in each warp, then the warps in
// order. `partial` is shared memory of WARPS floats that nothing else uses.
template <int WARPS>
__device__ __forceinline__ float sum_block(float x, float* partial) {
    x = sum_lanes(x, 32);
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        sum += partial[warp];
    }
    return sum;
}
