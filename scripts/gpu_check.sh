#!/bin/sh
# The GPU check: on a machine with an NVIDIA GPU and nothing but the binary `monsoon` and a folder (or
# GGUF file) of a model, tries every kernel against the reference, times what there is to time, serves
# the model on the GPU and loads it for a short while. Leaves a folder to send back.
#
#   gpu_check.sh MONSOON MODEL [FOLDER]
#
# MONSOON: the binary. MODEL: a folder with config.json, or a .gguf file. FOLDER: for the report, by
# default gpu-check-DATE. Needs a POSIX shell. Ends with 0 when all went well, 1 when something failed,
# 2 when it was called wrongly. GPU_CHECK_PORT sets the server's port (default 18080), GPU_CHECK_WAIT
# the seconds that it may take to start (default 600); GPU_CHECK_QUICK=1 tries a few cases and sends a
# few requests only, as for a virtual GPU.
set -eu

complain() {
    printf 'gpu_check: %s\n' "$*" >&2
}

if [ "$#" -lt 2 ] || [ "$#" -gt 3 ]; then
    complain "usage: gpu_check.sh MONSOON MODEL [FOLDER]"
    exit 2
fi
monsoon=$1
model=$2
folder=${3:-gpu-check-$(date -u +%Y%m%dT%H%M%SZ)}
port=${GPU_CHECK_PORT:-18080}
wait_max=${GPU_CHECK_WAIT:-600}
quick=${GPU_CHECK_QUICK:-0}
trial=timed
if [ "$quick" = 1 ]; then
    trial=short
fi

case $monsoon in
    */*) ;;
    *) monsoon=./$monsoon ;;
esac
if [ ! -x "$monsoon" ]; then
    complain "$monsoon is no program that can be run"
    exit 2
fi
if [ ! -f "$model" ] && [ ! -f "$model/config.json" ]; then
    complain "$model is neither a file nor a folder with config.json"
    exit 2
fi
if ! mkdir -p "$folder"; then
    complain "the folder $folder cannot be made"
    exit 2
fi

server=
stop_server() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || :
        wait "$server" 2>/dev/null || :
        server=
    fi
}
trap stop_server EXIT
trap 'exit 1' HUP INT TERM

failed=
step_failed() {
    failed="$failed $1"
    complain "$1 failed; see $folder/$2"
}

# Nothing is fetched: what is needed is here.
export HF_HUB_OFFLINE=1

{
    date -u
    uname -a
    "$monsoon" --version
    if command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi || :
    else
        echo "no nvidia-smi"
    fi
} >"$folder/machine.txt" 2>&1

echo "trying and timing the kernels: $folder/doctor.json"
if ! "$monsoon" doctor --gpus "$trial" --json "$folder/doctor.json" >"$folder/doctor.txt" 2>&1; then
    step_failed doctor doctor.txt
fi

# is_serving: whether the server answers; the load generator is the only HTTP client that is surely here.
is_serving() {
    "$monsoon" bench --url "http://127.0.0.1:$port" --num-requests 1 --input-len 8 --output-len 1 \
        --concurrency 1 --warmup 0 >"$folder/first-request.txt" 2>&1
}

load() {
    name=$1
    shift
    echo "load $name: $folder/bench-$name.json"
    if ! "$monsoon" bench --url "http://127.0.0.1:$port" --json "$folder/bench-$name.json" "$@" \
        >"$folder/bench-$name.txt" 2>&1; then
        step_failed "bench-$name" "bench-$name.txt"
    fi
}

echo "serving $model on the GPU: $folder/serve.txt"
"$monsoon" serve "$model" --device cuda --host 127.0.0.1 --port "$port" >"$folder/serve.txt" 2>&1 &
server=$!
waited=0
until is_serving; do
    if ! kill -0 "$server" 2>/dev/null; then
        server=
        step_failed serve serve.txt
        break
    fi
    if [ "$waited" -ge "$wait_max" ]; then
        step_failed "serve (no answer within $wait_max s)" serve.txt
        stop_server
        break
    fi
    sleep 1
    waited=$((waited + 1))
done

if [ -n "$server" ] && [ "$quick" = 1 ]; then
    load quick --num-requests 2 --concurrency 2 --input-len 8 --output-len 4
    stop_server
elif [ -n "$server" ]; then
    load one --num-requests 4 --concurrency 1 --input-len 128 --output-len 64
    load eight --num-requests 32 --concurrency 8 --input-len 256 --output-len 64
    load sixty-four --num-requests 128 --concurrency 64 --input-len 256 --output-len 64
    stop_server
fi

if [ -n "$failed" ]; then
    echo "failed:$failed" >"$folder/result.txt"
    complain "failed:$failed"
    exit 1
fi
echo "all steps succeeded" >"$folder/result.txt"
echo "all steps succeeded; the report is in $folder"
