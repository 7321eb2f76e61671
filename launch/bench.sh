#!/usr/bin/env bash
# Runs the benchmarks of this machine and leaves their JSON in docs/bench/:  bash launch/bench.sh [benchmark ...]
#   PIRL_BENCH_NAME     what the files are called after (default: cpu, or the accelerator's name)
#   PIRL_BENCH_REPEATS  interleaved repeats (default: 5)
# Without arguments all of them; env needs LIBERO's assets and is left out with PIRL_LIBERO=no.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

name="${PIRL_BENCH_NAME:-$(python -c 'import jax; print(jax.devices()[0].device_kind.lower().replace(" ", "_"))')}"
benchmarks=("$@")
if [[ $# -eq 0 ]]; then
  benchmarks=(plan update rollout latency end2end)
  [[ "${PIRL_LIBERO:-yes}" == no ]] || benchmarks+=(env)
fi
for benchmark in "${benchmarks[@]}"; do
  # Plans only read what a compiler says about memory: LLVM need not optimise what never runs.
  [[ "$benchmark" != plan ]] || export XLA_FLAGS="--xla_backend_optimization_level=0"
  relay python -m pirl_jax.bench "$benchmark" --repeats "${PIRL_BENCH_REPEATS:-5}" --output "docs/bench/${benchmark}_${name}.json"
  unset XLA_FLAGS
done
