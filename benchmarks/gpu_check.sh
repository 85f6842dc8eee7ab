#!/usr/bin/env bash
# What to run first on a GPU: the GPU tests, the quick throughput and a comparison of oracle and learned dynamics, in one
# call of at most eight minutes. It ends with one page: what passed, and the numbers against what is expected.
#
#   benchmarks/gpu_check.sh [FOLDER]
#
# FOLDER gets summary.md (the page), status.tsv, throughput/, comparison/ and half_cheetah/; by default it is
# RUNS/report/DEVICE. All steps run after `pip install -e '.[dev,cuda]'`. Variables:
#
#   PYTHON    interpreter (python)
#   DEVICE    cuda, cuda:1, ...; cpu rehearses with tiny sizes, and with OMP_NUM_THREADS=1 if that is not set
#   MINUTES   for all of it (8)
#   RUNS      folder for checkpoints and logs (runs/gpu_check); a further call goes on with the training there
#   JOBS      processes for the tests, where pytest-xdist is installed, and for the comparisons (4)
#   TESTS     files or folders with the tests (tests)
#
# The exit code is 1 if a step failed or was cut at its time limit. The tests are skipped where the extra dev is not
# installed, which is said and is no failure.

set -uo pipefail
here=$PWD
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda}
[[ $DEVICE == cpu ]] && JOBS=1 && export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
MINUTES=${MINUTES:-8}
JOBS=${JOBS:-4}
RUNS=${RUNS:-runs/gpu_check}
out=${1:-$RUNS/report/${DEVICE/:/_}}
[[ $out == /* || $# -eq 0 ]] || out=$here/$out

mkdir -p "$out" "$RUNS" || exit 1
: >"$out/status.tsv"
rm -f "$out/throughput/throughput.csv" # what an earlier call measured is not what this one found
SECONDS=0
total=$(awk "BEGIN { print int(60 * $MINUTES) }") || exit 1

# share PERCENT: that part of the whole time, in seconds, but not more than what is left, and at least one.
share() {
  local part=$((total * $1 / 100)) left=$((total - SECONDS - total / 50))
  ((part > left)) && part=$left
  echo $((part > 0 ? part : 1))
}

# step NAME SECONDS COMMAND...: run it for at most so long, with its output in RUNS/NAME.log, and note how it ended.
step() {
  local name=$1 limit=$2 began=$SECONDS code=0 log=$RUNS/$1.log
  shift 2
  echo "$name: at most $limit s: $*"
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null || code=$?
  local last
  last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '\t' ' ')
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - began))" "$last" >>"$out/status.tsv"
  ((code == 0)) || tail -n 5 "$log" | sed 's/^/  /'
}

# skip NAME REASON: note that the step does not run.
skip() {
  echo "$1: skipped: $2"
  printf '%s\tskipped\t0\t%s\n' "$1" "$2" >>"$out/status.tsv"
}

tests=("$PYTHON" -m pytest -q -m gpu --tb=line)
measure=("$PYTHON" benchmarks/throughput.py --quick --device "$DEVICE" --out "$out/throughput")
compare=("$PYTHON" benchmarks/oracle_vs_learned.py --device "$DEVICE" --workers "$JOBS")
long=(--tasks HalfCheetah --dynamics oracle learned --methods mage-td3 --size paper --compile on)
if [[ $DEVICE == cpu ]]; then
  TESTS=${TESTS:-tests/bridges/test_jax_bridge.py}
  measure+=(--sections steps --preset cpu --no-compile --repeats 1 --runs 1 2)
  compare+=(--tasks Pendulum --dynamics learned --methods mage-td3 --steps 80)
  long=(--size smoke)
elif "$PYTHON" -c 'import xdist' 2>/dev/null; then
  tests+=(-n "$JOBS" --dist loadfile)
fi
read -r -a where <<<"${TESTS:-tests}"

if "$PYTHON" -c 'import pytest, pytest_timeout, hypothesis, jaxtyping, beartype' 2>/dev/null; then
  step tests "$(share 25)" "${tests[@]}" "${where[@]}"
else
  skip tests "the extra dev is not installed: pip install -e '.[dev,cuda]'"
fi
limit=$(share 50)
step throughput "$limit" "${measure[@]}" --minutes "$(awk "BEGIN { print 0.9 * $limit / 60 }")"
step comparison "$(share 15)" "${compare[@]}" --size smoke --fresh --out "$RUNS/comparison"
limit=$(share 100)
stop=$(awk "BEGIN { print ($limit > 40 ? $limit - 30 : $limit * 0.5) / 60 }")
step half_cheetah "$limit" "${compare[@]}" "${long[@]}" --out "$RUNS/half_cheetah" --stop-after "$stop"

# Checkpoints stay in RUNS; tables and figures are small.
for name in comparison half_cheetah; do
  mkdir -p "$out/$name"
  for file in "$RUNS/$name"/*.csv "$RUNS/$name"/*.png "$RUNS/$name"/summary.md; do
    [[ -f $file ]] && cp "$file" "$out/$name/"
  done
done

echo
"$PYTHON" benchmarks/gpu_report.py "$out"
