#!/usr/bin/env bash
# The main job on an embedded default: teach a small policy by demonstrations, then improve it by PPO in simulation.
# Arguments go to the trainer, e.g.  bash launch/quickstart.sh --config.seed=1
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m pirl_jax.train --config configs/quickstart.py "$@"
