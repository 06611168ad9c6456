// out = x W^T (+ bias), for every weight format and number of rows.
//
// One CTA computes block_m rows by 128 or 32 columns. Tiles of x and of the codes come to shared
// memory in stages of 64 k by cp.async, whole 16 bytes and each byte of W once for a CTA; each warp
// multiplies up to 64 rows by 32 columns, a piece of a tile. Small block_m are the skinny variants,
// which have one row of CTAs and so read W once; they differ from the tiled one in this number only.
//
// Batch invariance. The k range is cut into at most four splits of `steps_per_split` tiles, a
// function of the shape and format of W alone (`cuda::layout::Layout` in Rust). An output is
//   ((0 + s_0) + s_1) + ...,  s_i = 0 plus the mma steps of split i, k ascending,
// whichever row of whichever variant computes it. There are two ways to share the work:
//   IN_TURN       four warps take the pieces of 128 columns, each all splits in turn, and share the
//                 tiles of x
//   SIDE_BY_SIDE  four warps take the same piece, warp i split i alone with tiles of its own; their
//                 sums meet in shared memory and are added in the order above
// The second has four times as many CTAs, for weights with few columns. Neither leaves sums in
// global memory.
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
};

enum Splits : uint32_t {
    IN_TURN = 0,
    SIDE_BY_SIDE = 1,
};

constexpr int CHUNK_BYTES = 16;
constexpr int X_ROW_BYTES = TILE_K * 2;
constexpr int X_ROW_CHUNKS = X_ROW_BYTES / CHUNK_BYTES;

// Pieces of a tile, and the most splits: one for each of four warps.
constexpr int NUM_PIECES = TILE_N / WARP_N;

// Distance of two rows of collected sums: 8 more than a row, so that the stores of a warp's
// fragments meet each bank once.
constexpr int OUT_STRIDE = WARP_N + 8;

constexpr int threads_for(int block_m) { return block_m > 64 ? 256 : 128; }

template <typename Act>
struct Problem {
    void* out;
    const Act* x;
    const uint8_t* codes;
    const uint8_t* headers;
    const float* bias;
    uint32_t m, n, k, steps_per_split;
    Epilogue epilogue;
    Splits splits;

    // W's columns in tiles, padding included: whole headers.
    __device__ __forceinline__ uint32_t num_steps(int header_k) const {
        return (k + header_k - 1) / header_k * (header_k / TILE_K);
    }
};

// `stages` steps of k are in use or on their way with splits in turn, `own_stages` for each warp
// with splits side by side; 0 where that is never asked for.
template <typename Act, typename Format, int block_m, int stages, int own_stages>
struct Multiply {
    static constexpr int threads = threads_for(block_m);
    // Rows of a warp; taller CTAs have more warps for each piece, one above another.
    static constexpr int warp_m = block_m > 64 ? 64 : block_m;
    static constexpr int row_tiles = warp_m / 16;
    static constexpr int threads_of_piece = threads / NUM_PIECES;

    static constexpr int x_bytes = block_m * X_ROW_BYTES;
    static constexpr int piece_bytes = WARP_N / 16 * Format::vectors_per_block * VECTOR_BYTES;
    static constexpr int header_steps = Format::header_k / TILE_K;
    static constexpr int header_part_bytes = WARP_N * Format::part_bytes;
    static constexpr int headers_bytes = Format::header_parts * header_part_bytes;
    // Headers in use and on their way; a header can serve several stages.
    static constexpr int stages_max = stages > own_stages ? stages : own_stages;
    static constexpr int header_slots = (stages_max - 1 + header_steps - 1) / header_steps + 1;

    using Sums = float[row_tiles][WARP_OPERANDS][4];

    const Problem<Act>& problem;
    uint8_t* shared;
    int thread, lane, warp_row, warp_piece;
    // Whether splits lie side by side.
    bool is_split;
    // Where this warp's slots are in shared memory.
    int x_slots, codes_slots, headers_slots;
    uint32_t first_row, num_steps;
    // The tile row and the piece in it that this warp multiplies with.
    uint32_t tile_row, piece;

