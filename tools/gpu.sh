#!/usr/bin/env bash
# Everything that docs/benchmarks/gpu.md needs of one GPU, the most important part first, in eight minutes:
#
#     OUT=gpu-out tools/gpu.sh
#     tools/gpu.sh --dry        # the same on a CPU, with tiny models
#
# Needs a Python with torch and pytest in $PYTHON (python3), and neither a network nor a build. You may set BUDGET_S, the
# seconds after which no part goes on (470). Each part has a limit of its own too, so one that hangs does not cost the others.
# Writes into $OUT: device.jsonl, bench.jsonl, steps.jsonl, profile.jsonl, tests.jsonl, parts.jsonl, log.txt.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
out="${OUT:-gpu-out}"
budget_s="${BUDGET_S:-470}"
is_dry=""
if [[ "${1:-}" == --dry ]]; then is_dry=yes; fi
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -f "$out"/{device,bench,steps,profile,tests,parts}.jsonl "$out/log.txt"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD/python" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# part NAME LIMIT_S COMMAND…: runs a command, sorts the lines that it prints into files, and says how it ended.
part() {
    local name="$1" limit_s="$2" left_s=$((budget_s - SECONDS)) started_s=$SECONDS rc
    shift 2
    if ((left_s < 20)); then
        echo "{\"part\": \"$name\", \"skipped\": \"no time is left\"}" | tee -a "$out/parts.jsonl"
        return
    fi
    echo "== $name" >>"$out/log.txt"
    timeout -k 5 "$((limit_s < left_s ? limit_s : left_s))" "$@" >"$scratch/lines" 2>"$scratch/errors"
    rc=$?
    # Warnings of a compiler can be long.
    { grep -v '^{' "$scratch/lines"; tail -c 6000 "$scratch/errors"; } >>"$out/log.txt"
    "$python" - "$name" "$scratch/lines" "$out" "$rc" "$((SECONDS - started_s))" <<'PY'
import json, sys
from pathlib import Path
from statistics import median

name, lines, out, rc, seconds = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])


def put(file, row):
    with open(out / f"{file}.jsonl", "a") as target:
        target.write(json.dumps({"part": name, **row}) + "\n")


steps, is_whole = [], False
for line in lines.read_text(errors="replace").splitlines():
    try:
        row = json.loads(line)
        assert isinstance(row, dict)
    except (ValueError, AssertionError):
        continue
    if "step" in row:
        steps.append(row)
        put("steps", row)
    elif "profile" in row:
        put("profile", row)
    elif "preset" in row and "tokens_per_s" in row:
        is_whole = True
        put("bench", row)
        print(name, json.dumps({key: row[key] for key in ("mfu", "tokens_per_s", "of_matmul", "step_s", "failures")}))
    else:
        put("device", row)
        print(line)
if steps and not is_whole:
    # The part was ended before its result: the steps' times are what remains of it.
    typical = median([row["seconds"] for row in steps][min(5, len(steps) // 3):])
    put("bench", {"incomplete": True, "steps": len(steps), "tokens_per_s": steps[0]["tokens"] / typical})
row = {"rc": rc, "timed_out": rc in (124, 137), "seconds": seconds}
put("parts", row)
print(name, json.dumps(row), flush=True)
PY
    # The end of what went wrong, where whoever runs this sees it.
    if ((rc != 0)); then tail -n 5 "$scratch/errors" | cut -c1-300; fi
}

bench() {
    local name="$1" limit_s="$2"
    shift 2
    part "$name" "$limit_s" "$python" -m templar_torch.bench --steps 200 --curve "$@"
}

if [[ -n "$is_dry" ]]; then
    export TEMPLAR_TEST_DEVICE=cpu
    device=(--device cpu)
    one=(--preset tiny "${device[@]}") seven=(--preset tiny --layers 3 "${device[@]}") small=(--preset tiny "${device[@]}")
    probed=(--preset tiny "${device[@]}")
    one_s=2 seven_s=2 small_s=2 variant_s=1
else
    one=(--preset 1b) seven=(--preset 7b) small=(--preset 150m) probed=()
    one_s=40 seven_s=48 small_s=12 variant_s=12
    nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu \
        --format=csv,noheader 2>&1 | tee -a "$out/log.txt"
    # Some virtual machines do not support the memory that grows, which templar_torch asks for.
    check='import templar_torch, torch; torch.ones(1 << 28, device="cuda").sum().item()
print(torch.cuda.get_device_properties(0).total_memory)'
    if ! memory="$(timeout 90 "$python" -c "$check" 2>>"$out/log.txt" | tail -n 1)"; then
        export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False
        memory="$(timeout 60 "$python" -c "$check" 2>>"$out/log.txt" | tail -n 1)" || {
            echo "this Python's torch cannot use a GPU: see $out/log.txt" >&2
            exit 1
        }
        echo '{"part": "device", "expandable_segments": false}' >>"$out/device.jsonl"
    fi
    # 18 bytes per parameter: all layers need 135 GB, and fourteen show the same speed of a layer in 65.
    if ((memory < 145000000000)); then seven+=(--layers 14); fi
    if ((memory < 70000000000)); then seven=(--preset 7b --layers 4) one+=(--micro 2); fi
fi

part device 60 "$python" -m templar_torch.probe "${probed[@]}"
bench 1b 170 --seconds "$one_s" --profile "${one[@]}"
bench 7b 165 --seconds "$seven_s" --profile "${seven[@]}"
TEMPLAR_TEST_FIGURES="$out/tests.jsonl" part tests 110 "$python" -m pytest -q -p no:cacheprovider python/tests/test_device.py
bench 150m 90 --seconds "$small_s" "${small[@]}"
bench 1b-no-compile 75 --seconds "$variant_s" --no-compile "${one[@]}"
bench 1b-deterministic 90 --seconds "$variant_s" --deterministic "${one[@]}"
"$python" - "$out/tests.jsonl" <<'PY'
import pathlib, sys
file = pathlib.Path(sys.argv[1])
print(file.read_text() if file.exists() else "no figures of the tests\n", end="")
PY
echo "$SECONDS s; results in $out"
