// out = x W^T (+ bias), for every weight format and number of rows.
//
// One CTA computes block_m rows by 128 columns. Tiles of x and of the codes come to shared memory
// in `stages` steps of 64 k by cp.async, whole 16 bytes and each byte of W once for a CTA; each
// warp multiplies up to 64 rows by 32 columns. Small block_m are the skinny variants, which have
// one row of CTAs and so read W once; they differ from the tiled one in this number only.
//
// Batch invariance. The k range is cut into splits of `steps_per_split` tiles, a function of the
// shape and format of W alone (`cuda::layout::Layout` in Rust). An output is
//   ((0 + s_0) + s_1) + ...,  s_i = 0 plus the mma steps of split i, k ascending,
// whichever row of whichever variant computes it. With gridDim.z == 1 a CTA takes all splits in
// turn. Else it takes split blockIdx.z and leaves its sums in `partials`; the CTA that arrives last
// reads all of them in the order above. Who comes last is chance, what it computes is not.
//
// Shared memory: rows of x are 8 chunks of 16 bytes, chunk c of row r in place c ^ (r % 8), so that
// neither cp.async nor ldmatrix meets a bank twice; codes and headers are read in the order they
// lie in.
#pragma once

#include "formats.cuh"

// What becomes of a result.
enum Epilogue : uint32_t {
    STORE_ACT = 0,
    STORE_F32 = 1,
    // Adds to what `out` (f32) holds.
    ADD_F32 = 2,
};

constexpr int CHUNK_BYTES = 16;
constexpr int X_ROW_BYTES = TILE_K * 2;
constexpr int X_ROW_CHUNKS = X_ROW_BYTES / CHUNK_BYTES;

// Distance of two rows of collected sums: 8 more than a row, so that the stores of a warp's
// fragments meet each bank once.
constexpr int OUT_STRIDE = TILE_N + 8;

constexpr int threads_for(int block_m) { return block_m > 64 ? 256 : 128; }

template <typename Act>
struct Problem {
    void* out;
    const Act* x;
    const uint8_t* codes;
    const uint8_t* headers;
    const float* bias;
    float* partials;
    uint32_t* arrivals;
    uint32_t m, n, k, steps_per_split;
    Epilogue epilogue;

    // W's columns in tiles, padding included: whole headers.
    __device__ __forceinline__ uint32_t num_steps(int header_k) const {
        return (k + header_k - 1) / header_k * (header_k / TILE_K);
    }
};

template <typename Act, typename Format, int block_m, int stages>
struct Multiply {
    static constexpr int threads = threads_for(block_m);
    // Warps side by side along n, and one above another along m.
    static constexpr int warps_n = TILE_N / WARP_N;
    static constexpr int warp_m = block_m > 64 ? 64 : block_m;
    static constexpr int row_tiles = warp_m / 16;

    static constexpr int x_bytes = block_m * X_ROW_BYTES;
    static constexpr int codes_bytes = TILE_N / 16 * Format::vectors_per_block * VECTOR_BYTES;
    static constexpr int header_steps = Format::header_k / TILE_K;
    static constexpr int headers_bytes = TILE_N * Format::header_parts * Format::part_bytes;
    // Headers in use and on their way; a header can serve several stages.
    static constexpr int header_slots = (stages - 1 + header_steps - 1) / header_steps + 1;

    using Sums = float[row_tiles][WARP_OPERANDS][4];

    const Problem<Act>& problem;
    uint8_t* shared;
    uint32_t shared_address;
    int thread, lane, warp_row, warp_column;
    uint32_t first_row, num_steps;

    __device__ __forceinline__ Multiply(const Problem<Act>& problem, uint8_t* shared)
        : problem(problem), shared(shared) {
        shared_address = ptx::shared_address(shared);
        thread = threadIdx.x;
        lane = thread % 32;
        warp_row = thread / 32 / warps_n * warp_m;
        warp_column = thread / 32 % warps_n * WARP_N;
        first_row = blockIdx.x * block_m;
        num_steps = problem.num_steps(Format::header_k);
    }

    // Shared memory: the slots of x, then those of the codes, then those of the headers.
    static __device__ __forceinline__ int x_offset(int slot) { return slot * x_bytes; }

    static __device__ __forceinline__ int codes_offset(int slot) {
        return stages * x_bytes + slot * codes_bytes;
    }

    static __device__ __forceinline__ int headers_offset(int slot) {
        return stages * (x_bytes + codes_bytes) + slot * headers_bytes;
    }

