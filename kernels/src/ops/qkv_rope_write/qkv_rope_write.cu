// Between the projections and attention, in one pass: the optional norm of each query and key head,
// the rotary positions, and keys and values into the paged cache.
//
// One block per token, a group of lanes per head. A lane holds LEN neighbouring values of a head
// and their LEN partners in the rotation (or twice LEN values of the part that is not rotated), so
// that nothing but the sum of squares crosses lanes. That sum is a tree over the group, whose size
// depends on head_dim and rotary_dim alone; so no bits depend on the batch.
//
// LEN is 8 (16-byte accesses) where the rotated and the other part of a head are multiples of 16
// values, else 1.

#include "rows.cuh"

constexpr int THREADS = 256;
constexpr int HEAD_DIM_MAX = 256;
constexpr uint32_t NO_SLOT = 0xffffffffu;

// Sizes of a token's row, and where its keys and values go.
struct Row {
    uint32_t num_heads, num_kv_heads, head_dim, half, block_size;
    uint32_t slot;
};

// Where shared memory keeps value i of a table. Lanes read LEN = 8 neighbouring values as two
// vectors of four; the first vectors of all lanes lie together, then the second ones, so that
// neighbouring lanes use neighbouring banks. The distance is half a round of the banks, so that
// writing both parts at once has no conflicts either.
constexpr int SECOND_VECTORS = HEAD_DIM_MAX / 2 + 16;
constexpr int TABLE_LEN = SECOND_VECTORS + HEAD_DIM_MAX / 2;

template <int LEN>
__device__ __forceinline__ uint32_t place(uint32_t i) {
    return LEN == 1 ? i : (i >> 2 & 1) * SECOND_VECTORS + (i >> 3) * 4 + (i & 3);
}

template <int LEN>
__device__ __forceinline__ void fill(float* table, const float* from, uint32_t n) {
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        table[place<LEN>(i)] = from[i];
    }
}

// LEN values of a table from `i`, a multiple of LEN.
template <int LEN>
__device__ __forceinline__ void read(float (&out)[LEN], const float* table, uint32_t i) {
    if constexpr (LEN == 1) {
        out[0] = table[i];
    } else {
        const float4 a = *reinterpret_cast<const float4*>(table + place<LEN>(i));
        const float4 b = *reinterpret_cast<const float4*>(table + place<LEN>(i + 4));
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    }
}

template <int LEN, typename Act>
__device__ __forceinline__ void load(float (&out)[LEN], const Act* from) {
    if constexpr (LEN == 1) {
        out[0] = Number<Act>::to_f32(*from);
    } else {
        load8(out, from);
    }
}

template <int LEN, typename Act>
__device__ __forceinline__ void store(Act* to, const float (&values)[LEN]) {
    if constexpr (LEN == 1) {
        *to = Number<Act>::from_f32(values[0]);
    } else {
        store8(to, values);
    }
}

// The first and second run of a lane's unit `u`: partners in the rotation, or two runs behind it.
template <int LEN>
__device__ __forceinline__ uint2 runs_of(uint32_t u, uint32_t half) {
    const uint32_t first = u * LEN;
    return first < half ? make_uint2(first, first + half)
                        : make_uint2(2 * first, 2 * first + LEN);
}

template <typename Act>
__device__ __forceinline__ Act* cache_row(Act* cache, const Row& row, uint32_t kv_head) {
    const uint64_t block = row.slot / row.block_size;
    const uint64_t line = (block * row.num_kv_heads + kv_head) * row.block_size;
    return cache + (line + row.slot % row.block_size) * row.head_dim;
}

// Rotates `a` with its partners `b`.
template <int LEN>
__device__ __forceinline__ void rotate(float (&a)[LEN], float (&b)[LEN], const float* cos,
                                       const float* sin, uint32_t i) {
    float c[LEN], s[LEN];
    read(c, cos, i);
    read(s, sin, i);
#pragma unroll
    for (int j = 0; j < LEN; ++j) {
        const float x = a[j], y = b[j];
        a[j] = x * c[j] - y * s[j];
        b[j] = y * c[j] + x * s[j];
    }
}

template <int LEN>
__device__ __forceinline__ void scale(float (&a)[LEN], float scale, const float* weight,
                                      uint32_t i) {
    float w[LEN];
    read(w, weight, i);
#pragma unroll
    for (int j = 0; j < LEN; ++j) {
        a[j] = a[j] * scale * w[j];
    }
}

