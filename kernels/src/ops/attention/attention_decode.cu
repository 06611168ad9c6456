// Attention of sequences with at most `split_tokens_max` tokens in the step: splits of the context
// are work items of their own, and a second kernel merges them in order. The arithmetic is in
// attention_tile.cuh.
//
// The number of thread blocks is free: each takes items from its own index on, in steps of their
// number. So a graph's grid fits any contexts, and only as many blocks start as can run at once.
//
// Work items, in order of sequences: one for each split of a sequence, as long as all of them up to
// and with this sequence's have a place in the partial states' memory; else one item for the whole
// sequence, whose splits a thread block then walks in order. Both give the same bits.
//
// Memory: keys and values once for each 16 query rows of a kv head; for each split of a context
// longer than one split, 4 head_dim + 8 bytes a query row written and read.
#include "attention_tile.cuh"

// Splits of a sequence with these lengths; none if another kernel has it.
__device__ __forceinline__ uint32_t splits_of(uint32_t num_tokens, uint32_t context_len,
                                              uint32_t split_tokens_max) {
    if (num_tokens == 0 || num_tokens > split_tokens_max) return 0;
    return (context_len + SPLIT_KEYS - 1) / SPLIT_KEYS;
}

__device__ __forceinline__ uint32_t sum_up_to_lane(uint32_t value) {
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint32_t before = __shfl_up_sync(0xFFFFFFFF, value, distance);
        if (lane >= distance) value += before;
    }
    return value;
}

// The step's sequences in shared memory, read once.
struct Sequences {
    // [num_seqs + 1]: the first work item of each.
    uint32_t* item_start;
    // [num_seqs + 1]
    uint32_t* query_start;
    // [num_seqs]
    uint32_t* context_len;

    __device__ Sequences(unsigned char* shared, uint32_t num_seqs)
        : item_start(reinterpret_cast<uint32_t*>(shared)), query_start(item_start + num_seqs + 1),
          context_len(query_start + num_seqs + 1) {}
};

// Fills `sequences`. One warp's work.
template <typename T>
__device__ __forceinline__ void count_items(const Sequences& sequences, const Inputs<T>& in,
                                            uint32_t num_seqs, uint32_t split_tokens_max,
                                            uint32_t partial_splits_max) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t splits_before = 0, items_before = 0, tokens_before = 0;
    if (lane == 0) sequences.item_start[0] = sequences.query_start[0] = 0;
    for (uint32_t first = 0; first < num_seqs; first += 32) {
        uint32_t seq = first + lane;
        bool there = seq < num_seqs;
        uint32_t context_len = there ? in.context_len[seq] : 0;
        uint32_t tokens_end = there ? in.query_start[seq + 1] : 0;
        uint32_t token = __shfl_up_sync(0xFFFFFFFF, tokens_end, 1);
        if (lane == 0) token = tokens_before;
        uint32_t splits = there ? splits_of(tokens_end - token, context_len, split_tokens_max) : 0;
        uint32_t splits_end = splits_before + sum_up_to_lane(splits);
        uint32_t items = splits_end <= partial_splits_max ? splits : min(splits, 1);
        uint32_t items_end = items_before + sum_up_to_lane(items);
        if (there) {
            sequences.item_start[seq + 1] = items_end;
            sequences.query_start[seq + 1] = tokens_end;
            sequences.context_len[seq] = context_len;
        }
        splits_before = __shfl_sync(0xFFFFFFFF, splits_end, 31);
        items_before = __shfl_sync(0xFFFFFFFF, items_end, 31);
        tokens_before = __shfl_sync(0xFFFFFFFF, tokens_end, 31);
    }
}

