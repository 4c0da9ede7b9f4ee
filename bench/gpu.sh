#!/usr/bin/env bash
# Builds, checks and measures on a machine with an NVIDIA GPU, also on a bare one: no package registry is asked for anything.
#
#   bench/gpu.sh 1            build, truth, ops, model: 535 s at most
#   bench/gpu.sh 2            memcheck, repeats, kernels, graph, tests: 280 s at most
#   bench/gpu.sh STAGE ...    some stages alone
#   bench/gpu.sh table        what the run in RESULTS knows so far, also after it was killed
#
# What each stage may take is one table, STAGES in gpu_calls.py; BUDGET_<STAGE>=seconds changes a line of it.
#
#   PYTHON   interpreter that has torch (default: .venv/bin/python, else python3)
#   RESULTS  folder for results.csv, results.jsonl and a log a stage (default: OUT, else bench/out/gpu)
#   CARRY    folder of what was made elsewhere (default: bench/out/carry): _C*.so, built for this Python and GPU; triton/,
#            Triton's cache; wheels/, installed first. `bench/gpu.sh carry 90` builds for compute
#            capability 9.0, the results of a run have its Triton cache as triton.tar.gz, which may lie here as it is.
#   DEVICE   cuda; cpu runs the scripts at tiny sizes to try them
#   WERROR   1: warnings of the compilers are errors
#
# Rows are written as they are known; a table comes last. Status 1 where something is red; what is missing is a line.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

[ -x .venv/bin/python ] && python=.venv/bin/python || python=python3
PYTHON=$(command -v "${PYTHON:-$python}" || echo "${PYTHON:-$python}")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
export PYTHON CARRY=${CARRY:-$PWD/bench/out/carry}
export PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$CARRY/triton}
export PATH=$(dirname "$PYTHON"):$PATH:/usr/local/cuda/bin
export PYTHONPATH=$PWD:$PWD/bench/out/site:$PWD/bench/out/pybind11${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m bench.gpu_calls "$@"
