#!/bin/sh
# Makes the committed .ptx from the .cu; needs nvcc 13.0. Usage: build.sh [NVCC]
set -e
cd "$(dirname "$0")"
for source in *.cu; do
  "${1:-nvcc}" -std=c++17 -O3 -lineinfo -arch=compute_80 -ptx "$source" -o "${source%.cu}.ptx"
  # Only names of files, not where they lay.
  sed -i 's|^\(\s*\.file\s*[0-9]* \)".*/\([^/]*\)"|\1"\2"|' "${source%.cu}.ptx"
done
