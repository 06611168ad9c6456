// Weights of 8 bits with scales and minima in superblocks of 256: Q5_K and Q6_K.
#include "multiply.cuh"

LINEAR_KERNEL(linear_w8k_bf16_m16, __nv_bfloat16, W8K, 16, 6, 5)
LINEAR_KERNEL(linear_w8k_bf16_m32, __nv_bfloat16, W8K, 32, 6, 3)
LINEAR_KERNEL(linear_w8k_bf16_m64, __nv_bfloat16, W8K, 64, 4, 2)
LINEAR_KERNEL(linear_w8k_bf16_m128, __nv_bfloat16, W8K, 128, 3, 0)
LINEAR_KERNEL(linear_w8k_f16_m16, __half, W8K, 16, 6, 5)
LINEAR_KERNEL(linear_w8k_f16_m32, __half, W8K, 32, 6, 3)
LINEAR_KERNEL(linear_w8k_f16_m64, __half, W8K, 64, 4, 2)
LINEAR_KERNEL(linear_w8k_f16_m128, __half, W8K, 128, 3, 0)
