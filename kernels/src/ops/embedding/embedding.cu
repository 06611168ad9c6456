// Token ids -> rows of the embedding table, widened to f32. Tables lie as in the checkpoint: plain,
// or in GGUF blocks, whose layouts are those of ops/dequantize/reference.rs with the same roundings
// (no product and sum are fused), so that the bits are the same.
//
// A table may be one rank's run of rows: tokens whose rows others have get zeros.
//
// One block per token; a thread makes four neighbouring values, so that writes are 16 bytes wide.
// Blocks of 18, 22, 34 and 210 bytes are aligned to two bytes, hence reads of two.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

constexpr int THREADS = 256;

__device__ __forceinline__ float half_at(const uint8_t* bytes) {
    return __half2float(*reinterpret_cast<const __half*>(bytes));
}

// Four bytes at an even address.
__device__ __forceinline__ uint32_t word_at(const uint8_t* bytes) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(bytes);
    return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}

__device__ __forceinline__ uint32_t byte_of(uint32_t word, int i) {
    return word >> (8 * i) & 0xff;
}

// Each format: values per block, bytes per block, and the four values from `at` (a multiple of
// four) of a block.

struct Q8_0 {
    static constexpr int LEN = 32, BYTES = 34;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const float d = half_at(block);
        const uint32_t q = word_at(block + 2 + at);
        for (int i = 0; i < 4; ++i) {
            out[i] = __fmul_rn(d, static_cast<float>(static_cast<int8_t>(byte_of(q, i))));
        }
    }
};

struct Q4_0 {
    static constexpr int LEN = 32, BYTES = 18;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const float d = half_at(block);
        const uint32_t q = word_at(block + 2 + at % 16) >> (at / 16 * 4);
        for (int i = 0; i < 4; ++i) {
            out[i] = __fmul_rn(d, static_cast<float>(byte_of(q, i) & 15) - 8.0f);
        }
    }
};

struct Q5_0 {
    static constexpr int LEN = 32, BYTES = 22;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const float d = half_at(block);
        const uint32_t high = word_at(block + 2) >> at;
        const uint32_t low = word_at(block + 6 + at % 16) >> (at / 16 * 4);
        for (int i = 0; i < 4; ++i) {
            const uint32_t q = (byte_of(low, i) & 15) | (high >> i & 1) << 4;
            out[i] = __fmul_rn(d, static_cast<float>(q) - 16.0f);
        }
    }
};

// The scale and the minimum of sub-block `j` of Q4_K and Q5_K, times those of the block.
__device__ __forceinline__ void k_scale_min(float& scale, float& min, const uint8_t* block, int j) {
    const uint8_t* scales = block + 4;
    uint32_t s, m;
    if (j < 4) {
        s = scales[j] & 63;
        m = scales[j + 4] & 63;
    } else {
        s = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        m = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
    }
    scale = __fmul_rn(half_at(block), static_cast<float>(s));
    min = __fmul_rn(half_at(block + 2), static_cast<float>(m));
}

struct Q4K {
    static constexpr int LEN = 256, BYTES = 144;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const int sub_block = at / 32;
        float scale, min;
        k_scale_min(scale, min, block, sub_block);
        const uint32_t q = word_at(block + 16 + sub_block / 2 * 32 + at % 32);
        for (int i = 0; i < 4; ++i) {
            const uint32_t low = byte_of(q, i) >> (4 * (sub_block % 2)) & 15;
            out[i] = __fsub_rn(__fmul_rn(scale, static_cast<float>(low)), min);
        }
    }
};

struct Q5K {
    static constexpr int LEN = 256, BYTES = 176;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const int sub_block = at / 32;
        float scale, min;
        k_scale_min(scale, min, block, sub_block);
        const uint32_t high = word_at(block + 16 + at % 32);
        const uint32_t low = word_at(block + 48 + sub_block / 2 * 32 + at % 32);
        for (int i = 0; i < 4; ++i) {
            const uint32_t q = (byte_of(low, i) >> (4 * (sub_block % 2)) & 15) |
                               (byte_of(high, i) >> sub_block & 1) << 4;
            out[i] = __fsub_rn(__fmul_rn(scale, static_cast<float>(q)), min);
        }
    }
};

