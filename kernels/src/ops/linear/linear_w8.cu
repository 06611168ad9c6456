// Weights of 8 bits with a scale for each 32: Q8_0 and Q5_0.
#include "multiply.cuh"

LINEAR_KERNEL(linear_w8_bf16_m16, __nv_bfloat16, W8, 16, 6, 6)
LINEAR_KERNEL(linear_w8_bf16_m32, __nv_bfloat16, W8, 32, 6, 4)
LINEAR_KERNEL(linear_w8_bf16_m64, __nv_bfloat16, W8, 64, 4, 2)
LINEAR_KERNEL(linear_w8_bf16_m128, __nv_bfloat16, W8, 128, 4, 0)
LINEAR_KERNEL(linear_w8_f16_m16, __half, W8, 16, 6, 6)
LINEAR_KERNEL(linear_w8_f16_m32, __half, W8, 32, 6, 4)
LINEAR_KERNEL(linear_w8_f16_m64, __half, W8, 64, 4, 2)
LINEAR_KERNEL(linear_w8_f16_m128, __half, W8, 128, 4, 0)
