#!/usr/bin/env bash
# What needs a GPU, without a network: bench/gpu.sh tests OUTDIR, and bench/gpu.sh bench OUTDIR; or
# all OUTDIR for both.
#
# Each builds the package for the GPU that is here (torch, pybind11, scikit-build-core, ninja and nvcc
# must be there). `tests` runs the whole suite with CUDA in its matrix, and compute-sanitizer on a few
# of the kernel's tests; `bench` runs the benchmarks and judges their goals. Each takes under 9 minutes
# with 16 cores, and PROXADAM_SECONDS gives it fewer or more. A step that fails or takes too long does
# not stop the next, and the exit status tells whether all went well. OUTDIR then has summary.txt, the
# logs in logs.tar.gz, and the benchmarks' JSON. Where there is no git, PROXADAM_COMMIT says which
# commit this is.
set -uo pipefail
cd "$(dirname "$0")/.."
usage="usage: bench/gpu.sh tests|bench|all OUTDIR"
part=${1:?$usage}
mkdir -p "${2:?$usage}"
out=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
budget=${PROXADAM_SECONDS:-520}
failed=0

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS COMMAND...: runs it for at most so long, and for what is left of the budget.
step() {
  local name=$1 limit=$2 begin=$SECONDS left=$((budget - SECONDS)) status=0 verdict
  shift 2
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$work/$name.log" 2>&1 || status=$?
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict="stopped after $limit s" failed=1 ;;
    *) verdict="FAILED ($status)" failed=1 ;;
  esac
  say "$name: $verdict, $((SECONDS - begin)) s: $(grep -v '^ *$' "$work/$name.log" | tail -1 | cut -c1-120)"
  tar -C "$work" -czf "$out/logs.tar.gz" $(cd "$work" && ls ./*.log) # now, in case this is cut short
}

tests() {
  local on_cuda='(cuda and not on_host) or their_device or mixed_in or than_torchs' workers=() short='(alignment and -3-adaptive) or (unscaled and scalar) or (every_length and fp32-fp32-fp32)' tool
  "$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) * 3 / 4))" -p no:benchmark)
  step kernel 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_kernel.py \
    tests/test_cuda_streams.py
  # All that has CUDA in its name or its parameters, and then the rest; but for the CUDA source on the
  # host's threads, which needs no GPU, and time.
  step suite 200 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests -k "$on_cuda" \
    --ignore tests/test_cuda_kernel.py --ignore tests/test_cuda_streams.py
  step rest 200 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests -k "not ($on_cuda)" \
    --ignore tests/test_cuda_on_host.py
  CUDA_VISIBLE_DEVICES='' step forks 60 "$python" -m pytest -q -p no:cacheprovider \
    tests/test_kernel.py tests/test_faults.py -k "forked or data_loader"
  for tool in memcheck racecheck; do # few tests: a sanitized step is slow
    if command -v compute-sanitizer >/dev/null; then
      step $tool 60 compute-sanitizer --tool $tool --error-exitcode 1 \
        --kernel-name kernel_substring=prox_adam \
        "$python" -m pytest -q -x -p no:cacheprovider tests/test_cuda_kernel.py \
        tests/test_rows_on_cuda.py -k "$short"
    else
      say "$tool: skipped, no compute-sanitizer here"
    fi
  done
}

bench() {
  step step 400 "$python" bench/step.py --device cuda --check --json "$out/step-cuda.json" \
    --seconds "${PROXADAM_CASE_SECONDS:-12}"
  say "$(grep -E '^(met|MISSED)' "$work/step.log")"
  step train 120 "$python" bench/train_captured.py --steps 400 \
    --json "$out/train-captured-cuda.json"
  say "$(grep AdamW "$work/train.log")"
}

: >"$out/summary.txt"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"
say "$(nvcc --version | tail -1)"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)
export PROXADAM_REQUIRE_NATIVE=1 PROXADAM_CUDA=ON PROXADAM_CUDA_ARCHITECTURES=${capability/./}
step build 180 "$python" -m pip install --no-build-isolation --no-deps --no-index \
  --target "$work/site" .
step report 60 "$python" -m proxadam
say "$(cat "$work/report.log")"
case $part in
  tests | bench) "$part" ;;
  all) tests && bench ;;
  *) say "$usage" && exit 2 ;;
esac
exit $failed
