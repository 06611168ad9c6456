// How weights lie on the device, and how a lane makes mma operands of them.
//
// Order of all formats: tiles of 128 rows of W (outputs n) by 64 columns (k), row-major in
// (n / 128, k / 64). A tile is 8 blocks of 16 n x 64 k; a block is a few vectors of 512 bytes, 16
// for each lane. With g = lane / 4 and t = lane % 4, the lane's four numbers of the 8 n of half j
// (0, 1) of the block at step s (0 to 3) of 16 k are n = 8j + g, k = 16s + {2t, 2t+1, 2t+8, 2t+9}:
// just what it holds of B in mma.m16n8k16. So nobody shuffles, and all accesses are 16 bytes wide.
//   plain  vector 2j + s / 2: two registers of pairs for s even, two for s odd
//   8 bit  vector j: word s holds the lane's four codes q + 128, the first in the lowest byte
//   4 bit  one vector: word s holds eight codes, nibbles 7 and 0 the first two of j = 0, 1 and 2
//          the other two, 3 and 4 the first two of j = 1, 5 and 6 the other two
// Headers (scales) lie in an array of their own: [n / 128, k / header_k, parts, 128, part_bytes].
// A part has at most 16 bytes, so that the 8 n of an operand meet each bank of shared memory once.
// W is padded with zeros to whole tiles.
//
// Numbers: a weight is computed in f32 as GGUF's formula says, without any rounding but those the
// formula has in f32 (products of a scale and a code fit 24 bits), then rounded once to Act. All
// kernels share this code, so a weight has the same bits in each.
#pragma once

#include "numbers.cuh"
#include "ptx.cuh"

constexpr int TILE_N = 128;
constexpr int TILE_K = 64;
constexpr int VECTOR_BYTES = 512;
// Columns of W for one warp, a piece of a tile, as 8-column operands of mma.
constexpr int WARP_N = 32;
constexpr int WARP_OPERANDS = WARP_N / 8;

// The two registers of one B operand.
struct Operand {
    uint32_t first, second;
};

// Vector `index` of the 16-column block `block` of a piece of a tile in shared memory.
template <int vectors_per_block>
__device__ __forceinline__ uint4 piece_vector(const uint8_t* piece, int block, int index,
                                              int lane) {
    const int vector = block * vectors_per_block + index;
    return *reinterpret_cast<const uint4*>(piece + vector * VECTOR_BYTES + lane * 16);
}

// Byte `i` of `codes` (q + 128) as the float 2^15 + 128 + q: it lands where a bit is worth 1.
__device__ __forceinline__ float biased_byte(uint32_t codes, int i) {
    return __uint_as_float(ptx::prmt(codes, 0x47, 0x4505u | (i << 4)));
}

// Two codes of 4 bits as floats: bits 12 to 15 as 2^11 + q, bits 16 to 19 as 2^7 + q.
__device__ __forceinline__ float2 biased_nibbles(uint32_t bits) {
    return make_float2(__uint_as_float(ptx::select_or(bits, 0x0000f000u, 0x45000000u)),
                       __uint_as_float(ptx::select_or(bits, 0x000f0000u, 0x43000000u)));
}

// Pair `i` of the four pairs of a word of 4-bit codes, moved to bits 12 to 19.
__device__ __forceinline__ uint32_t nibble_pair(uint32_t word, int i) {
    switch (i) {
        case 0: return __funnelshift_l(word, word, 16);
        case 1: return word << 8;
        case 2: return word;
        default: return word >> 8;
    }
}

__device__ __forceinline__ uint32_t word_of(const uint4& vector, int i) {
    return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}

// Each format has:
//   vectors_per_block, header_k, header_parts, part_bytes   the layout above
//   Codes    the codes of a warp's 32 columns, as much as is read at once
//   Header   of one n, what a tile needs, as it lies in memory
//   Scale    the same as numbers, for the 32 k of one half of a tile
//   read_codes(codes, piece, half, lane)
//   read_header(where the first part of one n of a piece is, step of the tile in its header)
//   scale(header, half)
//   operand<Act>(codes, scale, column operand j of 0..4, half, step of 16 k in the half)

