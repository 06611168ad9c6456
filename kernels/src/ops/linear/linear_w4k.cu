// Weights of 4 bits with scale and minimum in superblocks of 256: Q4_K.
#include "multiply.cuh"

LINEAR_KERNEL(linear_w4k_bf16_m16, __nv_bfloat16, W4K, 16, 8, 7)
LINEAR_KERNEL(linear_w4k_bf16_m32, __nv_bfloat16, W4K, 32, 8, 4)
LINEAR_KERNEL(linear_w4k_bf16_m64, __nv_bfloat16, W4K, 64, 5, 2)
LINEAR_KERNEL(linear_w4k_bf16_m128, __nv_bfloat16, W4K, 128, 4, 0)
LINEAR_KERNEL(linear_w4k_f16_m16, __half, W4K, 16, 8, 7)
LINEAR_KERNEL(linear_w4k_f16_m32, __half, W4K, 32, 8, 4)
LINEAR_KERNEL(linear_w4k_f16_m64, __half, W4K, 64, 5, 2)
LINEAR_KERNEL(linear_w4k_f16_m128, __half, W4K, 128, 4, 0)
