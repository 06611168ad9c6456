// What the attention kernels share: the arithmetic of a row.
//
// A row is one query head of one token; rows that share a kv head are packed into tiles of matrix
// instructions, row r of a sequence being head r % group of token r / group.
//
// Why a row has the same bits in every kernel, chunk, batch and block size. Positions are absolute;
// SPLIT_KEYS and KEYS are functions of head_dim alone.
//   1. A score is one chain of mma.m16n8k16 over the dimensions, from first to last, started at 0.
//      An element of an mma result depends on its row of A, its column of B and its own addend, not
//      on where in the tile or in which warp it lies.
//   2. Tiles start at multiples of KEYS. A tile's largest score is a maximum, exact in any order.
//      Weights 2^(s - m) are computed one by one and rounded to the activation dtype; the sum of a
//      tile's weighted values is a chain of mma over its keys, from first to last, added to the
//      running sums, which were scaled by 2^(m_before - m). The sum of weights is one more column
//      of that product, whose values are 1. So it has the same order, and weights sum to 1 as
//      rounded.
//   3. Splits start at multiples of SPLIT_KEYS. Tiles of a split are added in order, from an empty
//      state; splits are merged in order, into an empty state, by `merge_weights` and `merged`
//      alone: in registers by a kernel that walks all splits of a row, from memory by the combine
//      kernel.
//   4. A key that a row does not see has score minus infinity: weight 0, no influence on a maximum.
//      So a tile or split without visible keys scales by 2^0 = 1, adds products with 0 and merges x
//      * 1 + 0 * 0: no change, whether or not a neighbour's longer context made it run. (The sign
//      of a zero may change; it only ever decides the sign of a zero, and `normalized` adds 0.)
//      Likewise the merge of the first split into the empty state is x * 1 + 0 * 0.
//   5. Every rounding is spelled out (__fmul_rn, __fmaf_rn, ...), so that the compiler cannot
//      contract the same expression in two ways in two kernels.
// Slots beyond the visible keys of a tile's last row are never read: their rows are filled with
// zeros, so that uninitialised memory cannot enter through 0 * NaN.
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao,
// "FlashAttention-2", 2023; Dao et al., "Flash-Decoding", 2023.
#pragma once

#include "attention_stream.cuh"

// Weights of two states that become one.
struct Merge {
    float max;
    float total_weight;
    float part_weight;
};

__device__ __forceinline__ Merge merge_weights(float total_max, float part_max) {
    float max = fmaxf(total_max, part_max);
    // Nothing seen yet by either: any finite number makes both weights 0.
    float base = max == -INFINITY ? 0.0f : max;
    return {max, ptx::ex2(__fsub_rn(total_max, base)), ptx::ex2(__fsub_rn(part_max, base))};
}

__device__ __forceinline__ float merged(float total, float part, const Merge& by) {
    return __fmaf_rn(part, by.part_weight, __fmul_rn(total, by.total_weight));
}

// Plus 0, which makes of -0 a 0.
__device__ __forceinline__ float normalized(float sum, float inverse_weight_sum) {
    return __fadd_rn(__fmul_rn(sum, inverse_weight_sum), 0.0f);
}

// The running sums of one warp: of a lane, rows lane / 4 and lane / 4 + 8, and of each tile of
// eight output dimensions the two from lane % 4 * 2; elements 0 and 1 are of the first row.
template <uint32_t OUT_TILES>
struct State {
    float max[2];
    // Of the sum of weights all columns are equal.
    float weight_sum[4];
    float sums[OUT_TILES][4];

    __device__ __forceinline__ void clear() {
        max[0] = max[1] = -INFINITY;
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) weight_sum[e] = 0.0f;
#pragma unroll
        for (uint32_t n = 0; n < OUT_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) sums[n][e] = 0.0f;
        }
    }
};

// One warp's part in a tile of query rows: scores, weights, running sums.
template <typename P>
class Warp {
    using T = typename P::Act;
    using Running = State<P::OUT_TILES>;
    static constexpr uint32_t K_STEPS = P::HEAD_DIM / 16;

    uint32_t shared;
    uint32_t lane, row_warp, dim_warp;
    // Keys that the lane's two rows see, and that the first row of the thread block's tile sees.
    uint32_t limit[2], first_limit;
    float scale;
    float scores[P::SCORE_TILES][4];
    // The weights of the warp's rows, as operands of the product with the values.
    uint32_t weights[P::KEYS / 16][4];

