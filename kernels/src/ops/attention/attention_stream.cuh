// What the attention kernels read, and how it comes into shared memory.
#pragma once

#include "numbers.cuh"
#include "ptx.cuh"
#include "ptx_attention.cuh"

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
}

// Keys whose running sums a kernel may compute apart from those of other splits.
constexpr uint32_t SPLIT_KEYS = 256;
constexpr float LOG2_E = 1.4426950408889634f;

// How a thread block divides a tile of ROWS query rows. Each of its warps has 16 rows, the scores
// of KEYS / DIM_WARPS keys, and HEAD_DIM / DIM_WARPS dimensions of the output. BUFFERS tiles of
// keys or values are in shared memory at once.
template <typename T, uint32_t HEAD_DIM_, uint32_t ROW_WARPS_, uint32_t DIM_WARPS_,
          uint32_t BUFFERS_>
struct Plan {
    using Act = T;
    static constexpr uint32_t HEAD_DIM = HEAD_DIM_;
    static constexpr uint32_t ROW_WARPS = ROW_WARPS_;
    static constexpr uint32_t DIM_WARPS = DIM_WARPS_;
    static constexpr uint32_t BUFFERS = BUFFERS_;
    static constexpr uint32_t WARPS = ROW_WARPS * DIM_WARPS;
    static constexpr uint32_t THREADS = 32 * WARPS;
    static constexpr uint32_t ROWS = 16 * ROW_WARPS;
    static constexpr uint32_t KEYS = HEAD_DIM > 128 ? 32 : 64;
    static constexpr uint32_t SPLIT_TILES = SPLIT_KEYS / KEYS;
    // 16-byte pieces of a row of queries, keys, values or output.
    static constexpr uint32_t PIECES = HEAD_DIM / 8;
    static constexpr uint32_t SCORE_TILES = KEYS / DIM_WARPS / 8;
    static constexpr uint32_t OUT_TILES = HEAD_DIM / DIM_WARPS / 8;
    // Key rows of a tile that one warp copies.
    static constexpr uint32_t COPY_ROWS = KEYS / WARPS;

    static constexpr uint32_t TILE_BYTES = KEYS * HEAD_DIM * 2;
    static constexpr uint32_t RING_AT = ROWS * HEAD_DIM * 2;
    static constexpr uint32_t WEIGHTS_AT = RING_AT + BUFFERS * TILE_BYTES;
    static constexpr uint32_t MAXIMA_AT = WEIGHTS_AT + (DIM_WARPS > 1 ? ROWS * KEYS * 2 : 0);
    static constexpr uint32_t SHARED_BYTES = MAXIMA_AT + (DIM_WARPS > 1 ? ROWS * DIM_WARPS * 4 : 0);

    static_assert(BUFFERS % 2 == 0, "keys and values alternate");
    static_assert(COPY_ROWS * PIECES % 32 == 0, "all lanes copy, since all take part in a shuffle");
    static_assert(SHARED_BYTES <= 99 * 1024, "the smallest opt-in limit of sm_80 to sm_120");
};

// The arguments of an attention kernel that do not depend on which one it is.
template <typename T>
struct Inputs {
    const T* q;
    const T* k_cache;
    const T* v_cache;
    const uint32_t* query_start;
    const uint32_t* context_len;
    const uint32_t* block_tables;
    float scale;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t block_shift;
    uint32_t block_table_stride;

    __device__ uint32_t group() const { return heads / kv_heads; }
};

// The query rows of one tile: `num_rows` of the sequence's rows from `first_row`.
struct Rows {
    uint32_t seq;
    uint32_t kv_head;
    uint32_t first_row;
    uint32_t num_rows;
    uint32_t group;
    // Row of q and out of the sequence's first token in this step, and that token's position.
    uint32_t first_token;
    uint32_t first_position;

    __device__ uint32_t token(uint32_t row) const { return (first_row + row) / group; }
    // Keys that a row of the tile sees.
    __device__ uint32_t num_keys(uint32_t row) const { return first_position + token(row) + 1; }
    // Index of the row's token and head in q and out [num_tokens, heads].
    __device__ uint32_t flat(uint32_t row, uint32_t heads) const {
        uint32_t head = kv_head * group + (first_row + row) % group;
        return (first_token + token(row)) * heads + head;
    }
};

