// What the sampler's kernels know of a row: the task, the values, and the numbers made of them.
#pragma once

#include <stdint.h>

using u64 = unsigned long long;

constexpr uint32_t NONE = 0xffffffffu;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Values that a warp reads at once, 16 bytes a lane.
constexpr int CHUNK = 128;
// What one block of `sample_scan` takes.
constexpr int SLICE_CHUNKS = 32;
constexpr int SLICE = SLICE_CHUNKS * CHUNK;
constexpr int CHUNKS_MAX = 2048;
constexpr int SLICES_MAX = CHUNKS_MAX / SLICE_CHUNKS;
constexpr int TOP_MAX = 20;

constexpr uint32_t TASK_GREEDY = 1, TASK_DRAW = 2, TASK_SCORE = 3;

// As `SampleRow` in mod.rs, field by field.
struct SampleRow {
    u64 seed, position;
    double min_p_depth;
    uint32_t task, top, target, has_edits;
    float temperature, top_p;
    uint32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t bias_start, bias_len, bans_start, bans_len;
    uint32_t history_start, history_len, prompt_len, pending;
    uint32_t mask_start, mask_len;
};
static_assert(sizeof(SampleRow) == 104, "as in mod.rs");

// As `SampleResult` in mod.rs.
struct SampleResult {
    uint32_t token, failed;
    float logprob;
    uint32_t rank, num_top;
    uint32_t top_ids[TOP_MAX];
    float top_logprobs[TOP_MAX];
};
static_assert(sizeof(SampleResult) == 180, "as in mod.rs");

// A row of logits, raw or edited.
struct Values {
    const float* row;
    uint32_t vocab;
    bool aligned;
};

__device__ __forceinline__ float minus_infinity() {
    return __int_as_float(static_cast<int>(0xff800000u));
}

// What is not finite counts as -inf; -0 becomes 0, so that equal values have equal bits.
__device__ __forceinline__ float clean(float x) {
    const bool is_finite = (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
    return is_finite ? __fadd_rn(x, 0.0f) : minus_infinity();
}

// Values i..i + 4; those beyond the vocabulary are -inf.
__device__ __forceinline__ void load4(float (&out)[4], const Values& values, uint32_t i) {
    if (values.aligned && i + 4 <= values.vocab) {
        const float4 v = *reinterpret_cast<const float4*>(values.row + i);
        out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            out[j] = i + j < values.vocab ? values.row[i + j] : minus_infinity();
        }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        out[j] = clean(out[j]);
    }
}

// Whole numbers in the order of the values.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

constexpr uint32_t KEY_OF_MINUS_INFINITY = 0x007fffffu;
constexpr int ID_BITS = 19;

// A token's place among all: a higher value first, then a lower id. No two tokens have the same.
__device__ __forceinline__ u64 place_of(uint32_t key, uint32_t id) {
    return static_cast<u64>(key) << ID_BITS | ((1u << ID_BITS) - 1 - id);
}

// The lowest place with this key.
__device__ __forceinline__ u64 floor_of(uint32_t key) {
    return static_cast<u64>(key) << ID_BITS;
}

// exp((logit - max) / temperature), operation by operation as in server/src/ranks/sampler/softmax.rs
// (no product and sum are fused), so that both have the same bits.
__device__ __forceinline__ float weight_of(float logit, float max, float inverse_temperature) {
    constexpr float ARGUMENT_MIN = -87.0f, ROUNDER = 12582912.0f, LOG2_E = 1.44269504f;
    constexpr float LN2_HIGH = 355.0f / 512.0f, LN2_LOW = -2.1219444e-4f;
    const float argument = __fmul_rn(__fsub_rn(logit, max), inverse_temperature);
    const float x = argument > ARGUMENT_MIN ? argument : ARGUMENT_MIN;
    const float rounded = __fadd_rn(__fmul_rn(x, LOG2_E), ROUNDER);
    const float n = __fsub_rn(rounded, ROUNDER);
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, LN2_HIGH)), __fmul_rn(n, LN2_LOW));
    float tail = __fadd_rn(1.0f / 720.0f, __fmul_rn(r, 1.0f / 5040.0f));
    tail = __fadd_rn(1.0f / 120.0f, __fmul_rn(r, tail));
    tail = __fadd_rn(1.0f / 24.0f, __fmul_rn(r, tail));
    tail = __fadd_rn(1.0f / 6.0f, __fmul_rn(r, tail));
    tail = __fadd_rn(0.5f, __fmul_rn(r, tail));
    const float series = __fadd_rn(__fadd_rn(1.0f, r), __fmul_rn(__fmul_rn(r, r), tail));
    const uint32_t exponent = (__float_as_uint(rounded) - __float_as_uint(ROUNDER) + 127) << 23;
    const float value = __fmul_rn(series, __uint_as_float(exponent));
    return argument > ARGUMENT_MIN ? value : 0.0f;
}

// Weights are summed as whole multiples of 2^-42: such sums do not depend on their order, and those
// of the largest vocabulary (2^18) stay below 2^61.
constexpr float FIXED_ONE = 4398046511104.0f;

__device__ __forceinline__ u64 fixed_of(float weight) {
    return __float2ull_rn(__fmul_rn(weight, FIXED_ONE));
}
