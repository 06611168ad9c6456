// Columns of several parts -> rows; nothing is computed.

#include <stdint.h>

constexpr int THREADS = 256;

// grid [ceil(columns of the largest part / (4 * THREADS)), num_parts, num_rows]; rows of len
// values. Part p has the columns from len * p / num_parts on (comm::part_range), its rows one after
// the other from parts + p * part_stride on.
extern "C" __global__ void __launch_bounds__(THREADS)
    join_columns_f32(float* out, const float* parts, uint64_t len, uint64_t part_stride) {
    const uint64_t first = len * blockIdx.y / gridDim.y;
    const uint64_t columns = len * (blockIdx.y + 1) / gridDim.y - first;
    const float* from = parts + blockIdx.y * part_stride + blockIdx.z * columns;
    float* to = out + blockIdx.z * len + first;
    const uint64_t i = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
    // Where every row of this part begins on a border of 16 bytes, here and there.
    if ((len | first | columns | part_stride) % 4 == 0) {
        if (i < columns) {
            *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
        }
    } else {
        for (uint64_t j = i; j < columns && j < i + 4; ++j) {
            to[j] = from[j];
        }
    }
}
