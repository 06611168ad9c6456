// Kernels of the driver's tests. The module images beside this file are made from it by `make.sh`.

// out[i] = in[i] * factor
extern "C" __global__ void __launch_bounds__(256)
scale(float* out, const float* in, float factor, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i] * factor;
}

// out[0] = sum of in[0..blockDim.x), through dynamic shared memory
extern "C" __global__ void __launch_bounds__(128)
shared_sum(unsigned* out, const unsigned* in) {
    extern __shared__ unsigned partial[];
    partial[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned sum = 0;
        for (unsigned i = 0; i < blockDim.x; i++) sum += partial[i];
        out[0] = sum;
    }
}

// As shared_sum, without the barrier.
extern "C" __global__ void __launch_bounds__(128)
racing_sum(unsigned* out, const unsigned* in) {
    extern __shared__ unsigned partial[];
    partial[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x == 0) {
        unsigned sum = 0;
        for (unsigned i = 0; i < blockDim.x; i++) sum += partial[i];
        out[0] = sum;
    }
}

// x[i] += amount, for one block
extern "C" __global__ void __launch_bounds__(1024)
add(unsigned* x, unsigned amount, unsigned n) {
    if (threadIdx.x < n) x[threadIdx.x] += amount;
}

// A value of every size as parameters: out[0..4)
extern "C" __global__ void
parameters(unsigned long long* out, unsigned char a, unsigned short b, unsigned c, unsigned long long d) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

// Reads 4 bytes at a given address, however aligned.
extern "C" __global__ void
read_at(unsigned* out, unsigned long long address) {
    out[0] = *(const unsigned*)address;
}

__device__ unsigned module_variable[4] = {1, 2, 3, 4};

extern "C" __global__ void
read_variable(unsigned* out) {
    out[threadIdx.x] = module_variable[threadIdx.x];
}
