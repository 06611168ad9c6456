// One slice of a row: the request's edits, the highest value of each chunk, the sum of weights.
#pragma once

#include "row.cuh"

// Where a scan of one row writes and what it reads beside the values.
struct Scan {
    float* edited;
    const SampleRow* row;
    const uint32_t* lists;
    const uint32_t* token_ids;
    bool has_bans;
};

template <int THREADS>
__device__ __forceinline__ void clear(uint32_t (&marks)[SLICE]) {
    for (int i = threadIdx.x; i < SLICE; i += THREADS) {
        marks[i] = 0;
    }
    __syncthreads();
}

// A token without a finite logit stays out; what overflows becomes the largest number instead.
__device__ __forceinline__ float changed(float before, float after) {
    const float largest = __uint_as_float(0x7f7fffffu);
    if (before == minus_infinity() || after != after) {
        return before;
    }
    return __fadd_rn(after < -largest ? -largest : after > largest ? largest : after, 0.0f);
}

// Calls f(value, mark) for each value that this thread holds.
template <int PER_WARP, int WARPS, typename F>
__device__ __forceinline__ void each_mark(float (&x)[PER_WARP][4], const uint32_t (&marks)[SLICE],
                                          F f) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < PER_WARP; ++k) {
        const int at = (warp + WARPS * k) * CHUNK + lane * 4;
        const uint4 m = *reinterpret_cast<const uint4*>(&marks[at]);
        f(x[k][0], m.x);
        f(x[k][1], m.y);
        f(x[k][2], m.z);
        f(x[k][3], m.w);
    }
    __syncthreads();
}

__device__ __forceinline__ float penalized(float logit, uint32_t mark, const SampleRow& row) {
    const float repeated = row.repetition_penalty;
    const float times = static_cast<float>(mark >> 1);
    const float presence = mark >> 1 ? row.presence_penalty : 0.0f;
    const float x = logit > 0.0f ? __fdiv_rn(logit, repeated) : __fmul_rn(logit, repeated);
    return __fsub_rn(__fsub_rn(x, __fmul_rn(row.frequency_penalty, times)), presence);
}

// What the mask does not have is -inf.
template <int PER_WARP, int WARPS>
__device__ __forceinline__ void apply_mask(float (&x)[PER_WARP][4], const SampleRow& row,
                                           const uint32_t* lists, uint32_t first) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < PER_WARP; ++k) {
        // Four ids from a multiple of 4 on, so their bits are in one word.
        const uint32_t id = first + (warp + WARPS * k) * CHUNK + lane * 4;
        const uint32_t word = id / 32 < row.mask_len ? lists[row.mask_start + id / 32] : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            x[k][j] = word >> (id % 32 + j) & 1 ? x[k][j] : minus_infinity();
        }
    }
}

// Mask, bias, penalties, bans, in this order, on the values of the slice that begins at `first`.
template <int THREADS, int PER_WARP>
__device__ __forceinline__ void edit(float (&x)[PER_WARP][4], const Scan& scan, uint32_t first,
                                     uint32_t (&marks)[SLICE]) {
    constexpr int WARPS = THREADS / 32;
    const SampleRow& row = *scan.row;
    if (row.mask_len > 0) {
        apply_mask<PER_WARP, WARPS>(x, row, scan.lists, first);
    }
    if (row.bias_len > 0) {
        clear<THREADS>(marks);
        const uint32_t* ids = scan.lists + row.bias_start;
        for (uint32_t i = threadIdx.x; i < row.bias_len; i += THREADS) {
            if (ids[i] - first < SLICE) {
                marks[ids[i] - first] = ids[row.bias_len + i];
            }
        }
        __syncthreads();
        each_mark<PER_WARP, WARPS>(x, marks, [](float& x, uint32_t mark) {
            x = changed(x, __fadd_rn(x, __uint_as_float(mark)));
        });
    }
    if (row.history_len > 0 || row.pending != NONE) {
        clear<THREADS>(marks);
        // Lowest bit: seen at all; above it: how often in the output.
        auto count = [&](uint32_t id, uint32_t place) {
            if (id - first < SLICE) {
                atomicOr(&marks[id - first], 1u);
                if (place >= row.prompt_len) {
                    atomicAdd(&marks[id - first], 2u);
                }
            }
        };
        const uint32_t* history = scan.lists + row.history_start;
        for (uint32_t i = threadIdx.x; i < row.history_len; i += THREADS) {
            count(history[i], i);
        }
        if (threadIdx.x == 0 && row.pending != NONE) {
            count(scan.token_ids[row.pending], row.history_len);
        }
        __syncthreads();
        each_mark<PER_WARP, WARPS>(x, marks, [&](float& x, uint32_t mark) {
            if (mark != 0) {
                x = changed(x, penalized(x, mark, row));
            }
        });
    }
    if (scan.has_bans) {
        clear<THREADS>(marks);
        for (uint32_t i = threadIdx.x; i < row.bans_len; i += THREADS) {
            const uint32_t id = scan.lists[row.bans_start + i];
            if (id - first < SLICE) {
                marks[id - first] = 1;
            }
        }
        __syncthreads();
        each_mark<PER_WARP, WARPS>(x, marks, [](float& x, uint32_t mark) {
            x = mark != 0 ? minus_infinity() : x;
        });
    }
}

