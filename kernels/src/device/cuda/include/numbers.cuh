// The activation dtype of a kernel: __nv_bfloat16 or __half, and its way to f32 and back.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Number<Act>: conversions to f32 are exact, those from f32 round once, to nearest even. A pair is
// two numbers in one 32-bit register, the first in the low half, as mma fragments want it.
template <typename Act>
struct Number;

template <>
struct Number<__nv_bfloat16> {
    static __device__ __forceinline__ float to_f32(__nv_bfloat16 value) {
        return __bfloat162float(value);
    }

    static __device__ __forceinline__ __nv_bfloat16 from_f32(float value) {
        return __float2bfloat16_rn(value);
    }

    // A bf16 is the upper half of the f32 of the same value.
    static __device__ __forceinline__ float2 pair_to_f32(uint32_t pair) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }

    static __device__ __forceinline__ uint32_t pair_from_f32(float first, float second) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
};

template <>
struct Number<__half> {
    static __device__ __forceinline__ float to_f32(__half value) { return __half2float(value); }

    static __device__ __forceinline__ __half from_f32(float value) {
        return __float2half_rn(value);
    }

    static __device__ __forceinline__ float2 pair_to_f32(uint32_t pair) {
        return __half22float2(*reinterpret_cast<const __half2*>(&pair));
    }

    static __device__ __forceinline__ uint32_t pair_from_f32(float first, float second) {
        const __half2 pair = __floats2half2_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
};

// The f32 value of the IEEE half with these bits, as quantised formats store their scales.
__device__ __forceinline__ float f32_of_half_bits(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Eight numbers, 16 bytes as loaded, widened to f32.
template <typename Act>
__device__ __forceinline__ void unpack8(float (&out)[8], uint4 packed) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 two = Number<Act>::pair_to_f32(pairs[i]);
        out[2 * i] = two.x;
        out[2 * i + 1] = two.y;
    }
}

// Eight f32 rounded to numbers, 16 bytes to store.
template <typename Act>
__device__ __forceinline__ uint4 pack8(const float (&values)[8]) {
    return make_uint4(Number<Act>::pair_from_f32(values[0], values[1]),
                      Number<Act>::pair_from_f32(values[2], values[3]),
                      Number<Act>::pair_from_f32(values[4], values[5]),
                      Number<Act>::pair_from_f32(values[6], values[7]));
}