// One head of queries or keys: from -> to, both of head_dim values. `weight` is in shared memory,
// null for no norm; `to` may be null. Every lane of the warp calls this; lanes without a head have
// from = null.
template <int LEN, int UNITS, typename Act>
__device__ __forceinline__ void head(Act* to, const Act* from, const float* weight, const float* cos,
                                     const float* sin, const Row& row, uint32_t lane, int group,
                                     float eps) {
    const uint32_t num_units = row.head_dim / (2 * LEN);
    float a[UNITS][LEN], b[UNITS][LEN];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        const uint32_t u = k * group + lane;
        if (from && u < num_units) {
            const uint2 runs = runs_of<LEN>(u, row.half);
            load(a[k], from + runs.x);
            load(b[k], from + runs.y);
#pragma unroll
            for (int j = 0; j < LEN; ++j) {
                sum = fmaf(a[k][j], a[k][j], sum);
                sum = fmaf(b[k][j], b[k][j], sum);
            }
        }
    }
    float factor = 1.0f;
    if (weight) {
        const float mean = sum_lanes(sum, group) / static_cast<float>(row.head_dim);
        factor = 1.0f / sqrtf(mean + eps);
    }
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        const uint32_t u = k * group + lane;
        if (to && u < num_units) {
            const uint2 runs = runs_of<LEN>(u, row.half);
            if (weight) {
                scale(a[k], factor, weight, runs.x);
                scale(b[k], factor, weight, runs.y);
            }
            if (runs.x < row.half) {
                rotate(a[k], b[k], cos, sin, runs.x);
            }
            store(to + runs.x, a[k]);
            store(to + runs.y, b[k]);
        }
    }
}

template <int LEN, typename Act>
__device__ __forceinline__ void copy_head(Act* to, const Act* from, uint32_t head_dim, uint32_t lane,
                                          int group) {
    for (uint32_t i = lane * LEN; i < head_dim; i += group * LEN) {
        if constexpr (LEN == 1) {
            to[i] = from[i];
        } else {
            *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
        }
    }
}

// grid [num_tokens]. `group`: lanes per head, a power of two up to 32, at least the units of a head
// unless it is 32.
template <int LEN, int UNITS, typename Act>
__device__ __forceinline__ void qkv_rope_write(Act* q, Act* k_cache, Act* v_cache, const Act* k, const Act* v,
                                               const float* q_norm, const float* k_norm,
                                               const float* cos, const float* sin,
                                               uint32_t position, Row row, float eps, int group) {
    __shared__ __align__(16) float cosines[TABLE_LEN], sines[TABLE_LEN];
    __shared__ __align__(16) float q_weight[TABLE_LEN], k_weight[TABLE_LEN];
    const uint64_t table_row = static_cast<uint64_t>(position) * row.half;
    fill<LEN>(cosines, cos + table_row, row.half);
    fill<LEN>(sines, sin + table_row, row.half);
    if (q_norm) {
        fill<LEN>(q_weight, q_norm, row.head_dim);
        fill<LEN>(k_weight, k_norm, row.head_dim);
    }
    __syncthreads();

    const uint32_t lane = threadIdx.x % group, num_groups = THREADS / group;
    const uint64_t q_row = static_cast<uint64_t>(blockIdx.x) * row.num_heads * row.head_dim;
    const uint64_t kv_row = static_cast<uint64_t>(blockIdx.x) * row.num_kv_heads * row.head_dim;
    const uint32_t num_rotated = row.num_heads + row.num_kv_heads;
    // All lanes take part in every round, for the sums cross lanes.
    const uint32_t num_rounds = (num_rotated + num_groups - 1) / num_groups;
    for (uint32_t round = 0; round < num_rounds; ++round) {
        const uint32_t h = round * num_groups + threadIdx.x / group;
        const Act* from = nullptr;
        Act* to = nullptr;
        const bool is_key = h >= row.num_heads;
        if (!is_key) {
            to = q + q_row + static_cast<uint64_t>(h) * row.head_dim;
            from = to;
        } else if (h < num_rotated && row.slot != NO_SLOT) {
            from = k + kv_row + static_cast<uint64_t>(h - row.num_heads) * row.head_dim;
            to = cache_row(k_cache, row, h - row.num_heads);
        }
        const float* weight = q_norm ? (is_key ? k_weight : q_weight) : nullptr;
        head<LEN, UNITS>(to, from, weight, cosines, sines, row, lane, group, eps);
    }
    if (row.slot == NO_SLOT) {
        return;
    }
    for (uint32_t h = threadIdx.x / group; h < row.num_kv_heads; h += num_groups) {
        const Act* from = v + kv_row + static_cast<uint64_t>(h) * row.head_dim;
        copy_head<LEN>(cache_row(v_cache, row, h), from, row.head_dim, lane, group);
    }
}

#define KERNEL(Act, NAME, LEN, UNITS)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) qkv_rope_write_##NAME(                   \
        Act* q, Act* k_cache, Act* v_cache, const Act* k, const Act* v, const float* q_norm,                 \
        const float* k_norm, const float* cos, const float* sin, const uint32_t* positions,        \
        const uint32_t* slots, uint32_t num_heads, uint32_t num_kv_heads, uint32_t head_dim,       \
        uint32_t rotary_dim, uint32_t block_size, uint32_t group, float eps) {                     \
        const Row row{num_heads, num_kv_heads, head_dim, rotary_dim / 2, block_size,               \
                      slots[blockIdx.x]};                                                          \
        qkv_rope_write<LEN, UNITS>(q, k_cache, v_cache, k, v, q_norm, k_norm, cos, sin,            \
                                   positions[blockIdx.x], row, eps, static_cast<int>(group));      \
    }

KERNEL(__nv_bfloat16, bf16, 8, 1)
KERNEL(__half, f16, 8, 1)
// For heads that do not come in runs of eight.
KERNEL(__nv_bfloat16, bf16_any, 1, HEAD_DIM_MAX / 64)
KERNEL(__half, f16_any, 1, HEAD_DIM_MAX / 64)