// The highest value of each chunk to `chunk_max`, the slice's sum of weights, relative to its own
// highest value, to `sum`.
template <int THREADS, int PER_WARP>
__device__ __forceinline__ void summarize(const float (&x)[PER_WARP][4], float* chunk_max, u64* sum,
                                          float inverse_temperature, float (&maxima)[SLICE_CHUNKS],
                                          u64 (&partial)[THREADS / 32]) {
    constexpr int WARPS = THREADS / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < PER_WARP; ++k) {
        float max = fmaxf(fmaxf(x[k][0], x[k][1]), fmaxf(x[k][2], x[k][3]));
        for (int step = 16; step > 0; step /= 2) {
            max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
        }
        if (lane == 0) {
            maxima[warp + WARPS * k] = max;
            chunk_max[warp + WARPS * k] = max;
        }
    }
    __syncthreads();
    float max = maxima[lane];
    for (int step = 16; step > 0; step /= 2) {
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
    }
    u64 weights = 0;
#pragma unroll
    for (int k = 0; k < PER_WARP; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            weights += fixed_of(weight_of(x[k][j], max, inverse_temperature));
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        weights += __shfl_xor_sync(ALL_LANES, weights, step);
    }
    if (lane == 0) {
        partial[warp] = weights;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u64 total = 0;
        for (int w = 0; w < WARPS; ++w) {
            total += partial[w];
        }
        *sum = total;
    }
    __syncthreads();
}

// The slice's values, edited when the row has edits: into `edited` and into the summary.
template <int THREADS, int PER_WARP>
__device__ __forceinline__ void edit_and_summarize(float (&x)[PER_WARP][4], const Scan& scan,
                                                   uint32_t slice, float* chunk_max, u64* sum,
                                                   uint32_t (&marks)[SLICE],
                                                   float (&maxima)[SLICE_CHUNKS],
                                                   u64 (&partial)[THREADS / 32]) {
    constexpr int WARPS = THREADS / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (scan.edited != nullptr) {
        edit<THREADS, PER_WARP>(x, scan, slice * SLICE, marks);
#pragma unroll
        for (int k = 0; k < PER_WARP; ++k) {
            const uint32_t at = slice * SLICE + (warp + WARPS * k) * CHUNK + lane * 4;
            *reinterpret_cast<float4*>(scan.edited + at) =
                make_float4(x[k][0], x[k][1], x[k][2], x[k][3]);
        }
    }
    summarize<THREADS, PER_WARP>(x, chunk_max, sum, __fdiv_rn(1.0f, scan.row->temperature), maxima,
                                 partial);
}

template <int THREADS, int PER_WARP>
__device__ __forceinline__ void load_slice(float (&x)[PER_WARP][4], const Values& values,
                                           uint32_t slice) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < PER_WARP; ++k) {
        load4(x[k], values, slice * SLICE + (warp + THREADS / 32 * k) * CHUNK + lane * 4);
    }
}
