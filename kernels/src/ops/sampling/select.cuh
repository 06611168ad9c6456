// Finding tokens of one row without sorting it. All sums are of whole numbers, so that neither the
// order of threads nor that of atomics shows in a result.
#pragma once

#include "row.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = 32;
static_assert(THREADS == 32 * WARPS, "a warp's lanes stand for the warps below");

constexpr int DIGIT_BITS = 10;
constexpr int DIGITS = 1 << DIGIT_BITS;
static_assert(DIGITS == THREADS, "a thread has a digit below");

// Shared memory of a block, which has one row.
struct alignas(16) Shared {
    // By chunk: the key of its highest value.
    uint32_t maxima[CHUNKS_MAX];
    // By place in `listed`: the sum of the weights that a cut keeps.
    u64 chunk_sums[CHUNKS_MAX];
    // Chunks that a pass looks at, in rising order.
    uint16_t listed[CHUNKS_MAX];
    // By digit: how many tokens, or how much weight.
    u64 histogram[DIGITS];
    u64 by_warp[WARPS];
    double slices[SLICES_MAX];
    u64 found[3];
};

template <typename T, typename Op>
__device__ __forceinline__ T reduce(T x, Op op, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int step = 16; step > 0; step /= 2) {
        x = op(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    __syncthreads();
    if (lane == 0) {
        shared.by_warp[warp] = x;
    }
    __syncthreads();
    x = static_cast<T>(shared.by_warp[lane]);
    for (int step = 16; step > 0; step /= 2) {
        x = op(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

__device__ __forceinline__ u64 sum_block(u64 x, Shared& shared) {
    return reduce(x, [](u64 a, u64 b) { return a + b; }, shared);
}

// The sum over this thread and all before it; `total` over all.
__device__ __forceinline__ u64 scan_block(u64 x, u64& total, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto scan_warp = [lane](u64 x) {
        for (int step = 1; step < 32; step *= 2) {
            const u64 before = __shfl_up_sync(ALL_LANES, x, step);
            x += lane >= step ? before : 0;
        }
        return x;
    };
    x = scan_warp(x);
    __syncthreads();
    if (lane == 31) {
        shared.by_warp[warp] = x;
    }
    __syncthreads();
    const u64 sums = scan_warp(shared.by_warp[lane]);
    total = __shfl_sync(ALL_LANES, sums, 31);
    const u64 before = __shfl_sync(ALL_LANES, sums, warp == 0 ? 0 : warp - 1);
    return x + (warp == 0 ? 0 : before);
}

__device__ __forceinline__ void load_maxima(const float* chunk_max, uint32_t num_chunks,
                                            Shared& shared) {
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < num_chunks; c += THREADS) {
        shared.maxima[c] = key_of(chunk_max[c]);
    }
    __syncthreads();
}

// Lists the chunks from `first` to `end` whose highest key is at least `bar`; returns how many.
__device__ __forceinline__ uint32_t list_chunks(uint32_t bar, uint32_t first, uint32_t end,
                                                Shared& shared) {
    uint32_t num_listed = 0;
    for (uint32_t start = first; start < end; start += THREADS) {
        const uint32_t c = start + threadIdx.x;
        const bool is_in = c < end && shared.maxima[c] >= bar;
        u64 total;
        const u64 place = scan_block(is_in ? 1 : 0, total, shared);
        if (is_in) {
            shared.listed[num_listed + static_cast<uint32_t>(place) - 1] = static_cast<uint16_t>(c);
        }
        num_listed += static_cast<uint32_t>(total);
    }
    __syncthreads();
    return num_listed;
}

// Calls f(value, id) for the values of the listed chunks, a warp per chunk.
template <typename F>
__device__ __forceinline__ void each_listed(const Values& values, uint32_t num_listed,
                                            const Shared& shared, F f) {
    for (uint32_t i = threadIdx.x / 32; i < num_listed; i += WARPS) {
        const uint32_t id = shared.listed[i] * CHUNK + threadIdx.x % 32 * 4;
        float x[4];
        load4(x, values, id);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (id + j < values.vocab) {
                f(x[j], id + j);
            }
        }
    }
}

// The highest cut such that the amounts of the places from it on reach `need` (above 0); `floor`
// when all from `floor` on do not. `each` calls its argument with place and amount, for the same
// places on every call; no place is above `top`. Amounts are counted in the type Amount.
//
// Ten bits of the place at a time: a histogram of the amounts, the digit in which `need` is reached
// when coming from above, then the same among the places with that digit.
template <typename Amount, typename Each>
__device__ __forceinline__ u64 select(Each each, u64 floor, u64 top, u64 need, Shared& shared) {
    if (top < floor) {
        return floor;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Amount* histogram = reinterpret_cast<Amount*>(shared.histogram);
    u64 base = floor, last = top - floor, reached = 0;
    int shift = max(64 - __clzll(static_cast<long long>(last)) - DIGIT_BITS, 0);
    while (true) {
        __syncthreads();
        histogram[threadIdx.x] = 0;
        if (threadIdx.x == 0) {
            shared.found[0] = NONE;
        }
        __syncthreads();
        each([&](u64 place, Amount amount) {
            if (place >= base && place - base <= last) {
                atomicAdd(&histogram[(place - base) >> shift], amount);
            }
        });
        __syncthreads();
        // A thread has a digit; the sum from it up to the highest one.
        const u64 own = histogram[threadIdx.x];
        u64 sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const u64 above = __shfl_down_sync(ALL_LANES, sum, step);
            sum += lane + step < 32 ? above : 0;
        }
        if (lane == 0) {
            shared.by_warp[warp] = sum;
        }
        __syncthreads();
        const u64 later = lane > warp ? shared.by_warp[lane] : 0;
        u64 above = later;
        for (int step = 16; step > 0; step /= 2) {
            above += __shfl_xor_sync(ALL_LANES, above, step);
        }
        sum += reached + above;
        if (sum >= need && sum - own < need) {
            shared.found[0] = threadIdx.x;
            shared.found[1] = sum - own;
            shared.found[2] = own;
        }
        __syncthreads();
        if (shared.found[0] == NONE) {
            return floor;
        }
        base += shared.found[0] << shift;
        reached = shared.found[1];
        if (shift == 0 || reached + shared.found[2] == need) {
            return base;
        }
        last = (1ull << shift) - 1;
        shift = max(shift - DIGIT_BITS, 0);
    }
}

// How weights are made of values.
struct Softmax {
    float max, inverse_temperature;

    __device__ __forceinline__ u64 operator()(float x) const {
        return fixed_of(weight_of(x, max, inverse_temperature));
    }
};

// The weights that `cut` keeps, by listed chunk; returns their sum.
__device__ __forceinline__ u64 sum_chunks(const Values& values, uint32_t num_listed, u64 cut,
                                          const Softmax& softmax, Shared& shared) {
    u64 own = 0;
    for (uint32_t i = threadIdx.x / 32; i < num_listed; i += WARPS) {
        const uint32_t id = shared.listed[i] * CHUNK + threadIdx.x % 32 * 4;
        float x[4];
        load4(x, values, id);
        u64 sum = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum += place_of(key_of(x[j]), id + j) >= cut ? softmax(x[j]) : 0;
        }
        for (int step = 16; step > 0; step /= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, step);
        }
        if (threadIdx.x % 32 == 0) {
            shared.chunk_sums[i] = sum;
            own += sum;
        }
    }
    return sum_block(own, shared);
}

