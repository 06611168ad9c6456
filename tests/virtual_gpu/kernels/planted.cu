// A pipelined tensor-core product with a page table, clean and with one bug each: what a check must find.
//
// c[64, 32] = a[64, k] b[32, k]^T; rows of a lie in pages of 16, page i of the tile is table[i].
#include <cuda_bf16.h>
#include <cstdint>

enum Bug {
  NONE,
  NO_BARRIER_BEFORE_READ,
  NO_BARRIER_BEFORE_OVERWRITE,
  WEAK_WAIT,
  TABLE_OVERRUN,
  SHARED_OVERRUN,
  SWAPPED_OPERANDS,
  UNWRITTEN_SHARED,
  DIVERGENT_BARRIER,
  BARRIER_AFTER_EXIT,
  BANK_CONFLICTS,
  SHUFFLE_WITH_INACTIVE_LANE,
  NO_WARP_SYNC,
  MISALIGNED,
};

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

template <int n>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

template <Bug bug>
__device__ __forceinline__ void product(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, const uint32_t* table, uint32_t k) {
  constexpr int stride = bug == BANK_CONFLICTS ? 32 : 40;
  constexpr int stage = (64 + 32) * stride;
  extern __shared__ __align__(16) __nv_bfloat16 tiles[];  // two stages: 2 * 96 * 40 * 2 = 15360 bytes
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  if constexpr (bug == BARRIER_AFTER_EXIT) {
    if (thread == 77) return;
  }
  auto fetch = [&](uint32_t step, int slot) {
#pragma unroll 1
    for (int i = thread; i < 96 * 4; i += 128) {
      const int row = i / 4, chunk = i % 4;
      __nv_bfloat16* to = tiles + slot * stage + row * stride + chunk * 8;
      if (row < 64) {
        const uint32_t page = table[row / 16 + (bug == TABLE_OVERRUN ? 1 : 0)];
        copy16(to, a + (size_t)(page * 16 + row % 16) * k + step * 32 + chunk * 8);
      } else if (bug != UNWRITTEN_SHARED || row != 95) {
        copy16(to, b + (size_t)(row - 64) * k + step * 32 + chunk * 8);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  float d[4][4] = {};
  const uint32_t steps = k / 32;
  fetch(0, 0);
#pragma unroll 1
  for (uint32_t step = 0; step < steps; ++step) {
    const int slot = step % 2;
    if (step + 1 < steps) fetch(step + 1, 1 - slot);
    if (step + 1 < steps) {
      wait<bug == WEAK_WAIT ? 2 : 1>();
    } else {
      wait<bug == WEAK_WAIT ? 1 : 0>();
    }
    if constexpr (bug == DIVERGENT_BARRIER) {
      if (lane < 16) __syncthreads();
    } else if constexpr (bug != NO_BARRIER_BEFORE_READ) {
      __syncthreads();
    }
    const __nv_bfloat16* ta = tiles + slot * stage;
    const __nv_bfloat16* tb = ta + 64 * stride;
#pragma unroll 1
    for (int kk = 0; kk < 32; kk += 16) {
      uint32_t fa[4];
      const __nv_bfloat16* pa = ta + (warp * 16 + lane % 16) * stride + kk + lane / 16 * 8;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(shared_address(pa)) : "memory");
      for (int j = 0; j < 4; ++j) {
        uint32_t fb[2];
        const __nv_bfloat16* pb = tb + (j * 8 + lane % 8) * stride + kk + lane / 8 % 2 * 8;
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(fb[0]), "=r"(fb[1]) : "r"(shared_address(pb)) : "memory");
        if (bug == SWAPPED_OPERANDS) { uint32_t t = fb[0]; fb[0] = fb[1]; fb[1] = t; }
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
      }
    }
    if constexpr (bug != NO_BARRIER_BEFORE_OVERWRITE) __syncthreads();
  }

  // Collect the sums in shared memory, [64, 32], each warp its own rows; then whole rows go out.
  float* sums = reinterpret_cast<float*>(tiles) + (bug == SHARED_OVERRUN ? 1800 : 0);
  __syncthreads();
  for (int j = 0; j < 4; ++j) {
    for (int r = 0; r < 4; ++r) {
      sums[(warp * 16 + lane / 4 + r / 2 * 8) * 32 + j * 8 + lane % 4 * 2 + r % 2] = d[j][r];
    }
  }
  if constexpr (bug != NO_WARP_SYNC) __syncwarp();
  float total = 0;
#pragma unroll 1
  for (int row = 0; row < 16; ++row) {
    const float value = sums[(warp * 16 + row) * 32 + lane];
    c[(warp * 16 + row) * 32 + lane] = value;
    total += value;
  }
  if constexpr (bug == SHUFFLE_WITH_INACTIVE_LANE) {
    if (lane < 31) total += __shfl_down_sync(0xffffffffu, total, 1);
    c[warp * 16 * 32] += total == 12345.0f ? 1.0f : 0.0f;
  }
  if constexpr (bug == MISALIGNED) {
    *reinterpret_cast<float2*>(c + 1 + 2 * thread) = make_float2(total, total);
  }
}

#define KERNEL(name, bug)                                                                                            \
  extern "C" __global__ void __launch_bounds__(128) name(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b,   \
                                                         const uint32_t* table, uint32_t k) {                        \
    product<bug>(c, a, b, table, k);                                                                                 \
  }

KERNEL(clean, NONE)
KERNEL(no_barrier_before_read, NO_BARRIER_BEFORE_READ)
KERNEL(no_barrier_before_overwrite, NO_BARRIER_BEFORE_OVERWRITE)
KERNEL(weak_wait, WEAK_WAIT)
KERNEL(table_overrun, TABLE_OVERRUN)
KERNEL(shared_overrun, SHARED_OVERRUN)
KERNEL(swapped_operands, SWAPPED_OPERANDS)
KERNEL(unwritten_shared, UNWRITTEN_SHARED)
KERNEL(divergent_barrier, DIVERGENT_BARRIER)
KERNEL(barrier_after_exit, BARRIER_AFTER_EXIT)
KERNEL(bank_conflicts, BANK_CONFLICTS)
KERNEL(shuffle_with_inactive_lane, SHUFFLE_WITH_INACTIVE_LANE)
KERNEL(no_warp_sync, NO_WARP_SYNC)
KERNEL(misaligned, MISALIGNED)
