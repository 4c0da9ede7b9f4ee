#!/usr/bin/env bash
# Builds, checks and measures on a machine with an NVIDIA GPU, also on a bare one: no package registry is asked for anything.
#
#   bench/gpu.sh [build] [test] [sanitize] [ops] [model]       all of them where none is named; each works alone
#
#   build     the package in place, CUDA kernels for this GPU                                            BUDGET_BUILD=240
#   test      20 repeats of each op on poisoned memory; a planted race is seen; the tests' GPU cases      BUDGET_TEST=360
#   sanitize  small cases under compute-sanitizer memcheck; a planted overrun is seen                     BUDGET_SANITIZE=180
#   ops       what the device does at best, then every op against its floor and the libraries             BUDGET_OPS=360
#   model     steps of Llama layers and of a 3B model beside full, LoRA and SHiRA                         BUDGET_MODEL=540
#
#   PYTHON   interpreter that has torch (default: .venv/bin/python, else python3)
#   RESULTS  folder for results.csv, results.jsonl and a log a stage (default: bench/out/gpu)
#   WHEELS   folder of wheels to install first, such as pybind11 or peft
#   DEVICE   cuda; cpu runs the scripts at tiny sizes to try them
#
# Rows are written as they are known; a table comes last. Status 1 where something is red; what is missing is a line.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

declare -A BUDGET=(
  [build]=${BUDGET_BUILD:-240} [test]=${BUDGET_TEST:-360} [sanitize]=${BUDGET_SANITIZE:-180} [ops]=${BUDGET_OPS:-360}
  [model]=${BUDGET_MODEL:-540})
[ -x .venv/bin/python ] && python=.venv/bin/python || python=python3
PYTHON=$(command -v "${PYTHON:-$python}" || echo "${PYTHON:-$python}")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
export PYTHON DEVICE=${DEVICE:-cuda} RESULTS=${RESULTS:-bench/out/gpu} RUN=${RUN:-$(date +%Y%m%dT%H%M%S)}
export PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1
export PATH=$(dirname "$PYTHON"):$PATH:/usr/local/cuda/bin
export PYTHONPATH=$PWD/bench/out/site:$PWD/bench/out/pybind11${PYTHONPATH:+:$PYTHONPATH}
[ "$DEVICE" = cuda ] && size=full || size=tiny

note() { "$PYTHON" -m bench.gpu_results note "$@"; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }

build() {
  if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install -q --no-deps --upgrade --target bench/out/site "$WHEELS"/*.whl || note build red "wheels of $WHEELS"
  fi
  has pybind11 || "$PYTHON" -m bench.gpu_pybind11 bench/out/pybind11 || return 1
  local cuda=1
  command -v nvcc >/dev/null || { cuda=0; note build skipped "CUDA kernels: no nvcc on the PATH or in /usr/local/cuda"; }
  local sm
  sm=$("$PYTHON" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())" 2>/dev/null) || sm=90
  SPARSE_FT_CUDA=$cuda SPARSE_FT_CUDA_ARCHITECTURES=$sm \
    "$PYTHON" -m pip install -v --no-build-isolation --no-deps -e . || return 1
  (cd / && "$PYTHON" -m sparse_ft) && note build ok "sm_$sm, CUDA kernels: $cuda"
}

tests() {
  local failed=0
  "$PYTHON" -m bench.gpu_checks --device "$DEVICE" --size "$size" --repeats 20 || failed=1
  planted test race "$PYTHON"
  if ! has pytest; then
    note test skipped "pytest is not installed"
  elif [ "$DEVICE" = cuda ]; then
    local workers=()
    has xdist && workers=(-n 8 --dist worksteal)
    "$PYTHON" -m pytest tests -q -k cuda -p no:cacheprovider "${workers[@]}" 2>&1 | tee "$RESULTS/pytest.log"
    local status=${PIPESTATUS[0]}
    [ "$status" = 5 ] && echo "no test of a GPU was collected" >>"$RESULTS/pytest.log"
    note test "$([ "$status" = 0 ] && echo ok || echo red)" "$(tail -n 1 "$RESULTS/pytest.log")"
  fi
  return $failed
}

# Runs a kernel that is wrong on purpose under a checker: status 42 says that it was caught.
planted() {
  local stage=$1 what=$2 status
  shift 2
  [ "$DEVICE" = cuda ] || return 0
  "$@" -m bench.gpu_checks --plant "$what"
  status=$?
  [ $status = 42 ] && note "$stage" ok "a planted $what is seen" && return 0
  [ $status = 0 ] && note "$stage" red "a planted $what was not seen" && return 1
  note "$stage" skipped "the check for a $what does not run here (status $status, see its log)"
  return 1
}

sanitize() {
  command -v compute-sanitizer >/dev/null || { note sanitize skipped "compute-sanitizer is not installed"; return; }
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # or overruns end in memory that the allocator holds
  local checker=(compute-sanitizer --tool memcheck --error-exitcode 42 --target-processes application-only "$PYTHON")
  planted sanitize overrun "${checker[@]}" || return 0
  "${checker[@]}" -m bench.gpu_checks --device "$DEVICE" --size tiny --repeats 2 --stage sanitize
}

# One stage, inside of its budget.
if [ "${1:-}" = --inside ]; then
  case $2 in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    ops) "$PYTHON" -m bench.gpu_ops --device "$DEVICE" --size "$size" ${SECONDS_EACH:+--seconds "$SECONDS_EACH"} ;;
    model) "$PYTHON" -m bench.gpu_model --device "$DEVICE" --size "$size" ${SECONDS_EACH:+--seconds "$SECONDS_EACH"} ;;
  esac
  exit
fi

stages=("$@")
[ $# -gt 0 ] || stages=(build test sanitize ops model)
for stage in "${stages[@]}"; do
  [ -n "${BUDGET[$stage]:-}" ] || { echo "no stage $stage: build, test, sanitize, ops, model" >&2; exit 2; }
done
mkdir -p "$RESULTS"
RESULTS=$(cd "$RESULTS" && pwd)
if ! has torch; then
  for stage in "${stages[@]}"; do note "$stage" skipped "$PYTHON has no torch"; done
  exit 0
fi
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
  for stage in "${stages[@]}"; do note "$stage" skipped "no GPU that torch can use (DEVICE=cpu tries the scripts at tiny sizes)"; done
  exit 0
fi
# A later stage alone, in a fresh copy, builds first.
[ "${stages[0]}" = build ] || [ "$DEVICE" = cpu ] || has sparse_ft._C,sparse_ft.kernels || stages=(build "${stages[@]}")

for stage in "${stages[@]}"; do
  timeout -k 10 "${BUDGET[$stage]}" bash bench/gpu.sh --inside "$stage" 2>&1 | tee "$RESULTS/$stage.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) ;;
    124 | 137) note "$stage" red "ran past its ${BUDGET[$stage]} s; the rows it wrote stand" ;;
    42) note "$stage" red "the memory checker found errors, see $stage.log" ;;
    *) note "$stage" red "ended with status $status, see $stage.log" ;;
  esac
done
echo
"$PYTHON" -m bench.gpu_results table