// The token at which the sum of weights, ids in rising order, exceeds `target`, which is below the
// sum of all. After `sum_chunks` of the same.
__device__ __forceinline__ uint32_t token_at(const Values& values, uint32_t num_listed, u64 cut,
                                             const Softmax& softmax, u64 target, Shared& shared) {
    static_assert(CHUNKS_MAX == 2 * THREADS, "a thread has two chunks");
    const uint32_t lane = threadIdx.x % 32, i = 2 * threadIdx.x;
    const u64 first = i < num_listed ? shared.chunk_sums[i] : 0;
    const u64 second = i + 1 < num_listed ? shared.chunk_sums[i + 1] : 0;
    u64 total;
    const u64 after = scan_block(first + second, total, shared);
    const u64 middle = after - second, before = middle - first;
    if (before <= target && target < after) {
        shared.found[0] = target < middle ? i : i + 1;
        shared.found[1] = target < middle ? before : middle;
    }
    __syncthreads();
    // Every warp finds the same token in the chunk.
    const uint32_t id = shared.listed[shared.found[0]] * CHUNK + lane * 4;
    u64 rest = target - shared.found[1];
    float x[4];
    load4(x, values, id);
    u64 weights[4], sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        weights[j] = place_of(key_of(x[j]), id + j) >= cut ? softmax(x[j]) : 0;
        sum += weights[j];
    }
    u64 upto = sum;
    for (int step = 1; step < 32; step *= 2) {
        const u64 lower = __shfl_up_sync(ALL_LANES, upto, step);
        upto += lane >= step ? lower : 0;
    }
    const bool is_here = upto - sum <= rest && rest < upto;
    rest -= upto - sum;
    int j = 0;
    while (j < 3 && rest >= weights[j]) {
        rest -= weights[j];
        ++j;
    }
    const int holder = __ffs(__ballot_sync(ALL_LANES, is_here)) - 1;
    return __shfl_sync(ALL_LANES, id + j, holder);
}