    // Lane's row address for the 16 x 16 operand A at column `step * 16` of a tile of the warp's
    // rows.
    template <uint32_t PIECES>
    __device__ __forceinline__ uint32_t operand_a(uint32_t tile, uint32_t step) const {
        return tile + swizzled<PIECES>(row_warp * 16 + lane % 16, step * 2 + lane / 16);
    }

    // scores = rows x keys of the warp
    __device__ __forceinline__ void score(uint32_t keys) {
#pragma unroll
        for (uint32_t n = 0; n < P::SCORE_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) scores[n][e] = 0.0f;
        }
        uint32_t first_key = dim_warp * P::SCORE_TILES * 8;
#pragma unroll
        for (uint32_t k = 0; k < K_STEPS; k++) {
            uint32_t a[4];
            ptx::ldmatrix_x4(a, operand_a<P::PIECES>(shared, k));
            if constexpr (P::SCORE_TILES == 1) {
                uint32_t b[2];
                uint32_t key = first_key + lane % 8, piece = k * 2 + lane / 8 % 2;
                ptx::ldmatrix_x2(b, keys + swizzled<P::PIECES>(key, piece));
                ptx::mma_m16n8k16<T>(scores[0], a, b[0], b[1]);
            } else {
#pragma unroll
                for (uint32_t n = 0; n < P::SCORE_TILES; n += 2) {
                    uint32_t b[4];
                    uint32_t key = first_key + n * 8 + lane / 16 * 8 + lane % 8;
                    uint32_t piece = k * 2 + lane / 8 % 2;
                    ptx::ldmatrix_x4(b, keys + swizzled<P::PIECES>(key, piece));
                    ptx::mma_m16n8k16<T>(scores[n], a, b[0], b[1]);
                    ptx::mma_m16n8k16<T>(scores[n + 1], a, b[2], b[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void mask(uint32_t tile) {
        uint32_t first_key = tile * P::KEYS + dim_warp * P::SCORE_TILES * 8 + lane % 4 * 2;
#pragma unroll
        for (uint32_t n = 0; n < P::SCORE_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                if (first_key + n * 8 + e % 2 >= limit[e / 2]) scores[n][e] = -INFINITY;
            }
        }
    }

    // The largest score of each of the lane's rows over all keys of the tile.
    __device__ __forceinline__ void row_maxima(float (&max)[2]) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            max[r] = fmaxf(scores[0][2 * r], scores[0][2 * r + 1]);
#pragma unroll
            for (uint32_t n = 1; n < P::SCORE_TILES; n++) {
                max[r] = fmaxf(max[r], fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            }
            max[r] = fmaxf(max[r], __shfl_xor_sync(0xFFFFFFFF, max[r], 1));
            max[r] = fmaxf(max[r], __shfl_xor_sync(0xFFFFFFFF, max[r], 2));
        }
        if constexpr (P::DIM_WARPS > 1) {
            // [row][dim_warp]
            float* maxima = reinterpret_cast<float*>(dynamic_shared() + P::MAXIMA_AT);
            uint32_t row = row_warp * 16 + lane / 4;
            if (lane % 4 == 0) {
                maxima[row * P::DIM_WARPS + dim_warp] = max[0];
                maxima[(row + 8) * P::DIM_WARPS + dim_warp] = max[1];
            }
            __syncthreads();
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
#pragma unroll
                for (uint32_t d = 0; d < P::DIM_WARPS; d++) {
                    max[r] = fmaxf(max[r], maxima[(row + 8 * r) * P::DIM_WARPS + d]);
                }
            }
        }
    }

    // Scales the running sums to the new largest scores and makes weights of the scores.
    __device__ __forceinline__ void weigh(Running& split) {
        float base[2], decay[2];
        row_maxima(base);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            float max = fmaxf(split.max[r], __fmul_rn(base[r], scale));
            // If nothing was seen yet any finite number makes decay and weights 0.
            base[r] = max == -INFINITY ? 0.0f : max;
            decay[r] = ptx::ex2(__fsub_rn(split.max[r], base[r]));
            split.max[r] = max;
        }
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            split.weight_sum[e] = __fmul_rn(split.weight_sum[e], decay[e / 2]);
#pragma unroll
            for (uint32_t n = 0; n < P::OUT_TILES; n++) {
                split.sums[n][e] = __fmul_rn(split.sums[n][e], decay[e / 2]);
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < P::SCORE_TILES; n++) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                float first = ptx::ex2(__fmaf_rn(scores[n][2 * r], scale, -base[r]));
                float second = ptx::ex2(__fmaf_rn(scores[n][2 * r + 1], scale, -base[r]));
                keep_weights(n, r, Number<T>::pair_from_f32(first, second));
            }
        }
    }

    // The sums of a mma have the layout of its first operand, so a warp that has all keys of the
    // tile keeps its weights; others exchange them.
    __device__ __forceinline__ void keep_weights(uint32_t n, uint32_t r, uint32_t pair) {
        if constexpr (P::DIM_WARPS == 1) {
            weights[n / 2][n % 2 * 2 + r] = pair;
        } else {
            uint32_t row = row_warp * 16 + r * 8 + lane / 4;
            uint32_t at = swizzled<P::KEYS / 8>(row, dim_warp * P::SCORE_TILES + n) + lane % 4 * 4;
            *reinterpret_cast<uint32_t*>(dynamic_shared() + P::WEIGHTS_AT + at) = pair;
        }
    }

    // sums += weights x values of the warp's dimensions
    __device__ __forceinline__ void add_values(uint32_t values, Running& split) {
        const uint32_t ones = Number<T>::pair_from_f32(1.0f, 1.0f);
        uint32_t first_piece = dim_warp * P::OUT_TILES;
#pragma unroll
        for (uint32_t k = 0; k < P::KEYS / 16; k++) {
            if constexpr (P::DIM_WARPS > 1) {
                uint32_t tile = shared + P::WEIGHTS_AT;
                ptx::ldmatrix_x4(weights[k], operand_a<P::KEYS / 8>(tile, k));
            }
            ptx::mma_m16n8k16<T>(split.weight_sum, weights[k], ones, ones);
            uint32_t key = k * 16 + lane % 16;
            if constexpr (P::OUT_TILES == 1) {
                uint32_t b[2];
                ptx::ldmatrix_x2_trans(b, values + swizzled<P::PIECES>(key, first_piece));
                ptx::mma_m16n8k16<T>(split.sums[0], weights[k], b[0], b[1]);
            } else {
#pragma unroll
                for (uint32_t n = 0; n < P::OUT_TILES; n += 2) {
                    uint32_t b[4];
                    uint32_t piece = first_piece + n + lane / 16;
                    ptx::ldmatrix_x4_trans(b, values + swizzled<P::PIECES>(key, piece));
                    ptx::mma_m16n8k16<T>(split.sums[n], weights[k], b[0], b[1]);
                    ptx::mma_m16n8k16<T>(split.sums[n + 1], weights[k], b[2], b[3]);
                }
            }
        }
    }

    static __device__ __forceinline__ void merge(Running& total, Running& split) {
        Merge by[2] = {merge_weights(total.max[0], split.max[0]),
                       merge_weights(total.max[1], split.max[1])};
        total.max[0] = by[0].max;
        total.max[1] = by[1].max;
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            total.weight_sum[e] = merged(total.weight_sum[e], split.weight_sum[e], by[e / 2]);
#pragma unroll
            for (uint32_t n = 0; n < P::OUT_TILES; n++) {
                total.sums[n][e] = merged(total.sums[n][e], split.sums[n][e], by[e / 2]);
            }
        }
        split.clear();
    }

    // The rows of q, zeros beyond the last one. Their copies join the group of the first tile.
    __device__ __forceinline__ void copy_queries(const Inputs<T>& in, const Rows& rows) const {
#pragma unroll
        for (uint32_t i = threadIdx.x; i < P::ROWS * P::PIECES; i += P::THREADS) {
            uint32_t row = i / P::PIECES, piece = i % P::PIECES;
            bool there = row < rows.num_rows;
            const T* from = in.q;
            if (there) from += uint64_t(rows.flat(row, in.heads)) * P::HEAD_DIM + piece * 8;
            uint32_t to = shared + swizzled<P::PIECES>(row, piece);
            ptx::cp_async_16_zero_fill(to, from, there ? 16 : 0);
        }
    }

