#!/usr/bin/env bash
# The codec against the same work in PyTorch, in turns, so that other load on the machine affects both:
#
#     tools/compare_codec.sh [ROUNDS] [flags of `templar bench codec`]
#
# Needs a Python with torch in $PYTHON (python3) and a built binary in $TEMPLAR (built with cargo otherwise). Prints
# medians and ratios on one thread, and the gain from a second thread.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
rounds=5
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then rounds="$1"; shift; fi
if [[ -z "${TEMPLAR:-}" ]]; then
    cargo build --release --bin templar >&2
    TEMPLAR="${CARGO_TARGET_DIR:-target}/release/templar"
fi
results="$(mktemp)"
trap 'rm -f "$results"' EXIT
for ((round = 0; round < rounds; round++)); do
    "$TEMPLAR" bench codec "$@" --threads 1 --json 2>/dev/null | "$python" -c 'import json, sys; print(json.dumps(json.load(sys.stdin)))' >>"$results"
    "$python" tools/bench_codec_torch.py --threads 1 >>"$results"
    "$TEMPLAR" bench codec "$@" --threads 2 --json 2>/dev/null | "$python" -c 'import json, sys; print(json.dumps(json.load(sys.stdin)))' >>"$results"
done
"$python" - "$results" <<'PY'
import json, sys
from statistics import median

rows = [json.loads(line) for line in open(sys.argv[1])]
ours, torch, two = rows[0::3], rows[1::3], rows[2::3]
print("| format | M params/s | PyTorch | ratio | of copy bandwidth | two threads against one |")
print("|---|---|---|---|---|---|")
for nth, row in enumerate(ours[0]):
    of = " of the DCT" if row["transform"] == "dct" else ""
    for field, name in [("encode_params_per_s", "encode"), ("decode20_params_per_s", "decode and aggregate 20")]:
        one = [round[nth][field] for round in ours]
        ratios = [round[nth][field] / other[field] for round, other in zip(ours, torch)]
        scaling = [second[nth][field] / first[nth][field] for first, second in zip(ours, two)]
        share = median(round[nth]["encode_fraction_of_copy"] for round in ours)
        copy = f"{100 * share:.0f} %" if field.startswith("encode") else ""
        theirs = median(other[field] for other in torch)
        print(f"| {row['format']}{of}, {name} | {median(one) / 1e6:.0f} | {theirs / 1e6:.0f} | {median(ratios):.1f} | {copy} | {median(scaling):.2f} |")
print(f"\n{ours[0][0]['params']:,} parameters, {len(ours)} rounds, copy {median(row[0]['copy_gb_per_s'] for row in ours):.1f} GB/s on one thread")
PY
