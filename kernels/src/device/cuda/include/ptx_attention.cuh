// Inline PTX that only attention needs; the rest is in ptx.cuh.
#pragma once

namespace ptx {

// 2^x within about 2 units in the last place; exactly 1 at 0 and 0 at minus infinity. Source: the
// PTX ISA on ex2.
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace ptx
