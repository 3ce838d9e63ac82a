#!/usr/bin/env bash
# Fetches what NVIDIA publishes for Python and what the tests can use without a GPU: run-time compilers and headers of two
# versions of CUDA, headers of three versions of NCCL. About 1.5 GB.
#
# Usage: tools/nvidia/fetch.sh FOLDER, then NUMALIGN_TEST_NVIDIA=FOLDER for `cargo test --workspace --test emulated_gpu`.
set -euo pipefail
folder=${1:?the folder to fill}
python=${PYTHON:-python3}

# package FOLDER PACKAGE...: each version into a folder of its own.
package() {
    local target=$folder/$1
    shift
    [ -d "$target" ] || "$python" -m pip install --quiet --no-deps --no-compile --target "$target" "$@"
}

package cuda-12.9 nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86
package cuda-13 nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt
package nccl-2.19.3 nvidia-nccl-cu12==2.19.3
package nccl-2.27.3 nvidia-nccl-cu12==2.27.3
package nccl-newest nvidia-nccl-cu12