    __device__ __forceinline__ Multiply(const Problem<Act>& problem, uint8_t* shared)
        : problem(problem), shared(shared) {
        thread = threadIdx.x;
        lane = thread % 32;
        warp_row = thread / 32 / NUM_PIECES * warp_m;
        warp_piece = thread / 32 % NUM_PIECES;
        is_split = own_stages > 0 && problem.splits == SIDE_BY_SIDE;
        const int num_stages = is_split ? own_stages : stages;
        // The slots of x, one set of them or one for each warp; then those of the codes, then those
        // of the headers, both for each piece.
        x_slots = is_split ? warp_piece * own_stages * x_bytes : 0;
        const int codes_start = (is_split ? NUM_PIECES : 1) * num_stages * x_bytes;
        codes_slots = codes_start + warp_piece * num_stages * piece_bytes;
        headers_slots = codes_start + NUM_PIECES * num_stages * piece_bytes +
                        warp_piece * header_slots * headers_bytes;
        first_row = blockIdx.x * block_m;
        tile_row = is_split ? blockIdx.y / NUM_PIECES : blockIdx.y;
        piece = is_split ? blockIdx.y % NUM_PIECES : warp_piece;
        num_steps = problem.num_steps(Format::header_k);
    }

    // Starts the copies of step `step` of k.
    __device__ __forceinline__ void fetch(uint32_t step, int slot) {
        if (problem.k % 8 != 0) {
            fetch_x_unaligned(step, slot);
        } else if (is_split) {
            fetch_x<32>(lane, step, slot);
        } else {
            fetch_x<threads>(thread, step, slot);
        }
        const size_t tile = static_cast<size_t>(tile_row) * num_steps + step;
        fetch_whole<piece_bytes>(codes_slots + slot * piece_bytes,
                                 problem.codes + (tile * NUM_PIECES + piece) * piece_bytes);
        if (headers_bytes != 0 && step % header_steps == 0) {
            const uint8_t* from = problem.headers + tile / header_steps * (TILE_N / WARP_N) *
                                  headers_bytes + piece * header_part_bytes;
#pragma unroll
            for (int part = 0; part < Format::header_parts; ++part) {
                fetch_whole<header_part_bytes>(header_slot(step) + part * header_part_bytes,
                                               from + part * NUM_PIECES * header_part_bytes);
            }
        }
    }

    __device__ __forceinline__ int header_slot(uint32_t step) {
        return headers_slots + step / header_steps % header_slots * headers_bytes;
    }

    // By the warps that share the piece.
    template <int num_bytes>
    __device__ __forceinline__ void fetch_whole(int offset, const uint8_t* from) {
        const int first = (thread / 32 / NUM_PIECES * 32 + lane) * CHUNK_BYTES;
#pragma unroll
        for (int i = 0; i < num_bytes; i += threads_of_piece * CHUNK_BYTES) {
            const int at = i + first;
            if (num_bytes % (threads_of_piece * CHUNK_BYTES) == 0 || at < num_bytes) {
                ptx::cp_async_16(ptx::shared_address(shared + offset + at), from + at);
            }
        }
    }

    static __device__ __forceinline__ int swizzled(int row, int chunk) {
        return row * X_ROW_BYTES + (chunk ^ row % X_ROW_CHUNKS) * CHUNK_BYTES;
    }

    // By `num_threads` threads, of which this is number `at`. Rows and columns that do not exist
    // become zeros and are not read.
    template <int num_threads>
    __device__ __forceinline__ void fetch_x(int at, uint32_t step, int slot) {
        const int chunk = at % X_ROW_CHUNKS;
        const uint32_t column = step * TILE_K + chunk * 8;
#pragma unroll
        for (int i = 0; i < block_m; i += num_threads / X_ROW_CHUNKS) {
            const int row = i + at / X_ROW_CHUNKS;
            const bool exists = first_row + row < problem.m && column < problem.k;
            const size_t from = static_cast<size_t>(first_row + row) * problem.k + column;
            uint8_t* to = shared + x_slots + slot * x_bytes + swizzled(row, chunk);
            ptx::cp_async_16_zero_fill(ptx::shared_address(to), problem.x + (exists ? from : 0),
                                       exists ? CHUNK_BYTES : 0);
        }
    }