template <typename P>
__device__ __forceinline__ void decode(typename P::Act* out, float* partial_sums,
                                       float2* partial_stats, uint32_t* item_start_out,
                                       const Inputs<typename P::Act>& in, uint32_t num_seqs,
                                       uint32_t split_tokens_max, uint32_t partial_splits_max) {
    Sequences sequences(dynamic_shared() + P::SHARED_BYTES, num_seqs);
    if (threadIdx.x < 32) {
        count_items(sequences, in, num_seqs, split_tokens_max, partial_splits_max);
    }
    __syncthreads();
    const uint32_t* item_start = sequences.item_start;
    if (blockIdx.x == 0) {
        for (uint32_t s = threadIdx.x; s <= num_seqs; s += P::THREADS) {
            item_start_out[s] = item_start[s];
        }
    }
    uint32_t group = in.group();
    uint32_t row_tiles = (split_tokens_max * group + P::ROWS - 1) / P::ROWS;
    uint32_t units_per_item = row_tiles * in.kv_heads;
    uint32_t num_units = item_start[num_seqs] * units_per_item;
    Warp<P> warp;
    for (uint32_t unit = blockIdx.x; unit < num_units; unit += gridDim.x) {
        uint32_t item = unit / units_per_item;
        uint32_t row_tile = unit % units_per_item / in.kv_heads;
        // The last sequence that starts at or before the item: those without items start with the
        // next.
        uint32_t seq = 0, seq_end = num_seqs;
        while (seq + 1 < seq_end) {
            uint32_t middle = (seq + seq_end) / 2;
            bool at_or_before = item_start[middle] <= item;
            seq = at_or_before ? middle : seq;
            seq_end = at_or_before ? seq_end : middle;
        }
        uint32_t first_token = sequences.query_start[seq];
        uint32_t num_tokens = sequences.query_start[seq + 1] - first_token;
        uint32_t context_len = sequences.context_len[seq];
        uint32_t first_row = row_tile * P::ROWS;
        if (first_row >= num_tokens * group) continue;
        uint32_t num_rows = min(P::ROWS, num_tokens * group - first_row);
        Rows rows = {seq,   unit % in.kv_heads, first_row,                num_rows,
                     group, first_token,        context_len - num_tokens};
        uint32_t splits = (context_len + SPLIT_KEYS - 1) / SPLIT_KEYS;
        bool whole = item_start[seq + 1] - item_start[seq] < splits || splits == 1;
        uint32_t split = whole ? 0 : item - item_start[seq];
        State<P::OUT_TILES> total;
        warp.attend(in, rows, split, whole ? splits : split + 1, total);
        if (whole) {
            warp.store_out(out, rows, in.heads, total);
        } else {
            uint64_t first_slot = uint64_t(item) * split_tokens_max * in.heads;
            warp.store_partial(partial_sums, partial_stats, first_slot, rows, in.heads, total);
        }
    }
}

// Of every sequence whose splits are items of their own, the states of a token and head merged in
// order of splits, a warp for each sequence and head. Where a context has one split, `decode` wrote
// `out`.
template <typename T, uint32_t HEAD_DIM>
__device__ __forceinline__ void combine(T* out, const float* partial_sums,
                                        const float2* partial_stats, const uint32_t* item_start,
                                        const uint32_t* query_start, const uint32_t* context_len,
                                        uint32_t heads, uint32_t num_seqs,
                                        uint32_t split_tokens_max) {
    constexpr uint32_t DIMS = HEAD_DIM / 32;
    uint32_t lane = threadIdx.x % 32;
    uint32_t unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    uint32_t seq = unit / heads, head = unit % heads;
    if (seq >= num_seqs) return;
    // Each number is read by one lane.
    const uint32_t* from = lane < 2 ? query_start + seq + lane : item_start + seq + lane % 2;
    if (lane == 4) from = context_len + seq;
    uint32_t number = lane < 5 ? *from : 0;
    uint32_t first_token = __shfl_sync(0xFFFFFFFF, number, 0);
    uint32_t num_tokens = __shfl_sync(0xFFFFFFFF, number, 1) - first_token;
    uint32_t first_item = __shfl_sync(0xFFFFFFFF, number, 2);
    uint32_t num_items = __shfl_sync(0xFFFFFFFF, number, 3) - first_item;
    uint32_t splits = splits_of(num_tokens, __shfl_sync(0xFFFFFFFF, number, 4), split_tokens_max);
    if (splits <= 1 || num_items != splits) return;
    for (uint32_t token = 0; token < num_tokens; token++) {
        float max = -INFINITY, weight_sum = 0.0f, sums[DIMS];
#pragma unroll
        for (uint32_t d = 0; d < DIMS; d++) sums[d] = 0.0f;
        for (uint32_t first = 0; first < splits; first += 32) {
            uint64_t first_slot =
                (uint64_t(first_item + first) * split_tokens_max + token) * heads + head;
            uint64_t slots_per_split = uint64_t(split_tokens_max) * heads;
            uint32_t num_splits = min(splits - first, 32u);
            float2 of_lane = make_float2(0.0f, 0.0f);
            if (lane < num_splits) of_lane = partial_stats[first_slot + lane * slots_per_split];
#pragma unroll 4
            for (uint32_t split = 0; split < num_splits; split++) {
                uint64_t slot = first_slot + split * slots_per_split;
                Merge by = merge_weights(max, __shfl_sync(0xFFFFFFFF, of_lane.x, split));
                max = by.max;
                float part = __shfl_sync(0xFFFFFFFF, of_lane.y, split);
                weight_sum = merged(weight_sum, part, by);
#pragma unroll
                for (uint32_t d = 0; d < DIMS; d++) {
                    sums[d] = merged(sums[d], partial_sums[slot * HEAD_DIM + d * 32 + lane], by);
                }
            }
        }
        float inverse = __frcp_rn(weight_sum);
        T* to = out + (uint64_t(first_token + token) * heads + head) * HEAD_DIM + lane;
#pragma unroll
        for (uint32_t d = 0; d < DIMS; d++) {
            to[d * 32] = Number<T>::from_f32(normalized(sums[d], inverse));
        }
    }
}

