#!/usr/bin/env bash
# All that needs a GPU, in one command and without a network: bench/gpu.sh OUTDIR
#
# Builds the package (torch, pybind11, scikit-build-core, ninja and nvcc must be there), runs the whole
# test suite with CUDA in its matrix, compute-sanitizer on some of it, and the benchmarks. A step that
# fails does not stop the next; OUTDIR has a log of each, the benchmarks' JSON and summary.txt, and
# the exit status tells whether all went well. Under 9 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:?usage: bench/gpu.sh OUTDIR}"
out=$(cd "$1" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
failed=0

# step NAME SECONDS COMMAND...: runs it for at most so long, with its output in OUTDIR/NAME.log.
step() {
  local name=$1 limit=$2 begin=$SECONDS left=$((530 - SECONDS)) status=0 verdict
  shift 2
  printf '== %s\n' "$name"
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict="stopped after $limit s" failed=1 ;;
    *) verdict="FAILED ($status)" failed=1 ;;
  esac
  printf '%-14s %s, %d s: %s\n' "$name" "$verdict" $((SECONDS - begin)) \
    "$(grep -v '^ *$' "$out/$name.log" | tail -1 | cut -c1-120)" | tee -a "$out/summary.txt"
}

: >"$out/summary.txt"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader |
  tee -a "$out/summary.txt"
nvcc --version | tail -1 | tee -a "$out/summary.txt"

PROXADAM_REQUIRE_NATIVE=1 PROXADAM_CUDA=ON step build 180 \
  "$python" -m pip install --no-build-isolation --no-deps --no-index --target "$site" .
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
step report 60 "$python" -m proxadam

# What only a GPU shows comes first, so that it is there if time runs out.
step kernel 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_kernel.py \
  tests/test_cuda_streams.py
step bench 200 "$python" bench/step.py --device cuda --check --json "$out/step-cuda.json"
if command -v compute-sanitizer >/dev/null; then
  # Each tensor its own allocation, and few tests: a sanitized step is slow.
  short='(alignment and -3-adaptive) or more_tensors or (unscaled and scalar)'
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step $tool 90 compute-sanitizer --tool $tool \
      --error-exitcode 1 --kernel-name kernel_substring=prox_adam \
      "$python" -m pytest -q -x -p no:cacheprovider tests/test_cuda_kernel.py -k "$short"
  done
else
  echo "memcheck and racecheck: skipped, no compute-sanitizer here" | tee -a "$out/summary.txt"
fi

workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 6)
step suite 300 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests
exit $failed
