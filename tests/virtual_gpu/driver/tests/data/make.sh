#!/bin/sh
# Makes the module images of the driver's tests. Needs nvcc 13.0; NVCC says where it is.
set -eu
cd "$(dirname "$0")"
nvcc="${NVCC:-nvcc}"
ptx="-gencode arch=compute_80,code=compute_80"
# PTX and a cubin, as the server's kernels are shipped.
"$nvcc" -fatbin -gencode arch=compute_80,code=sm_80 $ptx --no-compress probe.cu -o probe.fatbin
"$nvcc" -fatbin $ptx --compress-mode=speed probe.cu -o probe_lz4.fatbin
"$nvcc" -fatbin $ptx --compress-mode=balance probe.cu -o probe_zstd.fatbin
"$nvcc" -fatbin -gencode arch=compute_80,code=sm_80 --no-compress probe.cu -o probe_cubin_only.fatbin
"$nvcc" -ptx -arch=compute_90 probe.cu -o probe_sm90.ptx
