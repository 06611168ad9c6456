// Weights as the activations: bf16 or f16.
#include "multiply.cuh"

LINEAR_KERNEL(linear_plain_bf16_m16, __nv_bfloat16, Plain, 16, 4, 4)
LINEAR_KERNEL(linear_plain_bf16_m32, __nv_bfloat16, Plain, 32, 4, 3)
LINEAR_KERNEL(linear_plain_bf16_m64, __nv_bfloat16, Plain, 64, 3, 2)
LINEAR_KERNEL(linear_plain_bf16_m128, __nv_bfloat16, Plain, 128, 3, 0)
LINEAR_KERNEL(linear_plain_f16_m16, __half, Plain, 16, 4, 4)
LINEAR_KERNEL(linear_plain_f16_m32, __half, Plain, 32, 4, 3)
LINEAR_KERNEL(linear_plain_f16_m64, __half, Plain, 64, 3, 2)
LINEAR_KERNEL(linear_plain_f16_m128, __half, Plain, 128, 3, 0)