struct Q6K {
    static constexpr int LEN = 256, BYTES = 210;
    static __device__ __forceinline__ void four(float (&out)[4], const uint8_t* block, int at) {
        const int half = at / 128, quarter = at % 128 / 32, l = at % 32;
        const uint32_t low = word_at(block + half * 64 + quarter % 2 * 32 + l);
        const uint32_t high = word_at(block + 128 + half * 32 + l);
        const float sub_scale = static_cast<float>(static_cast<int8_t>(block[192 + at / 16]));
        const float scale = __fmul_rn(half_at(block + 208), sub_scale);
        for (int i = 0; i < 4; ++i) {
            const uint32_t q = (byte_of(low, i) >> (4 * (quarter / 2)) & 15) |
                               (byte_of(high, i) >> (2 * quarter) & 3) << 4;
            out[i] = __fmul_rn(scale, static_cast<float>(q) - 32.0f);
        }
    }
};

__device__ __forceinline__ void zeros(float* to, uint32_t n) {
    if (n % 4 == 0) {
        for (uint32_t i = threadIdx.x * 4; i < n; i += THREADS * 4) {
            *reinterpret_cast<float4*>(to + i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            to[i] = 0.0f;
        }
    }
}

// grid [num_tokens]; rows first to first + num_rows of the whole table, of n values, a multiple of the
// block length
template <typename Format>
__device__ __forceinline__ void embedding_blocks(float* out, const uint8_t* table,
                                                 const uint32_t* token_ids, uint32_t n,
                                                 uint32_t first, uint32_t num_rows) {
    float* to = out + static_cast<uint64_t>(blockIdx.x) * n;
    // Rows before the first come out as large numbers.
    const uint32_t place = token_ids[blockIdx.x] - first;
    if (place >= num_rows) {
        zeros(to, n);
        return;
    }
    const uint32_t row_bytes = n / Format::LEN * Format::BYTES;
    const uint8_t* row = table + static_cast<uint64_t>(place) * row_bytes;
    for (uint32_t i = threadIdx.x * 4; i < n; i += THREADS * 4) {
        float four[4];
        Format::four(four, row + i / Format::LEN * Format::BYTES, i % Format::LEN);
        *reinterpret_cast<float4*>(to + i) = make_float4(four[0], four[1], four[2], four[3]);
    }
}

// As above; 16 bytes at a time where rows are a multiple of them.
template <typename T>
__device__ __forceinline__ void embedding_plain(float* out, const T* table,
                                                const uint32_t* token_ids, uint32_t n,
                                                uint32_t first, uint32_t num_rows) {
    constexpr int LEN = 16 / sizeof(T);
    struct alignas(16) Vector {
        T values[LEN];
    };
    float* to = out + static_cast<uint64_t>(blockIdx.x) * n;
    const uint32_t place = token_ids[blockIdx.x] - first;
    if (place >= num_rows) {
        zeros(to, n);
        return;
    }
    const T* row = table + static_cast<uint64_t>(place) * n;
    if (n % LEN == 0) {
        for (uint32_t i = threadIdx.x * LEN; i < n; i += THREADS * LEN) {
            const Vector v = *reinterpret_cast<const Vector*>(row + i);
#pragma unroll
            for (int j = 0; j < LEN; j += 4) {
                *reinterpret_cast<float4*>(to + i + j) = make_float4(
                    static_cast<float>(v.values[j]), static_cast<float>(v.values[j + 1]),
                    static_cast<float>(v.values[j + 2]), static_cast<float>(v.values[j + 3]));
            }
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            to[i] = static_cast<float>(row[i]);
        }
    }
}

#define PLAIN_KERNEL(T, NAME)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) embedding_##NAME(                        \
        float* out, const T* table, const uint32_t* token_ids, uint32_t n, uint32_t first,         \
        uint32_t num_rows) {                                                                       \
        embedding_plain(out, table, token_ids, n, first, num_rows);                                \
    }

PLAIN_KERNEL(float, f32)
PLAIN_KERNEL(__half, f16)
PLAIN_KERNEL(__nv_bfloat16, bf16)

#define BLOCK_KERNEL(FORMAT, NAME)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) embedding_##NAME(                        \
        float* out, const uint8_t* table, const uint32_t* token_ids, uint32_t n, uint32_t first,   \
        uint32_t num_rows) {                                                                       \
        embedding_blocks<FORMAT>(out, table, token_ids, n, first, num_rows);                       \
    }

BLOCK_KERNEL(Q8_0, q8_0)
BLOCK_KERNEL(Q4_0, q4_0)
BLOCK_KERNEL(Q5_0, q5_0)
BLOCK_KERNEL(Q4K, q4_k)
BLOCK_KERNEL(Q5K, q5_k)
BLOCK_KERNEL(Q6K, q6_k)
