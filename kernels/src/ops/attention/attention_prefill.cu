// Attention of sequences with more than `split_tokens_max` tokens in the step: a thread block walks
// all keys of a tile of query rows. The arithmetic is in attention_tile.cuh.
//
// Memory: a tile of 64 query rows (64 / group tokens of one kv head) reads the keys and values it
// sees once; q and out once.
#include "attention_tile.cuh"

// The tile of query rows of this thread block; false if there is none. Tiles are counted over a
// bound that each thread block can compute from the start of its sequence alone: sequence s has
// tiles from query_start[s] * group / ROWS + s, and at most as many as lie before those of s + 1.
template <typename P>
__device__ __forceinline__ bool find_rows(const Inputs<typename P::Act>& in, uint32_t num_seqs,
                                          uint32_t split_tokens_max, Rows& rows) {
    uint32_t group = in.group();
    uint32_t seq = 0, seq_end = num_seqs;
    while (seq + 1 < seq_end) {
        uint32_t middle = (seq + seq_end) / 2;
        bool at_or_before = in.query_start[middle] * group / P::ROWS + middle <= blockIdx.x;
        seq = at_or_before ? middle : seq;
        seq_end = at_or_before ? seq_end : middle;
    }
    uint32_t first_token = in.query_start[seq];
    uint32_t num_tokens = in.query_start[seq + 1] - first_token;
    uint32_t num_tiles = (num_tokens * group + P::ROWS - 1) / P::ROWS;
    uint32_t tile = blockIdx.x - (first_token * group / P::ROWS + seq);
    if (tile >= num_tiles || num_tokens <= split_tokens_max) return false;
    rows.seq = seq;
    rows.kv_head = blockIdx.y;
    // Those with most keys first.
    rows.first_row = (num_tiles - 1 - tile) * P::ROWS;
    rows.num_rows = min(P::ROWS, num_tokens * group - rows.first_row);
    rows.group = group;
    rows.first_token = first_token;
    rows.first_position = in.context_len[seq] - num_tokens;
    return true;
}

template <typename P>
__device__ __forceinline__ void prefill(typename P::Act* out, const Inputs<typename P::Act>& in,
                                        uint32_t num_seqs, uint32_t split_tokens_max) {
    Rows rows;
    if (!find_rows<P>(in, num_seqs, split_tokens_max, rows)) return;
    uint32_t num_splits = (rows.num_keys(rows.num_rows - 1) + SPLIT_KEYS - 1) / SPLIT_KEYS;
    Warp<P> warp;
    State<P::OUT_TILES> total;
    warp.attend(in, rows, 0, num_splits, total);
    warp.store_out(out, rows, in.heads, total);
}

// Grid: [num_tokens * group / 64 + num_seqs, kv_heads].
#define PREFILL(name, Act, head_dim, row_warps, dim_warps, buffers, blocks)                        \
    extern "C" __global__ void __launch_bounds__(32 * row_warps * dim_warps, blocks) name(         \
        Act* out, const Act* q, const Act* k_cache, const Act* v_cache,                            \
        const uint32_t* query_start, const uint32_t* context_len, const uint32_t* block_tables,    \
        float scale, uint32_t heads, uint32_t kv_heads, uint32_t block_shift,                      \
        uint32_t block_table_stride, uint32_t num_seqs, uint32_t split_tokens_max) {               \
        Inputs<Act> in = {q, k_cache, v_cache, query_start, context_len, block_tables,             \
                          scale, heads, kv_heads, block_shift, block_table_stride};                \
        prefill<Plan<Act, head_dim, row_warps, dim_warps, buffers>>(out, in, num_seqs,             \
                                                                    split_tokens_max);             \
    }

PREFILL(attention_prefill_32_bf16, __nv_bfloat16, 32, 4, 1, 4, 3)
PREFILL(attention_prefill_64_bf16, __nv_bfloat16, 64, 4, 1, 4, 3)
PREFILL(attention_prefill_128_bf16, __nv_bfloat16, 128, 4, 1, 2, 2)
PREFILL(attention_prefill_256_bf16, __nv_bfloat16, 256, 4, 2, 2, 1)
PREFILL(attention_prefill_32_f16, __half, 32, 4, 1, 4, 3)
PREFILL(attention_prefill_64_f16, __half, 64, 4, 1, 4, 3)
PREFILL(attention_prefill_128_f16, __half, 128, 4, 1, 2, 2)
PREFILL(attention_prefill_256_f16, __half, 256, 4, 2, 2, 1)