// Grid: any. partial_sums [partial_splits_max, split_tokens_max, heads, head_dim], partial_stats
// the same without head_dim (largest score, sum of weights), item_start [num_seqs + 1].
#define DECODE(name, Act, head_dim)                                                                \
    extern "C" __global__ void __launch_bounds__(128, head_dim > 64 ? 3 : 4) name(                 \
        Act* out, float* partial_sums, float2* partial_stats, uint32_t* item_start, const Act* q,  \
        const Act* k_cache, const Act* v_cache, const uint32_t* query_start,                       \
        const uint32_t* context_len, const uint32_t* block_tables, float scale, uint32_t heads,    \
        uint32_t kv_heads, uint32_t block_shift, uint32_t block_table_stride, uint32_t num_seqs,   \
        uint32_t split_tokens_max, uint32_t partial_splits_max) {                                  \
        Inputs<Act> in = {q, k_cache, v_cache, query_start, context_len, block_tables,             \
                          scale, heads, kv_heads, block_shift, block_table_stride};                \
        decode<Plan<Act, head_dim, 1, 4, 4>>(out, partial_sums, partial_stats, item_start, in,     \
                                             num_seqs, split_tokens_max, partial_splits_max);      \
    }

// Grid: [num_seqs * heads / 4, rounded up].
#define COMBINE(name, Act, head_dim)                                                               \
    extern "C" __global__ void __launch_bounds__(128) name(                                        \
        Act* out, const float* partial_sums, const float2* partial_stats,                          \
        const uint32_t* item_start, const uint32_t* query_start, const uint32_t* context_len,      \
        uint32_t heads, uint32_t num_seqs, uint32_t split_tokens_max) {                            \
        combine<Act, head_dim>(out, partial_sums, partial_stats, item_start, query_start,          \
                               context_len, heads, num_seqs, split_tokens_max);                    \
    }

DECODE(attention_decode_32_bf16, __nv_bfloat16, 32)
DECODE(attention_decode_64_bf16, __nv_bfloat16, 64)
DECODE(attention_decode_128_bf16, __nv_bfloat16, 128)
DECODE(attention_decode_256_bf16, __nv_bfloat16, 256)
DECODE(attention_decode_32_f16, __half, 32)
DECODE(attention_decode_64_f16, __half, 64)
DECODE(attention_decode_128_f16, __half, 128)
DECODE(attention_decode_256_f16, __half, 256)

COMBINE(attention_combine_32_bf16, __nv_bfloat16, 32)
COMBINE(attention_combine_64_bf16, __nv_bfloat16, 64)
COMBINE(attention_combine_128_bf16, __nv_bfloat16, 128)
COMBINE(attention_combine_256_bf16, __nv_bfloat16, 256)
COMBINE(attention_combine_32_f16, __half, 32)
COMBINE(attention_combine_64_f16, __half, 64)
COMBINE(attention_combine_128_f16, __half, 128)
COMBINE(attention_combine_256_f16, __half, 256)