// Weights as Act. 2 bytes a weight.
struct Plain {
    static constexpr int vectors_per_block = 4;
    static constexpr int header_k = TILE_K;
    static constexpr int header_parts = 0;
    static constexpr int part_bytes = 0;

    struct Codes {
        uint4 of_operand[WARP_OPERANDS];
    };
    struct Header {};
    struct Scale {};

    static __device__ __forceinline__ void read_codes(Codes& codes, const uint8_t* piece, int half,
                                                      int lane) {
#pragma unroll
        for (int j = 0; j < WARP_OPERANDS; ++j) {
            codes.of_operand[j] =
                piece_vector<vectors_per_block>(piece, j / 2, 2 * (j % 2) + half, lane);
        }
    }

    static __device__ __forceinline__ Header read_header(const uint8_t*, uint32_t) { return {}; }

    static __device__ __forceinline__ Scale scale(const Header&, int) { return {}; }

    template <typename Act>
    static __device__ __forceinline__ Operand operand(const Codes& codes, const Scale&, int j, int,
                                                      int step) {
        const uint4& vector = codes.of_operand[j];
        return step == 0 ? Operand{vector.x, vector.y} : Operand{vector.z, vector.w};
    }
};

// 8-bit codes of a warp: one vector for each operand serves both halves of the tile.
struct Codes8 {
    uint4 of_operand[WARP_OPERANDS];

    __device__ __forceinline__ void read(const uint8_t* piece, int half, int lane) {
        if (half != 0) return;
#pragma unroll
        for (int j = 0; j < WARP_OPERANDS; ++j) {
            of_operand[j] = piece_vector<2>(piece, j / 2, j % 2, lane);
        }
    }
};

// 4-bit codes of a warp: one vector for two operands serves both halves of the tile.
struct Codes4 {
    uint4 of_block[WARP_OPERANDS / 2];

    __device__ __forceinline__ void read(const uint8_t* piece, int half, int lane) {
        if (half != 0) return;
#pragma unroll
        for (int i = 0; i < WARP_OPERANDS / 2; ++i) {
            of_block[i] = piece_vector<1>(piece, i, 0, lane);
        }
    }
};

// w = d q: q of 8 bits, d an f16 for each 32 k. 8.5 bits a weight. Q8_0 and Q5_0.
// Header, for 64 k of one n: two f16.
struct W8 {
    static constexpr int vectors_per_block = 2;
    static constexpr int header_k = 64;
    static constexpr int header_parts = 1;
    static constexpr int part_bytes = 4;

    using Codes = Codes8;
    struct Header {
        uint32_t both_d;
    };
    struct Scale {
        float d, offset;
    };

    static __device__ __forceinline__ void read_codes(Codes& codes, const uint8_t* piece, int half,
                                                      int lane) {
        codes.read(piece, half, lane);
    }

    static __device__ __forceinline__ Header read_header(const uint8_t* from, uint32_t) {
        return {*reinterpret_cast<const uint32_t*>(from)};
    }

    static __device__ __forceinline__ Scale scale(const Header& header, int half) {
        const float d = f32_of_half_bits(half == 0 ? header.both_d & 0xffffu : header.both_d >> 16);
        // Exact: 8 bits of 2^15 + 2^7 times 11 bits of d.
        return {d, __fmul_rn(d, -32896.0f)};
    }

    // (2^15 + 2^7 + q) d - (2^15 + 2^7) d has 19 bits, so the fused multiply-add is exact.
    template <typename Act>
    static __device__ __forceinline__ Operand operand(const Codes& codes, const Scale& scale, int j,
                                                      int half, int step) {
        const uint32_t word = word_of(codes.of_operand[j], 2 * half + step);
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] = __fmaf_rn(biased_byte(word, i), scale.d, scale.offset);
        }
        return {Number<Act>::pair_from_f32(w[0], w[1]), Number<Act>::pair_from_f32(w[2], w[3])};
    }
};

