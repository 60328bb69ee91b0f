#!/usr/bin/env bash
# All that is measured on a GPU, in under eight minutes: benchmarks/gpu.sh [--tiny] (on a CPU, tiny sizes, in a minute).
# Every part is a process with a time of its own, so that one that fails or hangs costs the others nothing. Figures and
# logs are in ${OUT:-build/gpu}; the last part writes the section of benchmarks/RESULTS.md, its plots, and the table by
# which the package chooses its kernels, from whatever there is. Where they were not measured here:
#   python -m benchmarks.gpu report --out FOLDER_OF_THE_FIGURES
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
sizes=()
if [ "${1:-}" = --tiny ]; then sizes=(--tiny --device cpu); fi
mkdir -p "$out"
rm -rf "$out"/figures.jsonl "$out"/profile.txt "$out"/parts.log "$out"/programs
failed=0

# part SECONDS WHAT [OPTION...]: one part of benchmarks/gpu, which begins nothing new after four fifths of its time.
part() {
  local limit=$1 began=$SECONDS code=0; shift
  echo "== $* (at most $limit s)" | tee -a "$out/parts.log"
  timeout -k 5 "$limit" "$python" -m benchmarks.gpu "$@" --out "$out" --seconds $((limit * 4 / 5)) "${sizes[@]}" \
    >> "$out/parts.log" 2>&1 || { code=$?; failed=1; echo "== failed: $* ($code)" | tee -a "$out/parts.log"; }
  echo "== $* took $((SECONDS - began)) s" >> "$out/parts.log"
}

nvidia-smi > "$out/machine.txt" 2>&1
"$python" -m pip list >> "$out/machine.txt" 2>&1
part 20 ceilings
# Compiling the shapes takes the host while the tests take the GPU.
timeout -k 5 80 "$python" -m benchmarks.gpu prepare --out "$out" "${sizes[@]}" > "$out/prepare.log" 2>&1 &
preparing=$!
echo "== CUDA tests (at most 80 s)"
timeout -k 5 80 "$python" -m pytest -v -n "${WORKERS:-6}" --maxfail=30 -p no:cacheprovider tests/cuda \
  tests/ir/test_kernels.py > "$out/cuda-tests.log" 2>&1 || failed=1
tail -n 3 "$out/cuda-tests.log"
wait "$preparing" || failed=1
part 40 table opt-125m
part 30 pairs opt-125m
part 50 table llama-1.2b
part 20 kernels opt-125m
part 30 pairs llama-1.2b
part 30 table smollm2-135m
part 20 kernels llama-1.2b
part 20 graphs smollm2-135m
part 20 decode smollm2-135m
part 20 twins llama-1.2b
part 80 lora opt-125m --compiled
part 10 report
exit $failed