    // Starts the copies of step `step` of k.
    __device__ __forceinline__ void fetch(uint32_t step, int slot) {
        if (problem.k % 8 == 0) {
            fetch_x(step, slot);
        } else {
            fetch_x_unaligned(step, slot);
        }
        const size_t tile = static_cast<size_t>(blockIdx.y) * num_steps + step;
        fetch_whole<codes_bytes>(codes_offset(slot), problem.codes + tile * codes_bytes);
        if (headers_bytes != 0 && step % header_steps == 0) {
            fetch_whole<headers_bytes>(headers_offset(step / header_steps % header_slots),
                                       problem.headers + tile / header_steps * headers_bytes);
        }
    }

    template <int num_bytes>
    __device__ __forceinline__ void fetch_whole(int offset, const uint8_t* from) {
#pragma unroll
        for (int i = 0; i < num_bytes; i += threads * CHUNK_BYTES) {
            const int at = i + thread * CHUNK_BYTES;
            if (num_bytes % (threads * CHUNK_BYTES) == 0 || at < num_bytes) {
                ptx::cp_async_16(shared_address + offset + at, from + at);
            }
        }
    }

    static __device__ __forceinline__ int swizzled(int row, int chunk) {
        return row * X_ROW_BYTES + (chunk ^ row % X_ROW_CHUNKS) * CHUNK_BYTES;
    }

    // Rows and columns that do not exist become zeros and are not read.
    __device__ __forceinline__ void fetch_x(uint32_t step, int slot) {
        const int chunk = thread % X_ROW_CHUNKS;
        const uint32_t column = step * TILE_K + chunk * 8;
#pragma unroll
        for (int row = thread / X_ROW_CHUNKS; row < block_m; row += threads / X_ROW_CHUNKS) {
            const bool exists = first_row + row < problem.m && column < problem.k;
            const size_t from = static_cast<size_t>(first_row + row) * problem.k + column;
            ptx::cp_async_16_zero_fill(shared_address + x_offset(slot) + swizzled(row, chunk),
                                       problem.x + (exists ? from : 0), exists ? CHUNK_BYTES : 0);
        }
    }

    // The same where rows do not start at multiples of 16 bytes: number by number.
    __device__ __forceinline__ void fetch_x_unaligned(uint32_t step, int slot) {
        for (int at = thread; at < block_m * TILE_K; at += threads) {
            const int row = at / TILE_K;
            const uint32_t column = step * TILE_K + at % TILE_K;
            const bool exists = first_row + row < problem.m && column < problem.k;
            const size_t from = static_cast<size_t>(first_row + row) * problem.k + column;
            Act* to = reinterpret_cast<Act*>(shared + x_offset(slot) +
                                             swizzled(row, at % TILE_K / 8));
            to[at % 8] = exists ? problem.x[from] : Number<Act>::from_f32(0.0f);
        }
    }

