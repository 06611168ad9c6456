// Weights of 4 bits with a scale and a zero for each 64: AWQ and GPTQ.
#include "multiply.cuh"

LINEAR_KERNEL(linear_w4z_bf16_m16, __nv_bfloat16, W4Z, 16, 8, 7)
LINEAR_KERNEL(linear_w4z_bf16_m32, __nv_bfloat16, W4Z, 32, 8, 4)
LINEAR_KERNEL(linear_w4z_bf16_m64, __nv_bfloat16, W4Z, 64, 5, 2)
LINEAR_KERNEL(linear_w4z_bf16_m128, __nv_bfloat16, W4Z, 128, 4, 0)
LINEAR_KERNEL(linear_w4z_f16_m16, __half, W4Z, 16, 8, 7)
LINEAR_KERNEL(linear_w4z_f16_m32, __half, W4Z, 32, 8, 4)
LINEAR_KERNEL(linear_w4z_f16_m64, __half, W4Z, 64, 5, 2)
LINEAR_KERNEL(linear_w4z_f16_m128, __half, W4Z, 128, 4, 0)
