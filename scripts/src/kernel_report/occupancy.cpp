// Occupancy by NVIDIA's own calculator, cuda_occupancy.h. Reads lines of
//   registers static_shared dynamic_shared threads
// and writes for each the thread blocks that one multiprocessor of A100, H100 and B200 holds.
#include <cuda_occupancy.h>
#include <stdio.h>

struct Device {
    int major, minor, multiprocessors;
    size_t shared_kib, shared_optin_kib;
};

// Compute capability, multiprocessors of the largest product, and shared memory: CUDA C++ Programming
// Guide, "Technical Specifications per Compute Capability". Registers and threads are alike.
static const Device DEVICES[] = {
    {8, 0, 108, 164, 163},
    {9, 0, 132, 228, 227},
    {10, 0, 148, 228, 227},
};

static int blocks(const Device& device, int registers, size_t fixed, size_t dynamic, int threads) {
    cudaOccDeviceProp prop = {};
    prop.computeMajor = device.major;
    prop.computeMinor = device.minor;
    prop.maxThreadsPerBlock = 1024;
    prop.maxThreadsPerMultiprocessor = 2048;
    prop.regsPerBlock = prop.regsPerMultiprocessor = 65536;
    prop.warpSize = 32;
    prop.sharedMemPerBlock = 48 << 10;
    prop.sharedMemPerMultiprocessor = device.shared_kib << 10;
    prop.sharedMemPerBlockOptin = device.shared_optin_kib << 10;
    prop.reservedSharedMemPerBlock = 1 << 10;
    prop.numSms = device.multiprocessors;
    cudaOccFuncAttributes function = {};
    function.maxThreadsPerBlock = threads;
    function.numRegs = registers;
    function.sharedSizeBytes = fixed;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = dynamic;
    cudaOccDeviceState state = {};
    cudaOccResult result = {};
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &prop, &function, &state,
                                                                 threads, dynamic);
    return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1;
}

int main() {
    int registers, threads;
    size_t fixed, dynamic;
    while (scanf("%d %zu %zu %d", &registers, &fixed, &dynamic, &threads) == 4) {
        for (const Device& device : DEVICES) {
            printf("%d ", blocks(device, registers, fixed, dynamic, threads));
        }
        printf("\n");
    }
    return 0;
}
