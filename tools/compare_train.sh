#!/usr/bin/env bash
# The built-in engine against PyTorch, in turns, so that other load on the machine affects both:
#
#     tools/compare_train.sh [ROUNDS] [shape flags of `templar bench train`]
#
# Needs a Python with torch in $PYTHON (python3) and a built binary in $TEMPLAR (built with cargo otherwise). Prints medians and
# ratios for two shapes, or for the one that the flags describe. You may set THREADS, and SECONDS_EACH per measurement.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
threads="${THREADS:-2}"
seconds="${SECONDS_EACH:-5}"
rounds=3
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then rounds="$1"; shift; fi
if [[ -z "${TEMPLAR:-}" ]]; then
    cargo build --release --bin templar >&2
    TEMPLAR="${CARGO_TARGET_DIR:-target}/release/templar"
fi

compare() {
    local results
    results="$(mktemp)"
    for ((round = 0; round < rounds; round++)); do
        "$TEMPLAR" bench train "$@" --threads "$threads" --seconds "$seconds" --json >>"$results"
        "$python" tools/bench_train_torch.py "$@" --threads "$threads" --seconds "$seconds" >>"$results"
    done
    echo "$* (threads: $threads, rounds: $rounds)"
    "$python" - "$results" <<'PY'
import json, sys
from statistics import median

rows = [json.loads(line) for line in open(sys.argv[1])]
ours, theirs = rows[0::2], rows[1::2]
for field in ("train_tokens_per_s", "eval_tokens_per_s", "peak_memory_bytes"):
    a, b = [[row[field] for row in rows] for rows in (ours, theirs)]
    ratio = median(x / y for x, y in zip(a, b))
    print(f"  {field:20} {ours[0]['engine']} {median(a):,.0f}  {theirs[0]['engine']} {median(b):,.0f}  ratio {ratio:.2f}")
print(f"  {'eval over train':20} {median(row['eval_tokens_per_s'] / row['train_tokens_per_s'] for row in ours):.2f}")
print(f"  {'of the peak':20} {median(row['achieved_gflops'] / row['peak_gflops'] for row in ours):.2f}")
PY
    rm "$results"
}

if (($#)); then
    compare "$@"
else
    compare --layers 6 --width 256 --heads 8 --kv-heads 4 --ffn 688 --vocab 512 --seq 256 --batch 8
    compare --layers 12 --width 768 --heads 12 --kv-heads 12 --ffn 2048 --vocab 32000 --seq 512 --batch 2
fi
