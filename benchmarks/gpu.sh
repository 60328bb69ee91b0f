#!/usr/bin/env bash
# All that is measured on a GPU, in under eight minutes: benchmarks/gpu.sh [--tiny] (on a CPU, tiny sizes, in a minute).
# Every part is a process with a time of its own, so that one that fails or hangs costs the others nothing. Figures and
# logs are in ${OUT:-build/gpu}; the last part writes the section of benchmarks/RESULTS.md from whatever there is.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
sizes=()
if [ "${1:-}" = --tiny ]; then sizes=(--tiny --device cpu); fi
mkdir -p "$out"
rm -f "$out"/figures.jsonl "$out"/profile.txt "$out"/parts.log
failed=0

# part SECONDS WHAT [OPTION...]: one part of benchmarks/gpu, which begins nothing new after four fifths of its time.
part() {
  local limit=$1; shift
  echo "== $* (at most $limit s)" | tee -a "$out/parts.log"
  timeout -k 5 "$limit" "$python" -m benchmarks.gpu "$@" --out "$out" --seconds $((limit * 4 / 5)) "${sizes[@]}" \
    >> "$out/parts.log" 2>&1 || { echo "== failed: $* ($?)" | tee -a "$out/parts.log"; failed=1; }
}

part 25 ceilings
echo "== CUDA tests (at most 90 s)"
timeout -k 5 90 "$python" -m pytest -q -n "${WORKERS:-4}" --maxfail=30 -p no:cacheprovider tests/cuda tests/ir/test_kernels.py \
  > "$out/cuda-tests.log" 2>&1 || failed=1
tail -n 3 "$out/cuda-tests.log"
part 50 table opt-125m
part 25 kernels opt-125m
part 40 table smollm2-135m
part 50 table llama-1.2b
part 45 lora opt-125m --compiled
part 30 twins llama-1.2b
part 20 twins opt-125m
part 20 kernels llama-1.2b
part 30 graphs smollm2-135m
part 30 decode smollm2-135m
part 20 report
exit $failed
