// Logits -> token ids and log-probabilities, without the host.
//
// Two kernels. `sample_scan` passes over the whole row with many blocks: it applies the request's
// edits, and notes the highest value of each chunk of 128 and the sum of weights of each slice of
// 4096. `sample_choose` has one block per row and looks at few chunks: those that can hold what it
// is after, by their highest values.
//
// Each row is treated alone, and weights are summed as whole numbers (row.cuh) or slice by slice in
// order, so that a token depends on its row and its `SampleRow` alone, to the bit. A greedy choice
// is exact; a draw differs from that of the CPU only where its random number lies within rounding
// of the border between two tokens.

#include "scan.cuh"
#include "select.cuh"

constexpr int SCAN_THREADS = 256;

__device__ __forceinline__ uint32_t num_slices_of(uint32_t vocab) {
    return (vocab + SLICE - 1) / SLICE;
}

// All that `sample_choose` knows of its row.
struct Choice {
    const SampleRow& row;
    Values raw, edited;
    uint32_t num_chunks, num_slices;
    // Of the edited and of the raw values; of chunks and of slices.
    float *chunk_max, *raw_chunk_max;
    u64 *sums, *raw_sums;
};

// grid [num_slices, num_rows]
extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    sample_scan(float* edited, float* chunk_max, u64* slice_sums, const float* logits,
                const SampleRow* rows, const uint32_t* lists, const uint32_t* token_ids,
                uint32_t vocab, uint32_t logits_stride) {
    constexpr int PER_WARP = SLICE_CHUNKS / (SCAN_THREADS / 32);
    __shared__ __align__(16) uint32_t marks[SLICE];
    __shared__ float maxima[SLICE_CHUNKS];
    __shared__ u64 partial[SCAN_THREADS / 32];
    const uint32_t slice = blockIdx.x, r = blockIdx.y, num_slices = gridDim.x;
    const SampleRow& row = rows[r];
    if (row.task == 0) {
        return;
    }
    const Values raw{logits + static_cast<u64>(r) * logits_stride, vocab, logits_stride % 4 == 0};
    // By row: edited, then raw.
    float* row_max = chunk_max + static_cast<u64>(r) * 2 * num_slices * SLICE_CHUNKS;
    u64* row_sums = slice_sums + static_cast<u64>(r) * 2 * num_slices;
    float x[PER_WARP][4];
    load_slice<SCAN_THREADS, PER_WARP>(x, raw, slice);
    if (row.top != NONE) {
        summarize<SCAN_THREADS, PER_WARP>(x, row_max + (num_slices + slice) * SLICE_CHUNKS,
                                          row_sums + num_slices + slice, 1.0f, maxima, partial);
    }
    if (row.task == TASK_SCORE) {
        return;
    }
    float* edited_row = row.has_edits ? edited + static_cast<u64>(r) * num_slices * SLICE : nullptr;
    const Scan scan{edited_row, &row, lists, token_ids, row.bans_len > 0};
    edit_and_summarize<SCAN_THREADS, PER_WARP>(x, scan, slice, row_max + slice * SLICE_CHUNKS,
                                               row_sums + slice, marks, maxima, partial);
}

// The highest value and the lowest id that has it; -inf when there is none. After `load_maxima`.
__device__ __forceinline__ float best_of(const Values& values, uint32_t num_chunks, uint32_t& id,
                                         Shared& shared) {
    uint32_t key = 0;
    for (uint32_t c = threadIdx.x; c < num_chunks; c += THREADS) {
        key = max(key, shared.maxima[c]);
    }
    key = reduce(key, [](uint32_t a, uint32_t b) { return max(a, b); }, shared);
    uint32_t chunk = NONE;
    for (uint32_t c = threadIdx.x; c < num_chunks; c += THREADS) {
        chunk = shared.maxima[c] == key ? min(chunk, c) : chunk;
    }
    chunk = reduce(chunk, [](uint32_t a, uint32_t b) { return min(a, b); }, shared);
    const uint32_t first = chunk * CHUNK + threadIdx.x % 32 * 4;
    float x[4];
    load4(x, values, first);
    id = NONE;
#pragma unroll
    for (int j = 3; j >= 0; --j) {
        id = key_of(x[j]) == key ? first + j : id;
    }
    for (int step = 16; step > 0; step /= 2) {
        id = min(id, __shfl_xor_sync(ALL_LANES, id, step));
    }
    return value_of(key);
}