    // sums += the products of step `step`.
    __device__ __forceinline__ void multiply(Sums& sums, uint32_t step, int slot) {
        const uint8_t* codes_tile = shared + codes_offset(slot);
        const uint8_t* first_header = shared + headers_offset(step / header_steps % header_slots) +
                                      (warp_column + lane / 4) * Format::part_bytes;
        typename Format::Header headers[WARP_OPERANDS];
#pragma unroll
        for (int j = 0; j < WARP_OPERANDS; ++j) {
            headers[j] = Format::read_header(first_header + j * 8 * Format::part_bytes,
                                             step % header_steps);
        }
        typename Format::Codes codes;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Format::read_codes(codes, codes_tile, warp_column / 16, half, lane);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t x[row_tiles][4];
                read_x(x, slot, 2 * half + i);
#pragma unroll
                for (int j = 0; j < WARP_OPERANDS; ++j) {
                    const Operand w = Format::template operand<Act>(
                        codes, Format::scale(headers[j], half), j, half, i);
#pragma unroll
                    for (int r = 0; r < row_tiles; ++r) {
                        ptx::mma_m16n8k16<Act>(sums[r][j], x[r], w.first, w.second);
                    }
                }
            }
        }
    }

    // The A operands of the warp's rows at 16 columns.
    __device__ __forceinline__ void read_x(uint32_t (&x)[row_tiles][4], int slot, int columns) {
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
            const int row = warp_row + 16 * r + lane % 16;
            ptx::ldmatrix_x4(x[r], shared_address + x_offset(slot) +
                                       swizzled(row, 2 * columns + lane / 16));
        }
    }

    // totals = the sums of the splits from tile `step` to `end` of k, added in order.
    __device__ __forceinline__ void run(Sums& totals, uint32_t step, uint32_t end) {
        Sums sums;
        clear(totals);
        clear(sums);
        const uint32_t first = step;
        uint32_t split_end = first + problem.steps_per_split;
        int slot = 0, next_slot = 0;
        for (uint32_t next = first; step < end; ++next) {
            const bool is_full = next - first >= stages - 1;
            if (is_full) {
                // One group for each step, empty ones too: all but the newest stages - 2 are there.
                ptx::cp_async_wait<stages - 2>();
                // After this barrier the tile of `step` is whole, and nobody reads the one before.
                __syncthreads();
            }
            if (next < end) fetch(next, next_slot);
            ptx::cp_async_commit();
            next_slot = next_slot + 1 == stages ? 0 : next_slot + 1;
            if (!is_full) continue;
            multiply(sums, step, slot);
            slot = slot + 1 == stages ? 0 : slot + 1;
            if (++step == split_end || step == end) {
                add(totals, sums);
                clear(sums);
                split_end += problem.steps_per_split;
            }
        }
    }

    static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
        for (int i = 0; i < row_tiles * WARP_OPERANDS * 4; ++i) {
            sums[i / 4 / WARP_OPERANDS][i / 4 % WARP_OPERANDS][i % 4] = 0.0f;
        }
    }

    static __device__ __forceinline__ void add(Sums& totals, const Sums& sums) {
#pragma unroll
        for (int i = 0; i < row_tiles * WARP_OPERANDS * 4; ++i) {
            const int r = i / 4 / WARP_OPERANDS, j = i / 4 % WARP_OPERANDS;
            totals[r][j][i % 4] = __fadd_rn(totals[r][j][i % 4], sums[r][j][i % 4]);
        }
    }

    // Brings the sums of all warps to shared memory, [block_m, OUT_STRIDE], where the tiles were.
    __device__ __forceinline__ void collect(const Sums& sums) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < row_tiles * WARP_OPERANDS * 2; ++i) {
            const int r = i / 2 / WARP_OPERANDS, j = i / 2 % WARP_OPERANDS, below = i % 2;
            const int row = warp_row + 16 * r + 8 * below + lane / 4;
            const int column = warp_column + 8 * j + 2 * (lane % 4);
            *reinterpret_cast<float2*>(collected(row) + column) =
                make_float2(sums[r][j][2 * below], sums[r][j][2 * below + 1]);
        }
        __syncthreads();
    }

    __device__ __forceinline__ float* collected(int row) {
        return reinterpret_cast<float*>(shared) + row * OUT_STRIDE;
    }

    // Calls visit(row in the block, row, column) for the lane's four columns in each of its warp's
    // rows that exist.
    template <typename Visit>
    __device__ __forceinline__ void for_quads(Visit visit) {
        const uint32_t num_rows = min(static_cast<uint32_t>(block_m), problem.m - first_row);
#pragma unroll 1
        for (uint32_t row = thread / 32; row < num_rows; row += threads / 32) {
            visit(row, first_row + row, blockIdx.y * TILE_N + 4 * lane);
        }
    }

    // The place of four sums of split `split`: [split, m, n padded].
    __device__ __forceinline__ float4* partial(uint32_t split, uint32_t row, uint32_t column) {
        const size_t at =
            (static_cast<size_t>(split) * problem.m + row) * (gridDim.y * TILE_N) + column;
        return reinterpret_cast<float4*>(problem.partials + at);
    }

    // Leaves the collected sums to the CTA that arrives last; says whether it is this one.
    __device__ __forceinline__ bool arrive_last() {
        __shared__ uint32_t num_before;
        for_quads([&](uint32_t block_row, uint32_t row, uint32_t column) {
            __stcg(partial(blockIdx.z, row, column),
                   *reinterpret_cast<const float4*>(collected(block_row) + 4 * lane));
        });
        // Each thread's sums are visible on the whole device before the CTA is counted.
        __threadfence();
        __syncthreads();
        uint32_t* arrivals = problem.arrivals + blockIdx.y * gridDim.x + blockIdx.x;
        if (thread == 0) num_before = atomicAdd(arrivals, 1);
        __syncthreads();
        if (num_before != gridDim.z - 1) return false;
        __threadfence();
        // The next launch counts from zero again.
        if (thread == 0) *arrivals = 0;
        return true;
    }

    // Totals of one split: as collected.
    __device__ __forceinline__ void finish() {
        for_quads([&](uint32_t block_row, uint32_t row, uint32_t column) {
            const float* from = collected(block_row) + 4 * lane;
            float totals[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) totals[i] = from[i];
            store(totals, row, column);
        });
    }

    // Totals of all splits, added as `run` does it.
    __device__ __forceinline__ void finish_splits() {
        for_quads([&](uint32_t, uint32_t row, uint32_t column) {
            float totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
            for (uint32_t split = 0; split < gridDim.z; ++split) {
                const float4 sums = __ldcg(partial(split, row, column));
                totals[0] = __fadd_rn(totals[0], sums.x);
                totals[1] = __fadd_rn(totals[1], sums.y);
                totals[2] = __fadd_rn(totals[2], sums.z);
                totals[3] = __fadd_rn(totals[3], sums.w);
            }
            store(totals, row, column);
        });
    }

    // Adds the bias and stores what lies inside of n.
    __device__ __forceinline__ void store(float (&totals)[4], uint32_t row, uint32_t column) {
        const uint32_t count = column < problem.n ? min(4u, problem.n - column) : 0;
        const size_t at = static_cast<size_t>(row) * problem.n + column;
        if (problem.bias != nullptr) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i < count) totals[i] = __fadd_rn(totals[i], problem.bias[column + i]);
            }
        }
        if (problem.n % 4 != 0) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i < count) store_one(at + i, totals[i]);
            }
        } else if (count != 0) {
            store_four(at, totals);
        }
    }

    __device__ __forceinline__ void store_four(size_t at, const float (&totals)[4]) {
        if (problem.epilogue == STORE_ACT) {
            *reinterpret_cast<uint2*>(static_cast<Act*>(problem.out) + at) =
                make_uint2(Number<Act>::pair_from_f32(totals[0], totals[1]),
                           Number<Act>::pair_from_f32(totals[2], totals[3]));
            return;
        }
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(problem.out) + at);
        if (problem.epilogue == STORE_F32) {
            *out = make_float4(totals[0], totals[1], totals[2], totals[3]);
            return;
        }
        const float4 before = *out;
        *out = make_float4(__fadd_rn(before.x, totals[0]), __fadd_rn(before.y, totals[1]),
                           __fadd_rn(before.z, totals[2]), __fadd_rn(before.w, totals[3]));
    }

    __device__ __forceinline__ void store_one(size_t at, float value) {
        if (problem.epilogue == STORE_ACT) {
            static_cast<Act*>(problem.out)[at] = Number<Act>::from_f32(value);
            return;
        }
        float* out = static_cast<float*>(problem.out) + at;
        *out = problem.epilogue == ADD_F32 ? __fadd_rn(*out, value) : value;
    }
};

