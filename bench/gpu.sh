#!/usr/bin/env bash
# All measurements on a GPU, each step in under ten minutes, and their tables together at the end.
#
#     bench/gpu.sh [tests|attention|training|profile|memory|all ...]
#
# Needs a checkout, PyTorch with CUDA, and numpy, regex, pyyaml, safetensors, filelock, tqdm; what else is missing
# (transformers, pytest, a nanoGPT) is named as not measured. Nothing is installed or downloaded. Settings come from the
# environment:
#
#     PYTHON=python3  OUT=bench-results  NANOGPT=  SHAPE=125m  BATCH_SIZE=32  REPEATS=2  DEVICE=cuda
#
# DEVICE=cpu SHAPE=laptop BATCH_SIZE=2 REPEATS=1 tries the script itself where there is no GPU.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3} out=${OUT:-bench-results} nanogpt=${NANOGPT:-} device=${DEVICE:-cuda}
shape=${SHAPE:-125m} batch_size=${BATCH_SIZE:-32} repeats=${REPEATS:-2}
minutes=9.8
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

# Run a command with a limit of time; its output is the file NAME.md, and goes to the terminal too.
record() {
    local name=$1 status
    shift
    echo "== $name: $*" >&2
    timeout --signal=INT --kill-after=10 "${minutes}m" "$@" | tee "$out/$name.md"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "== $name: exit status $status" | tee -a "$out/$name.md" >&2
        failed=1
    fi
}

# The kernels of lm/model/flash_kernels.py against PyTorch's attention in float64, values and gradients.
compare_attention() {
    "$python" - "$device" <<'EOF'
import sys

import torch

from lm.model.fused.flash_attention import flash_attention

device, worst = sys.argv[1], 0.0
print("| dtype | T | K | error of output | of q's gradient | k's | v's |\n|---|---|---|---|---|---|---|")
for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 5e-2)):
    for T in (128, 300, 1024):
        for K in (16, 32, 64, 128):
            torch.manual_seed(1)
            qkv = [torch.randn(2, 3, T, K, device=device).to(dtype).requires_grad_() for _ in range(3)]
            exact = [x.detach().double().requires_grad_() for x in qkv]
            weights = torch.randn(2, 3, T, K, device=device)
            out = flash_attention(*qkv)
            expected = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True)
            (out.float() * weights).sum().backward()
            (expected * weights).sum().backward()
            pairs = [(out, expected)] + [(x.grad, y.grad) for x, y in zip(qkv, exact)]
            errors = [((x.double() - y).norm() / y.norm()).item() for x, y in pairs]
            worst = max(worst, *(error / bound for error in errors))
            print(f"| {str(dtype)[6:]} | {T} | {K} | {' | '.join(f'{error:.1e}' for error in errors)} |")
sys.exit(f"an error is {worst:.1f} times what rounding explains" if worst > 1 else 0)
EOF
}
export -f compare_attention
export python device

tests() {
    record tests-attention bash -c compare_attention
    if "$python" -c 'import pytest' 2>/dev/null; then
        # Modules of tests that need a package which is not here are reported, and the others run.
        record tests "$python" -m pytest -q -p no:cacheprovider -W default --continue-on-collection-errors \
            -m "slow or not slow" tests/model tests/training
    else
        echo "== tests: pytest is not installed; compared attention only" >&2
    fi
}

attention() {
    record attention "$python" bench/attention.py --json "$out/attention.json"
}

training() {
    record training "$python" bench/training.py --device "$device" --shapes "$shape" --dtypes bfloat16 --compile yes \
        --batch-sizes "$batch_size" --allocators default --systems lm transformers nanogpt --repeats "$repeats" \
        ${nanogpt:+--nanogpt "$nanogpt"} --json "$out/training.json"
}

step() {
    record "$1" "$python" bench/profile_step.py --device "$device" --shape "$shape" --batch-size "$batch_size" "${@:2}" \
        --json "$out/$1.json"
}

profile() {
    step profile-sdpa --attention sdpa
    step profile-flash --attention flash
}

memory() {
    step memory-eager --attention sdpa --no-compile
    step memory-eager-float32 --attention sdpa --no-compile --dtype float32
}

main() {
    local steps=("${@:-all}") step
    for step in "${steps[@]}"; do
        case $step in
            tests | attention | training | profile | memory) ;;
            all)
                steps=(tests attention training profile memory)
                break
                ;;
            *)
                echo "error: no step '$step'; there are tests, attention, training, profile, memory, all" >&2
                exit 2
                ;;
        esac
    done
    if ! "$python" -c 'import numpy, regex, yaml, safetensors, filelock, tqdm, torch'; then
        echo "error: $python lacks a package that is needed; see the head of $0" >&2
        exit 1
    fi
    if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "error: PyTorch finds no GPU; DEVICE=cpu SHAPE=laptop BATCH_SIZE=2 tries the script without one" >&2
        exit 1
    fi
    if ! mkdir -p "$out"; then
        exit 1
    fi
    for step in "${steps[@]}"; do
        "$step"
    done
    printf '\n\n# Results (%s)\n' "$out"
    for name in tests-attention tests attention training profile-sdpa profile-flash memory-eager memory-eager-float32; do
        if [ -f "$out/$name.md" ]; then
            printf '\n## %s\n\n' "$name"
            case $name in
                tests) tail -n 30 "$out/$name.md" ;;
                *) cat "$out/$name.md" ;;
            esac
        fi
    done
    exit "$failed"
}

main "$@"