public:
    __device__ __forceinline__ Warp() {
        shared = ptx::shared_address(dynamic_shared());
        lane = threadIdx.x % 32;
        row_warp = threadIdx.x / 32 / P::DIM_WARPS;
        dim_warp = threadIdx.x / 32 % P::DIM_WARPS;
    }

    // total = the state of the rows after all visible keys of splits `split`..`split_end`.
    __device__ __forceinline__ void attend(const Inputs<T>& in, const Rows& rows, uint32_t split,
                                           uint32_t split_end, Running& total) {
        uint32_t num_keys = rows.num_keys(rows.num_rows - 1);
        uint32_t tile = split * P::SPLIT_TILES;
        uint32_t tile_end = min(split_end * P::SPLIT_TILES, (num_keys + P::KEYS - 1) / P::KEYS);
        uint32_t row = row_warp * 16 + lane / 4;
        limit[0] = row < rows.num_rows ? rows.num_keys(row) : 0;
        limit[1] = row + 8 < rows.num_rows ? rows.num_keys(row + 8) : 0;
        first_limit = rows.num_keys(0);
        scale = __fmul_rn(in.scale, LOG2_E);

        uint32_t ring = shared + P::RING_AT;
        Stream<P> stream(in, rows, num_keys, tile, tile_end, ring);
        copy_queries(in, rows);
        stream.copy_keys();
        if constexpr (P::BUFFERS > 2) {
            stream.copy_values();
            stream.copy_keys();
        }
        Running sums;
        sums.clear();
        total.clear();
        uint32_t buffer = 0;
        for (; tile < tile_end; tile++) {
            stream.wait();
            stream.copy_values();
            score(ring + buffer * P::TILE_BYTES);
            if ((tile + 1) * P::KEYS > first_limit) mask(tile);
            weigh(sums);
            stream.wait();
            stream.copy_keys();
            add_values(ring + (buffer + 1) * P::TILE_BYTES, sums);
            buffer = (buffer + 2) % P::BUFFERS;
            if ((tile + 1) % P::SPLIT_TILES == 0 || tile + 1 == tile_end) merge(total, sums);
        }
        // Shared memory may be written again.
        ptx::cp_async_wait<0>();
        __syncthreads();
    }

    // out = the rows' sums over their sums of weights, through shared memory, to be written in
    // pieces of 16 bytes.
    __device__ __forceinline__ void store_out(T* out, const Rows& rows, uint32_t heads,
                                              const Running& total) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            float inverse = __frcp_rn(total.weight_sum[2 * r]);
            uint32_t row = row_warp * 16 + r * 8 + lane / 4;