// The sum of weights of each slice relative to `softmax.max`, into `shared.slices`; returns their
// sum, slices in order, in units of `fixed_of`. After `load_maxima`.
__device__ __forceinline__ double sum_slices(const u64* sums, uint32_t num_slices,
                                             const Softmax& softmax, Shared& shared) {
    __syncthreads();
    if (threadIdx.x < num_slices) {
        uint32_t key = 0;
        for (int c = 0; c < SLICE_CHUNKS; ++c) {
            key = max(key, shared.maxima[threadIdx.x * SLICE_CHUNKS + c]);
        }
        const float scale = weight_of(value_of(key), softmax.max, softmax.inverse_temperature);
        shared.slices[threadIdx.x] =
            static_cast<double>(sums[threadIdx.x]) * static_cast<double>(scale);
    }
    __syncthreads();
    double total = 0.0;
    for (uint32_t s = 0; s < num_slices; ++s) {
        total += shared.slices[s];
    }
    return total;
}

// 53 random bits of (seed, position): Philox 4x32 with ten rounds, Salmon et al., 2011.
__device__ __forceinline__ u64 random_bits(u64 seed, u64 position) {
    uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
    uint32_t c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll 1
    for (int round = 0; round < 10; ++round) {
        const u64 product0 = static_cast<u64>(0xD2511F53u) * c0;
        const u64 product1 = static_cast<u64>(0xCD9E8D57u) * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (static_cast<u64>(c0) << 32 | c1) >> 11;
}

// floor(uniform * total), with uniform = bits / 2^53
__device__ __forceinline__ u64 target_of(u64 bits, u64 total) {
    return __umul64hi(bits << 11, total);
}

// A draw from the whole row: the slice by the slices' sums, then in it.
__device__ __forceinline__ uint32_t draw_from_all(const Choice& c, const Softmax& softmax, u64 bits,
                                                  Shared& shared) {
    const double total = sum_slices(c.sums, c.num_slices, softmax, shared);
    const double target = static_cast<double>(bits) * 0x1p-53 * total;
    double reached = 0.0;
    uint32_t slice = 0;
    double rest = 0.0;
    for (uint32_t s = 0; s < c.num_slices; ++s) {
        const double sum = shared.slices[s];
        if (sum > 0.0 && reached <= target) {
            slice = s;
            rest = (target - reached) / sum;
        }
        reached += sum;
    }
    const uint32_t first = slice * SLICE_CHUNKS;
    const uint32_t end = first + SLICE_CHUNKS;
    const uint32_t num_listed = list_chunks(KEY_OF_MINUS_INFINITY + 1, first, end, shared);
    const u64 cut = floor_of(KEY_OF_MINUS_INFINITY + 1);
    uint32_t key = 0;
    for (uint32_t i = first; i < end; ++i) {
        key = max(key, shared.maxima[i]);
    }
    const Softmax in_slice{value_of(key), softmax.inverse_temperature};
    const u64 sum = sum_chunks(c.edited, num_listed, cut, in_slice, shared);
    const u64 wanted = __double2ull_rd(rest * static_cast<double>(sum));
    return token_at(c.edited, num_listed, cut, in_slice, min(wanted, sum - 1), shared);
}

// The lowest logit that min_p keeps.
__device__ __forceinline__ float min_p_floor(float max, const SampleRow& row) {
    const float floor = __double2float_rn(static_cast<double>(max) + row.min_p_depth);
    return __fadd_rn(fminf(floor, max), 0.0f);
}

// A logit below which no token can be in the nucleus: tokens of at most (1 - top_p) / n of the mass
// are worth at most 1 - top_p together. With room for roundings.
__device__ __forceinline__ float top_p_floor(float max, double total, const Choice& c) {
    const double share = (1.0 - static_cast<double>(c.row.top_p)) / c.raw.vocab * 0.25;
    const float depth = __logf(static_cast<float>(total / FIXED_ONE * share));
    return __fadd_rn(fminf(__fadd_rn(max, __fmul_rn(c.row.temperature, depth)), max), 0.0f);
}

// min_p, top_k, top_p, then the draw, ids in rising order. `max` is the highest logit and finite.
__device__ __forceinline__ uint32_t draw(const Choice& c, float max, Shared& shared) {
    const SampleRow& row = c.row;
    const Softmax softmax{max, __fdiv_rn(1.0f, row.temperature)};
    const u64 bits = random_bits(row.seed, row.position);
    const bool has_top_k = row.top_k > 0 && row.top_k < c.raw.vocab;
    const bool has_top_p = row.top_p < 1.0f;
    const uint32_t lowest = KEY_OF_MINUS_INFINITY + 1;
    uint32_t bar = ::max(key_of(min_p_floor(max, row)), lowest);
    if (!has_top_k && !has_top_p && bar == lowest) {
        return draw_from_all(c, softmax, bits, shared);
    }
    const u64 top = place_of(key_of(max), 0);
    u64 cut = floor_of(bar);
    u64 mass = 0;
    if (has_top_k) {
        if (row.top_k <= c.num_chunks) {
            // That many chunks have a value of at least this.
            auto each = [&](auto f) {
                for (uint32_t i = threadIdx.x; i < c.num_chunks; i += THREADS) {
                    f(place_of(shared.maxima[i], i), 1u);
                }
            };
            const u64 kth = select<uint32_t>(each, cut, top, row.top_k, shared);
            bar = ::max(bar, static_cast<uint32_t>(kth >> ID_BITS));
        }
        const uint32_t num_listed = list_chunks(bar, 0, c.num_chunks, shared);
        auto each = [&](auto f) {
            each_listed(c.edited, num_listed, shared,
                        [&](float x, uint32_t id) { f(place_of(key_of(x), id), 1u); });
        };
        cut = select<uint32_t>(each, floor_of(bar), top, row.top_k, shared);
    } else if (has_top_p && bar == lowest) {
        const double total = sum_slices(c.sums, c.num_slices, softmax, shared);
        bar = ::max(key_of(top_p_floor(max, total, c)), lowest);
        cut = floor_of(bar);
        mass = __double2ull_ru(static_cast<double>(row.top_p) * total);
    }
    bar = static_cast<uint32_t>(cut >> ID_BITS);
    uint32_t num_listed = list_chunks(bar, 0, c.num_chunks, shared);
    u64 total = sum_chunks(c.edited, num_listed, cut, softmax, shared);
    if (has_top_p) {
        if (mass == 0) {
            mass = __double2ull_ru(static_cast<double>(row.top_p) * static_cast<double>(total));
        }
        auto each = [&](auto f) {
            each_listed(c.edited, num_listed, shared,
                        [&](float x, uint32_t id) { f(place_of(key_of(x), id), softmax(x)); });
        };
        cut = select<u64>(each, cut, top, ::max(mass, 1ull), shared);
        num_listed = list_chunks(static_cast<uint32_t>(cut >> ID_BITS), 0, c.num_chunks, shared);
        total = sum_chunks(c.edited, num_listed, cut, softmax, shared);
    }
    return token_at(c.edited, num_listed, cut, softmax, target_of(bits, total), shared);
}

// Bans that leave nothing are void: the same edits without them.
__device__ __forceinline__ void scan_without_bans(const Choice& c, const uint32_t* lists,
                                                  const uint32_t* token_ids, Shared& shared) {
    static_assert(sizeof(shared.chunk_sums) == SLICE * sizeof(uint32_t), "room for the marks");
    auto& marks = *reinterpret_cast<uint32_t(*)[SLICE]>(shared.chunk_sums);
    __shared__ float maxima[SLICE_CHUNKS];
    const Scan scan{const_cast<float*>(c.edited.row), &c.row, lists, token_ids, false};
    for (uint32_t slice = 0; slice < c.num_slices; ++slice) {
        float x[1][4];
        load_slice<THREADS, 1>(x, c.raw, slice);
        edit_and_summarize<THREADS, 1>(x, scan, slice, c.chunk_max + slice * SLICE_CHUNKS,
                                       c.sums + slice, marks, maxima, shared.by_warp);
    }
    load_maxima(c.chunk_max, c.num_chunks, shared);
}

// The `num_top` best tokens (at least one) of the raw logits, whose highest is `max`. After
// `load_maxima` of them.
template <typename Logprob>
__device__ __forceinline__ void find_top(SampleResult& result, const Choice& c, float max,
                                         uint32_t num_top, Logprob logprob, Shared& shared) {
    const u64 top = place_of(key_of(max), 0);
    uint32_t bar = KEY_OF_MINUS_INFINITY + 1;
    if (num_top <= c.num_chunks) {
        // That many chunks have a value of at least this.
        auto each = [&](auto f) {
            for (uint32_t i = threadIdx.x; i < c.num_chunks; i += THREADS) {
                f(place_of(shared.maxima[i], i), 1u);
            }
        };
        const u64 last = select<uint32_t>(each, floor_of(bar), top, num_top, shared);
        bar = static_cast<uint32_t>(last >> ID_BITS);
    }
    const uint32_t num_listed = list_chunks(bar, 0, c.num_chunks, shared);
    auto each = [&](auto f) {
        each_listed(c.raw, num_listed, shared,
                    [&](float x, uint32_t id) { f(place_of(key_of(x), id), 1u); });
    };
    const u64 cut = select<uint32_t>(each, floor_of(bar), top, num_top, shared);
    // At most `num_top` tokens, in any order; then each finds how many are before it.
    __syncthreads();
    uint32_t* num_found = reinterpret_cast<uint32_t*>(shared.found);
    if (threadIdx.x == 0) {
        *num_found = 0;
    }
    __syncthreads();
    each([&](u64 place, uint32_t) {
        if (place >= cut) {
            shared.chunk_sums[atomicAdd(num_found, 1u)] = place;
        }
    });
    __syncthreads();
    if (threadIdx.x < *num_found) {
        const u64 own = shared.chunk_sums[threadIdx.x];
        uint32_t before = 0;
        for (uint32_t i = 0; i < *num_found; ++i) {
            before += shared.chunk_sums[i] > own ? 1 : 0;
        }
        const uint32_t id = (1u << ID_BITS) - 1 - static_cast<uint32_t>(own & ((1u << ID_BITS) - 1));
        result.top_ids[before] = id;
        result.top_logprobs[before] = logprob(value_of(static_cast<uint32_t>(own >> ID_BITS)));
    }
    if (threadIdx.x == 0) {
        result.num_top = *num_found;
    }
}

// Log-probability and rank of `token`, and the `row.top` best tokens, by the raw logits. False when
// none of them is finite.
__device__ __forceinline__ bool score(SampleResult& result, const Choice& c, uint32_t token,
                                      Shared& shared) {
    load_maxima(c.raw_chunk_max, c.num_chunks, shared);
    uint32_t best;
    const float max = best_of(c.raw, c.num_chunks, best, shared);
    if (max == minus_infinity()) {
        return false;
    }
    const double sum = sum_slices(c.raw_sums, c.num_slices, Softmax{max, 1.0f}, shared);
    const double log_sum = static_cast<double>(max) + log(sum * (1.0 / FIXED_ONE));
    auto logprob = [&](float x) { return __double2float_rn(static_cast<double>(x) - log_sum); };

    const bool is_known = token < c.raw.vocab;
    const float logit = is_known ? clean(c.raw.row[token]) : minus_infinity();
    const u64 place = place_of(key_of(logit), is_known ? token : c.raw.vocab);
    uint32_t num_listed = list_chunks(key_of(logit), 0, c.num_chunks, shared);
    u64 better = 0;
    each_listed(c.raw, num_listed, shared, [&](float x, uint32_t id) {
        better += place_of(key_of(x), id) > place ? 1 : 0;
    });
    better = sum_block(better, shared);
    if (threadIdx.x == 0) {
        result.logprob = logprob(logit);
        result.rank = 1 + static_cast<uint32_t>(better);
    }
    const uint32_t num_top = min(c.row.top, static_cast<uint32_t>(TOP_MAX));
    if (num_top > 0) {
        find_top(result, c, max, num_top, logprob, shared);
    }
    return true;
}

// grid [num_rows]
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_choose(uint32_t* sampled, SampleResult* results, float* edited, float* chunk_max,
                  u64* slice_sums, const float* logits, const SampleRow* rows,
                  const uint32_t* lists, const uint32_t* token_ids, uint32_t vocab,
                  uint32_t logits_stride) {
    __shared__ Shared shared;
    const uint32_t r = blockIdx.x;
    const SampleRow& row = rows[r];
    if (row.task == 0) {
        return;
    }
    const uint32_t num_slices = num_slices_of(vocab);
    const Values raw{logits + static_cast<u64>(r) * logits_stride, vocab, logits_stride % 4 == 0};
    Values values = raw;
    if (row.has_edits) {
        values.row = edited + static_cast<u64>(r) * num_slices * SLICE;
        values.aligned = true;
    }
    float* row_max = chunk_max + static_cast<u64>(r) * 2 * num_slices * SLICE_CHUNKS;
    u64* row_sums = slice_sums + static_cast<u64>(r) * 2 * num_slices;
    const Choice c{row,
                   raw,
                   values,
                   num_slices * SLICE_CHUNKS,
                   num_slices,
                   row_max,
                   row_max + num_slices * SLICE_CHUNKS,
                   row_sums,
                   row_sums + num_slices};
    SampleResult& result = results[r];
    uint32_t token = row.target;
    bool is_good = true;
    if (row.task != TASK_SCORE) {
        load_maxima(c.chunk_max, c.num_chunks, shared);
        float max = best_of(c.edited, c.num_chunks, token, shared);
        if (max == minus_infinity() && row.has_edits && row.bans_len > 0) {
            scan_without_bans(c, lists, token_ids, shared);
            max = best_of(c.edited, c.num_chunks, token, shared);
        }
        is_good = max != minus_infinity();
        if (is_good && row.task == TASK_DRAW) {
            token = draw(c, max, shared);
        }
    }
    if (threadIdx.x == 0) {
        result.logprob = 0.0f;
        result.rank = 0;
        result.num_top = 0;
    }
    if (is_good && row.top != NONE) {
        is_good = score(result, c, token, shared);
    }
    if (threadIdx.x == 0) {
        result.token = is_good ? token : 0;
        result.failed = is_good ? 0 : 1;
        sampled[r] = is_good ? token : 0;
    }
}

// token_ids[i] = sampled[from[i]] unless from[i] is NONE; grid [ceil(num_tokens / 256)]
extern "C" __global__ void __launch_bounds__(256)
    feed_tokens(uint32_t* token_ids, const uint32_t* sampled, const uint32_t* from,
                uint32_t num_tokens) {
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i < num_tokens && from[i] != NONE) {
        token_ids[i] = sampled[from[i]];
    }
}