    // The same where rows do not start at multiples of 16 bytes: number by number.
    __device__ __forceinline__ void fetch_x_unaligned(uint32_t step, int slot) {
        const int num_threads = is_split ? 32 : threads;
        for (int at = is_split ? lane : thread; at < block_m * TILE_K; at += num_threads) {
            const int row = at / TILE_K;
            const uint32_t column = step * TILE_K + at % TILE_K;
            const bool exists = first_row + row < problem.m && column < problem.k;
            const size_t from = static_cast<size_t>(first_row + row) * problem.k + column;
            Act* to = reinterpret_cast<Act*>(shared + x_slots + slot * x_bytes +
                                             swizzled(row, at % TILE_K / 8));
            to[at % 8] = exists ? problem.x[from] : Number<Act>::from_f32(0.0f);
        }
    }

    // sums += the products of step `step`.
    __device__ __forceinline__ void multiply(Sums& sums, uint32_t step, int slot) {
        const uint8_t* codes_piece = shared + codes_slots + slot * piece_bytes;
        const uint8_t* first_header = shared + header_slot(step) + lane / 4 * Format::part_bytes;
        typename Format::Header headers[WARP_OPERANDS];
#pragma unroll
        for (int j = 0; j < WARP_OPERANDS; ++j) {
            headers[j] = Format::read_header(first_header + j * 8 * Format::part_bytes,
                                             step % header_steps);
        }
        typename Format::Codes codes;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Format::read_codes(codes, codes_piece, half, lane);
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
        const uint8_t* from = shared + x_slots + slot * x_bytes;
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
            const int row = warp_row + 16 * r + lane % 16;
            ptx::ldmatrix_x4(x[r],
                             ptx::shared_address(from + swizzled(row, 2 * columns + lane / 16)));
        }
    }

    // Waits until the tile of the oldest step on its way is whole, and until nobody reads the one
    // before. There is one group of copies for each step, empty ones too, so all but the newest
    // stages - 2 must be there.
    __device__ __forceinline__ void await_step() {
        if (is_split) {
            ptx::cp_async_wait<(own_stages > 2 ? own_stages - 2 : 0)>();
            // The slots are the warp's own.
            __syncwarp();
        } else {
            ptx::cp_async_wait<stages - 2>();
            __syncthreads();
        }
    }

    // totals = the sums of the splits from tile `step` to `end` of k, added in order.
    __device__ __forceinline__ void run(Sums& totals, uint32_t step, uint32_t end) {
        Sums sums;
        clear(totals);
        clear(sums);
        const int num_stages = is_split ? own_stages : stages;
        uint32_t split_end = step + problem.steps_per_split;
        // Of the step that is fetched; the one before it in the ring is multiplied last.
        int next_slot = 0;
        // Steps from the one that is multiplied next to the one that is fetched.
        int ahead = 0;
        while (step < end) {
            const bool is_full = ahead == num_stages - 1;
            if (is_full) await_step();
            if (step + ahead < end) fetch(step + ahead, next_slot);
            ptx::cp_async_commit();
            next_slot = next_slot + 1 == num_stages ? 0 : next_slot + 1;
            if (!is_full) {
                ++ahead;
                continue;
            }
            // All slots are in use: behind the newest step lies the oldest.
            multiply(sums, step, next_slot);
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

    // Brings the sums of all warps to shared memory, [warps side by side, block_m, OUT_STRIDE],
    // where the tiles were.
    __device__ __forceinline__ void collect(const Sums& sums) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < row_tiles * WARP_OPERANDS * 2; ++i) {
            const int r = i / 2 / WARP_OPERANDS, j = i / 2 % WARP_OPERANDS, below = i % 2;
            const int row = warp_row + 16 * r + 8 * below + lane / 4;
            const int column = 8 * j + 2 * (lane % 4);
            *reinterpret_cast<float2*>(collected(warp_piece, row) + column) =
                make_float2(sums[r][j][2 * below], sums[r][j][2 * below + 1]);
        }
        __syncthreads();
    }

    __device__ __forceinline__ float* collected(int warp, int row) {
        return reinterpret_cast<float*>(shared) + (warp * block_m + row) * OUT_STRIDE;
    }

    // Stores the collected sums four columns at a time; those of several splits are added as `run`
    // does it. One split more, or 0 before the first, changes no bit of a total: no total is -0.
    __device__ __forceinline__ void finish() {
        const uint32_t num_rows = min(static_cast<uint32_t>(block_m), problem.m - first_row);
        const int quads = (is_split ? WARP_N : TILE_N) / 4;
        const int num_splits =
            is_split ? (num_steps + problem.steps_per_split - 1) / problem.steps_per_split : 1;
#pragma unroll 1
        for (uint32_t at = thread; at < num_rows * quads; at += threads) {
            const int row = at / quads, quad = at % quads;
            float totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
            for (int split = 0; split < num_splits; ++split) {
                const float4 sums = *reinterpret_cast<const float4*>(
                    collected(split + quad / (WARP_N / 4), row) + quad % (WARP_N / 4) * 4);
                totals[0] = __fadd_rn(totals[0], sums.x);
                totals[1] = __fadd_rn(totals[1], sums.y);
                totals[2] = __fadd_rn(totals[2], sums.z);
                totals[3] = __fadd_rn(totals[3], sums.w);
            }
            store(totals, first_row + row, blockIdx.y * (quads * 4) + quad * 4);
        }
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
        *reinterpret_cast<float4*>(static_cast<float*>(problem.out) + at) =
            make_float4(totals[0], totals[1], totals[2], totals[3]);
    }

    __device__ __forceinline__ void store_one(size_t at, float value) {
        if (problem.epilogue == STORE_ACT) {
            static_cast<Act*>(problem.out)[at] = Number<Act>::from_f32(value);
            return;
        }
        static_cast<float*>(problem.out)[at] = value;
    }
};