template <typename Act, typename Format, int block_m, int stages>
__device__ __forceinline__ void multiply(const Problem<Act>& problem) {
    extern __shared__ __align__(128) uint8_t shared[];
    using Job = Multiply<Act, Format, block_m, stages>;
    Job job(problem, shared);
    typename Job::Sums totals;
    const bool all = gridDim.z == 1;
    const uint32_t first = all ? 0 : blockIdx.z * problem.steps_per_split;
    const uint32_t end = all ? job.num_steps : min(first + problem.steps_per_split, job.num_steps);
    job.run(totals, first, end);
    job.collect(totals);
    if (all) {
        job.finish();
    } else if (job.arrive_last()) {
        job.finish_splits();
    }
}

// A kernel: its name, then what it is made of. Grid: x rows / block_m, y n / 128 (both rounded up),
// z 1 or the number of splits. Arguments: out [m, n] of Act or f32; x [m, k]; W as formats.cuh
// says; bias [n] or null; with z > 1, partials [z, m, n padded to 128] and a zero for each CTA of a
// split in `arrivals`.
#define LINEAR_KERNEL(name, Act, Format, block_m, stages)                                         \
    extern "C" __global__ void __launch_bounds__(threads_for(block_m), block_m > 64 ? 1 : 2)      \
        name(void* out, const Act* x, const uint8_t* codes, const uint8_t* headers,               \
             const float* bias, float* partials, uint32_t* arrivals, uint32_t m, uint32_t n,      \
             uint32_t k, uint32_t steps_per_split, uint32_t epilogue) {                           \
        const Problem<Act> problem = {out,      x, codes, headers, bias,            partials,     \
                                      arrivals, m, n,     k,       steps_per_split,               \
                                      static_cast<Epilogue>(epilogue)};                           \
        multiply<Act, Format, block_m, stages>(problem);                                          \
    }