// Where 16-byte piece `piece` of row `row` lies in a shared tile whose rows have PIECES pieces:
// eight consecutive rows have the same piece in eight different groups of four banks.
template <uint32_t PIECES>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t piece) {
    constexpr uint32_t ROWS_PER_LINE = PIECES >= 8 ? 1 : 8 / PIECES;
    constexpr uint32_t MASK = (PIECES >= 8 ? 8 : PIECES) - 1;
    return (row * PIECES + (piece ^ ((row / ROWS_PER_LINE) & MASK))) * 16;
}

// A sequence of copies of key and value tiles, alternating, each into the next of BUFFERS buffers.
template <typename P>
class Stream {
    using T = typename P::Act;
    const T* k_cache;
    const T* v_cache;
    const uint32_t* block_table;
    uint32_t kv_heads, kv_head, block_shift;
    uint32_t num_keys;
    uint32_t tile, tile_end;
    uint32_t ring;
    uint32_t buffer;
    // The lane's row of the warp's share of the next tile of keys: its block, if it is the first
    // row in it; of the values that follow, the same.
    uint32_t next_block, block;

    __device__ __forceinline__ uint32_t load_block(uint32_t of_tile) const {
        uint32_t lane = threadIdx.x % 32;
        uint32_t key = of_tile * P::KEYS + threadIdx.x / 32 * P::COPY_ROWS + lane;
        uint32_t in_block = key & ((1u << block_shift) - 1);
        bool first = lane == 0 || in_block == 0;
        bool needed = lane < P::COPY_ROWS && first && key < num_keys && of_tile < tile_end;
        return needed ? __ldg(block_table + (key >> block_shift)) : 0;
    }

    __device__ __forceinline__ void copy_tile(const T* cache) const {
        uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint32_t to = ring + buffer * P::TILE_BYTES;
#pragma unroll
        for (uint32_t i = 0; i < P::COPY_ROWS * P::PIECES / 32; i++) {
            uint32_t row = (i * 32 + lane) / P::PIECES, piece = (i * 32 + lane) % P::PIECES;
            uint32_t tile_row = warp * P::COPY_ROWS + row;
            uint32_t key = tile * P::KEYS + tile_row;
            uint32_t in_block = key & ((1u << block_shift) - 1);
            uint32_t of_row = __shfl_sync(0xFFFFFFFF, block, row - min(row, in_block));
            uint64_t slot = ((uint64_t(of_row) * kv_heads + kv_head) << block_shift) + in_block;
            bool seen = key < num_keys;
            const T* from = seen ? cache + slot * P::HEAD_DIM + piece * 8 : cache;
            uint32_t at = to + swizzled<P::PIECES>(tile_row, piece);
            ptx::cp_async_16_zero_fill(at, from, seen ? 16 : 0);
        }
    }

public:
    __device__ __forceinline__ Stream(const Inputs<T>& in, const Rows& rows, uint32_t num_keys,
                                      uint32_t tile, uint32_t tile_end, uint32_t ring)
        : k_cache(in.k_cache), v_cache(in.v_cache),
          block_table(in.block_tables + uint64_t(rows.seq) * in.block_table_stride),
          kv_heads(in.kv_heads), kv_head(rows.kv_head), block_shift(in.block_shift),
          num_keys(num_keys), tile(tile), tile_end(tile_end), ring(ring), buffer(0), block(0) {
        next_block = load_block(tile);
    }

    // Starts the copy of the next tile, if there is one, as a group of asynchronous copies; the
    // group is there in any case, so that `wait` may count groups.
    __device__ __forceinline__ void copy_keys() {
        if (tile < tile_end) {
            block = next_block;
            next_block = load_block(tile + 1);
            copy_tile(k_cache);
        }
        ptx::cp_async_commit();
        buffer = (buffer + 1) % P::BUFFERS;
    }

    __device__ __forceinline__ void copy_values() {
        if (tile < tile_end) {
            copy_tile(v_cache);
            tile++;
        }
        ptx::cp_async_commit();
        buffer = (buffer + 1) % P::BUFFERS;
    }

    // Until the oldest tile that was not waited for is in shared memory, for all warps; and all
    // warps are done with the buffer that the next copy goes to.
    __device__ __forceinline__ void wait() const {
        ptx::cp_async_wait<P::BUFFERS - 2>();
        __syncthreads();
    }
};