// w = d (q - 8): q of 4 bits, d an f16 for each 32 k. 4.5 bits a weight. Q4_0; also what GPTQ
// calls symmetric, with the scale of a longer group repeated. Header, for 64 k of one n: two f16.
struct W4 {
    static constexpr int vectors_per_block = 1;
    static constexpr int header_k = 64;
    static constexpr int header_parts = 1;
    static constexpr int part_bytes = 4;

    using Codes = Codes4;
    struct Header {
        uint32_t both_d;
    };
    struct Scale {
        float d, offset_first, offset_second;
    };

    static __device__ __forceinline__ void read_codes(Codes& codes, const uint8_t* piece, int half,
                                                      int lane) {
        codes.read(piece, half, lane);
    }

    static __device__ __forceinline__ Header read_header(const uint8_t* from, uint32_t) {
        return {*reinterpret_cast<const uint32_t*>(from)};
    }

    static __device__ __forceinline__ Scale scale(const Header& header, int half) {
        const float d = f32_of_half_bits(half == 0 ? header.both_d & 0xffffu : header.both_d >> 16);
        // Exact: 2^11 + 8 has 9 significant bits, 2^7 + 8 has 5, d has 11.
        return {d, __fmul_rn(d, -2056.0f), __fmul_rn(d, -136.0f)};
    }

    // The results have 15 bits, so the fused multiply-adds are exact.
    template <typename Act>
    static __device__ __forceinline__ Operand operand(const Codes& codes, const Scale& scale, int j,
                                                      int half, int step) {
        const uint32_t word = word_of(codes.of_block[j / 2], 2 * half + step);
        uint32_t pairs[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float2 q = biased_nibbles(nibble_pair(word, 2 * (j % 2) + i));
            pairs[i] = Number<Act>::pair_from_f32(__fmaf_rn(q.x, scale.d, scale.offset_first),
                                                  __fmaf_rn(q.y, scale.d, scale.offset_second));
        }
        return {pairs[0], pairs[1]};
    }
};

// w = d scale q - dmin min: q of 4 bits, d and dmin f16 for each 256 k, scale and min of 6 bits for
// each 32 k. 4.5 bits a weight. Q4_K. Header, for 256 k of one n, as four words: d | dmin << 16;
// then, for each 64 k, 24 bits {scale, min, scale, min}, lowest first: those of the first three in
// the low bits of words 1 to 3, those of the last in their top bytes, lowest first.
struct W4K {
    static constexpr int vectors_per_block = 1;
    static constexpr int header_k = 256;
    static constexpr int header_parts = 1;
    static constexpr int part_bytes = 16;

    using Codes = Codes4;
    struct Header {
        uint32_t both_d, scales;
    };
    struct Scale {
        float d_scale, minus_min;
    };

    static __device__ __forceinline__ void read_codes(Codes& codes, const uint8_t* piece, int half,
                                                      int lane) {
        codes.read(piece, half, lane);
    }

    static __device__ __forceinline__ Header read_header(const uint8_t* from, uint32_t step) {
        const uint4 words = *reinterpret_cast<const uint4*>(from);
        const uint32_t last = ptx::prmt(ptx::prmt(words.y, words.z, 0x0073), words.w, 0x0710);
        return {words.x, step == 0 ? words.y : step == 1 ? words.z : step == 2 ? words.w : last};
    }

    static __device__ __forceinline__ Scale scale(const Header& header, int half) {
        const uint32_t bits = header.scales >> (12 * half);
        const float d = f32_of_half_bits(header.both_d & 0xffffu);
        const float d_min = f32_of_half_bits(header.both_d >> 16);
        // Both exact: 11 bits times 6.
        return {__fmul_rn(d, static_cast<float>(bits & 63u)),
                -__fmul_rn(d_min, static_cast<float>((bits >> 6) & 63u))};
    }

