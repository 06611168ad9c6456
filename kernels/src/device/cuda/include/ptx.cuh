// All inline PTX of the kernels, one function for one instruction. Only what sm_80 has.
// Source of shapes and fragment layouts: the PTX ISA on mma.m16n8k16, ldmatrix and cp.async.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ptx {

// The address of shared memory in its own window, as ldmatrix and cp.async want it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// sums[16, 8] += a[16, 16] b[16, 8], f32 sums, operands of type Act.
//
// With g = lane / 4 and t = lane % 4 a lane holds, as pairs with the lower index in the low half:
//   a[0] = (g, 2t..2t+1)  a[1] = (g + 8, 2t..)  a[2] = (g, 2t + 8..)  a[3] = (g + 8, 2t + 8..)
//   b0 = (2t..2t+1, g)    b1 = (2t + 8.., g)
//   sums[0..1] = (g, 2t..2t+1)  sums[2..3] = (g + 8, 2t..2t+1)
template <typename Act>
__device__ __forceinline__ void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&sums)[4],
                                                            const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&sums)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads 8x8 matrices of 16-bit numbers. Lanes 8i..8i+7 give the addresses of the rows of matrix i,
// each 16 bytes and aligned so. Of each matrix a lane gets (row lane / 4, columns 2 (lane % 4)..).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row_address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&out)[2], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(row_address)
                 : "memory");
}

// As above, each matrix transposed on its way: a lane gets (rows 2 (lane % 4).., column lane / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row_address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&out)[2], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(row_address)
                 : "memory");
}

// Starts to copy 16 bytes from global to shared memory, past the first-level cache. Both addresses
// are multiples of 16. The bytes are there after a wait and, for other threads, a barrier.
__device__ __forceinline__ void cp_async_16(uint32_t shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(shared), "l"(__cvta_generic_to_global(global))
                 : "memory");
}

// As above, but reads only the first `num_bytes` (0 to 16) and writes zeros for the rest.
__device__ __forceinline__ void cp_async_16_zero_fill(uint32_t shared, const void* global,
                                                      uint32_t num_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared), "l"(__cvta_generic_to_global(global)), "r"(num_bytes)
                 : "memory");
}

// Closes the group of copies that this thread started since the last commit.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" : : : "memory");
}

// Waits until at most the `num_pending` newest groups of this thread are still on their way.
template <int num_pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(num_pending) : "memory");
}

// Loads 16 bytes that nothing writes while the kernel runs and that are read once: it leaves the
// first-level cache to others. `global` is a multiple of 16.
__device__ __forceinline__ uint4 load_stream_16(const void* global) {
    uint4 out;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
        : "l"(__cvta_generic_to_global(global)));
    return out;
}

// Any function of three bits, on 32 at once: bit 4a + 2b + c of `table` is its value at a, b, c.
template <uint32_t table>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out) : "r"(a), "r"(b), "r"(c), "n"(table));
    return out;
}

// (bits & mask) | ones, in one instruction: puts a code into the mantissa of a float.
__device__ __forceinline__ uint32_t select_or(uint32_t bits, uint32_t mask, uint32_t ones) {
    return lop3<(0xf0 & 0xcc) | 0xaa>(bits, mask, ones);
}

// Byte i of the result is byte (selector >> 4i) & 7 of the eight bytes of `low` and `high`.
__device__ __forceinline__ uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
    return out;
}

}  // namespace ptx
