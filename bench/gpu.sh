#!/usr/bin/env bash
# Run everything that needs a GPU, each command in less than ten minutes, and print all tables at the end.
#
#     bench/gpu.sh [tests|attention|training|generation|nccl|profile|memory|all ...]
#
# It needs a checkout, PyTorch with CUDA, and numpy, regex, pyyaml, ruamel.yaml, safetensors, filelock, psutil and tqdm.
# What else is missing (transformers, pytest, a nanoGPT checkout) is reported as not measured. It installs and downloads
# nothing. The settings are environment variables:
#
#     PYTHON=python3  OUT=bench-results  NANOGPT=  SHAPE=125m  BATCH_SIZE=32  REPEATS=2  DEVICE=cuda
#
# DEVICE=cpu SHAPE=0.8m BATCH_SIZE=2 REPEATS=1 tries out the script on a machine without a GPU.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3} out=${OUT:-bench-results} nanogpt=${NANOGPT:-} device=${DEVICE:-cuda}
shape=${SHAPE:-125m} batch_size=${BATCH_SIZE:-32} repeats=${REPEATS:-2}
all_steps=(tests attention training generation nccl profile memory)
failed=0 names=()

# record NAME COMMAND...: run a command with a time limit, and write its output to $out/NAME.md and the terminal.
record() {
    local name=$1 status
    shift
    names+=("$name")
    echo "== $name: $*" >&2
    timeout --signal=INT --kill-after=10 9.8m "$@" | tee "$out/$name.md"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "== $name: exit status $status" | tee -a "$out/$name.md" >&2
        failed=1
    fi
}

tests() {
    record tests-attention "$python" -m bench.attention.errors --device "$device"
    if "$python" -c 'import pytest' 2>/dev/null; then
        # The other tests run on the CPU, wherever they are started.
        record tests "$python" -m pytest -q -p no:cacheprovider -W default -m "slow or not slow" tests/model/fused
    else
        echo "== tests: pytest is not installed; only attention was tested" >&2
    fi
}

attention() {
    record attention "$python" -m bench.attention --json "$out/attention.json"
}

training() {
    record training "$python" -m bench.training --device "$device" --shapes "$shape" --dtypes bfloat16 --compile yes \
        --batch-sizes "$batch_size" --allocators default --systems lm transformers nanogpt --repeats "$repeats" \
        ${nanogpt:+--nanogpt "$nanogpt"} --json "$out/training.json"
}

# On CUDA, lm is the decoding step compiled into a graph, and lm-pytorch the same step without compilation.
generation() {
    record generation "$python" -m bench.generation --device "$device" --shapes "$shape" --dtypes bfloat16 \
        --systems lm lm-pytorch transformers --repeats "$repeats" --json "$out/generation.json"
}

# A tiny training in a process group of one process, which communicates with NCCL (on a CPU with gloo).
nccl() {
    record nccl "$python" -m torch.distributed.run --standalone --nproc-per-node 1 \
        -m bench.training.one_process --device "$device"
}

profile_step() {
    record "$1" "$python" -m bench.training.profile_step --device "$device" --shape "$shape" \
        --batch-size "$batch_size" "${@:2}" --json "$out/$1.json"
}

profile() {
    profile_step profile-sdpa --attention sdpa
    profile_step profile-flash --attention flash
}

memory() {
    profile_step memory-eager --attention sdpa --no-compile
    profile_step memory-eager-float32 --attention sdpa --no-compile --dtype float32
}

main() {
    local steps=("${@:-all}") step name
    if [ "${steps[*]}" = all ]; then
        steps=("${all_steps[@]}")
    fi
    for step in "${steps[@]}"; do
        if [[ " ${all_steps[*]} " != *" $step "* ]]; then
            echo "error: expected ${all_steps[*]} or all, got '$step'" >&2
            exit 2
        fi
    done
    if ! "$python" -c 'import filelock, numpy, psutil, regex, ruamel.yaml, safetensors, torch, tqdm, yaml'; then
        echo "error: $python lacks a package; see the first lines of $0" >&2
        exit 1
    fi
    if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "error: PyTorch finds no GPU; DEVICE=cpu SHAPE=0.8m BATCH_SIZE=2 tries out the script without one" >&2
        exit 1
    fi
    mkdir -p "$out" || exit 1
    for step in "${steps[@]}"; do
        "$step"
    done
    printf '\n\n# Results (%s)\n' "$out"
    for name in "${names[@]}"; do
        printf '\n## %s\n\n' "$name"
        tail -n 200 "$out/$name.md"
    done
    exit "$failed"
}

main "$@"
