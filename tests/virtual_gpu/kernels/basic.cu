// Kernels that exercise one feature each; their numbers are compared with Rust in tests/semantics.rs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

extern "C" __global__ void __launch_bounds__(256) axpy(float* y, const float* x, float a, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

// Sum of each block of 256 through shared memory and shuffles.
extern "C" __global__ void __launch_bounds__(256) block_sum(float* out, const float* x) {
  __shared__ float part[8];
  float v = x[blockIdx.x * 256 + threadIdx.x];
  for (int s = 16; s > 0; s >>= 1) v += __shfl_xor_sync(0xffffffffu, v, s);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < 8; ++w) sum += part[w];
    out[blockIdx.x] = sum;
  }
}

// Lanes leave a loop at different times.
extern "C" __global__ void __launch_bounds__(64) collatz(uint32_t* steps, const uint32_t* x) {
  uint32_t v = x[threadIdx.x], count = 0;
  while (v != 1) {
    v = v % 2 ? 3 * v + 1 : v / 2;
    ++count;
  }
  steps[threadIdx.x] = count;
}

extern "C" __global__ void __launch_bounds__(32) functions(float* out, const float* x) {
  float v = x[threadIdx.x];
  out[threadIdx.x] = expf(v);
  out[32 + threadIdx.x] = logf(fabsf(v));
  out[64 + threadIdx.x] = sinf(v * 1000.0f);
  out[96 + threadIdx.x] = tanhf(v);
  out[128 + threadIdx.x] = powf(fabsf(v), 1.7f);
  out[160 + threadIdx.x] = rsqrtf(fabsf(v));
  out[192 + threadIdx.x] = __expf(v);
}

// c = a * b^T for one 16 x 16 by 16 x 8 tile (b stored as 8 rows of 16), by ldmatrix and mma.
extern "C" __global__ void __launch_bounds__(32) tile(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b) {
  __shared__ __align__(16) __nv_bfloat16 sa[16 * 16], sb[8 * 16];
  for (int i = threadIdx.x; i < 256; i += 32) sa[i] = a[i];
  for (int i = threadIdx.x; i < 128; i += 32) sb[i] = b[i];
  __syncthreads();
  uint32_t fa[4], fb[2];
  int lane = threadIdx.x;
  uint32_t pa = (uint32_t)__cvta_generic_to_shared(&sa[(lane % 16) * 16 + (lane / 16) * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(pa) : "memory");
  uint32_t pb = (uint32_t)__cvta_generic_to_shared(&sb[(lane % 8) * 16 + (lane / 8 % 2) * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(fb[0]), "=r"(fb[1]) : "r"(pb) : "memory");
  float d[4] = {0, 0, 0, 0};
#ifdef SWAP_B
  uint32_t t = fb[0]; fb[0] = fb[1]; fb[1] = t;
#endif
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  int row = lane / 4, col = lane % 4 * 2;
  c[row * 8 + col] = d[0];
  c[row * 8 + col + 1] = d[1];
  c[(row + 8) * 8 + col] = d[2];
  c[(row + 8) * 8 + col + 1] = d[3];
}