    // The product has 21 bits, so the one rounding is that of the subtraction, as in the formula.
    template <typename Act>
    static __device__ __forceinline__ Operand operand(const Codes& codes, const Scale& scale, int j,
                                                      int half, int step) {
        const uint32_t word = word_of(codes.of_block[j / 2], 2 * half + step);
        uint32_t pairs[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float2 q = biased_nibbles(nibble_pair(word, 2 * (j % 2) + i));
            pairs[i] = Number<Act>::pair_from_f32(
                __fmaf_rn(__fadd_rn(q.x, -2048.0f), scale.d_scale, scale.minus_min),
                __fmaf_rn(__fadd_rn(q.y, -128.0f), scale.d_scale, scale.minus_min));
        }
        return {pairs[0], pairs[1]};
    }
};

// w = d scale q - dmin min: q of 8 bits, d and dmin f16 for each 256 k, scale of 8 bits with a sign
// for each 16 k, min of 8 bits without one for each 32 k. 9 bits a weight. Q5_K and Q6_K.
// Header, for 256 k of one n, in two parts: d, dmin, 8 mins, 4 zeros; 16 scales.
struct W8K {
    static constexpr int vectors_per_block = 2;
    static constexpr int header_k = 256;
    static constexpr int header_parts = 2;
    static constexpr int part_bytes = 16;

    using Codes = Codes8;
    struct Header {
        uint32_t both_d, scales, mins;
    };
    struct Scale {
        float d_scale[2], minus_min;
    };

    static __device__ __forceinline__ void read_codes(Codes& codes, const uint8_t* piece, int half,
                                                      int lane) {
        codes.read(piece, half, lane);
    }

    static __device__ __forceinline__ Header read_header(const uint8_t* from, uint32_t step) {
        const uint8_t* scales = from + WARP_N * part_bytes + 4 * step;
        return {*reinterpret_cast<const uint32_t*>(from),
                *reinterpret_cast<const uint32_t*>(scales),
                *reinterpret_cast<const uint16_t*>(from + 4 + 2 * step)};
    }

    static __device__ __forceinline__ Scale scale(const Header& header, int half) {
        const float d = f32_of_half_bits(header.both_d & 0xffffu);
        const float d_min = f32_of_half_bits(header.both_d >> 16);
        const uint32_t scales = header.scales >> (16 * half);
        const uint32_t min = (header.mins >> (8 * half)) & 0xffu;
        // All exact: 11 bits times 7 or 8.
        return {{__fmul_rn(d, static_cast<float>(static_cast<int8_t>(scales & 0xffu))),
                 __fmul_rn(d, static_cast<float>(static_cast<int8_t>((scales >> 8) & 0xffu)))},
                -__fmul_rn(d_min, static_cast<float>(min))};
    }

    // The product has 24 bits (Q6_K: 11 + 7 + 6, Q5_K: 11 + 6 + 5), so the one rounding is that of
    // the subtraction, as in the formula.
    template <typename Act>
    static __device__ __forceinline__ Operand operand(const Codes& codes, const Scale& scale, int j,
                                                      int half, int step) {
        const uint32_t word = word_of(codes.of_operand[j], 2 * half + step);
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] = __fmaf_rn(__fadd_rn(biased_byte(word, i), -32896.0f), scale.d_scale[step],
                             scale.minus_min);
        }
        return {Number<Act>::pair_from_f32(w[0], w[1]), Number<Act>::pair_from_f32(w[2], w[3])};
    }
};

// w = d (q - zero): q of 4 bits, d an f16 and zero 0 to 16 for each 64 k. 4.5 bits a weight. AWQ and
// GPTQ, d and zero of a longer group repeated. Header, for 64 k of one n: d | zero << 16.
struct W4Z : W4 {
    struct Header {
        uint32_t d_and_zero;
    };

    static __device__ __forceinline__ Header read_header(const uint8_t* from, uint32_t) {
        return {*reinterpret_cast<const uint32_t*>(from)};
    }

    static __device__ __forceinline__ Scale scale(const Header& header, int) {
        const float d = f32_of_half_bits(header.d_and_zero & 0xffffu);
        const float zero = static_cast<float>(header.d_and_zero >> 16);
        // Exact: 2^11 + zero has 12 significant bits, 2^7 + zero has 8, d has 11.
        return {d, __fmul_rn(d, -2048.0f - zero), __fmul_rn(d, -128.0f - zero)};
    }
};
