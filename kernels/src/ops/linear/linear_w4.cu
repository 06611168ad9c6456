// Weights of 4 bits with a scale for each 32: Q4_0.
#include "multiply.cuh"

LINEAR_KERNEL(linear_w4_bf16_m16, __nv_bfloat16, W4, 16, 8, 7)
LINEAR_KERNEL(linear_w4_bf16_m32, __nv_bfloat16, W4, 32, 8, 4)
LINEAR_KERNEL(linear_w4_bf16_m64, __nv_bfloat16, W4, 64, 5, 2)
LINEAR_KERNEL(linear_w4_bf16_m128, __nv_bfloat16, W4, 128, 4, 0)
LINEAR_KERNEL(linear_w4_f16_m16, __half, W4, 16, 8, 7)
LINEAR_KERNEL(linear_w4_f16_m32, __half, W4, 32, 8, 4)
LINEAR_KERNEL(linear_w4_f16_m64, __half, W4, 64, 5, 2)
LINEAR_KERNEL(linear_w4_f16_m128, __half, W4, 128, 4, 0)