#pragma unroll
            for (uint32_t n = 0; n < P::OUT_TILES; n++) {
                uint32_t at = swizzled<P::PIECES>(row, dim_warp * P::OUT_TILES + n) + lane % 4 * 4;
                *reinterpret_cast<uint32_t*>(dynamic_shared() + at) =
                    Number<T>::pair_from_f32(normalized(total.sums[n][2 * r], inverse),
                                             normalized(total.sums[n][2 * r + 1], inverse));
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < rows.num_rows * P::PIECES; i += P::THREADS) {
            uint32_t row = i / P::PIECES, piece = i % P::PIECES;
            T* to = out + uint64_t(rows.flat(row, heads)) * P::HEAD_DIM + piece * 8;
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(
                dynamic_shared() + swizzled<P::PIECES>(row, piece));
        }
        __syncthreads();
    }

    // The rows' states to memory, for the combine kernel: `first_slot` plus token and head.
    __device__ __forceinline__ void store_partial(float* partial_sums, float2* partial_stats,
                                                  uint64_t first_slot, const Rows& rows,
                                                  uint32_t heads, const Running& total) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t row = row_warp * 16 + r * 8 + lane / 4;
            if (row >= rows.num_rows) continue;
            uint64_t slot = first_slot + rows.flat(row, heads) - uint64_t(rows.first_token) * heads;
            uint32_t first_dim = dim_warp * P::OUT_TILES * 8 + lane % 4 * 2;
            float* to = partial_sums + slot * P::HEAD_DIM + first_dim;
#pragma unroll
            for (uint32_t n = 0; n < P::OUT_TILES; n++) {
                *reinterpret_cast<float2*>(to + n * 8) =
                    make_float2(total.sums[n][2 * r], total.sums[n][2 * r + 1]);
            }
            if (dim_warp == 0 && lane % 4 == 0) {
                partial_stats[slot] = make_float2(total.max[r], total.weight_sum[2 * r]);
            }
        }
    }
};