template <typename Act, typename Format, int block_m, int stages, int own_stages>
__device__ __forceinline__ void multiply(const Problem<Act>& problem) {
    extern __shared__ __align__(128) uint8_t shared[];
    using Job = Multiply<Act, Format, block_m, stages, own_stages>;
    Job job(problem, shared);
    typename Job::Sums totals;
    uint32_t first = 0, end = job.num_steps;
    if (job.is_split) {
        first = min(job.warp_piece * problem.steps_per_split, job.num_steps);
        end = min(first + problem.steps_per_split, job.num_steps);
    }
    job.run(totals, first, end);
    job.collect(totals);
    job.finish();
}

// A kernel: its name, then what it is made of. Grid: x rows / block_m, y n / 128, or n / 32 with
// splits side by side (all rounded up). Arguments: out [m, n] of Act or f32; x [m, k]; W as
// formats.cuh says; bias [n] or null.
#define LINEAR_KERNEL(name, Act, Format, block_m, stages, own_stages)                             \
    extern "C" __global__ void __launch_bounds__(threads_for(block_m), block_m > 64 ? 1 : 2)      \
        name(void* out, const Act* x, const uint8_t* codes, const uint8_t* headers,               \
             const float* bias, uint32_t m, uint32_t n, uint32_t k, uint32_t steps_per_split,     \
             uint32_t epilogue, uint32_t splits) {                                                \
        const Problem<Act> problem = {out, x, codes, headers, bias, m, n, k, steps_per_split,     \
                                      static_cast<Epilogue>(epilogue),                            \
                                      static_cast<Splits>(splits)};                               \
        multiply<Act, Format, block_m, stages, own_stages>(problem);                              \
    }
