#!/usr/bin/env bash
# The main job on an embedded default: teach a small policy by demonstrations, then improve it by PPO in simulation.
# Arguments go to the trainer, e.g.  bash launch/quickstart.sh --config.seed=1
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
directory=runs/quickstart
if [[ -e "$directory" ]]; then # a second run does not touch the first
  directory="runs/quickstart-$(date +%Y%m%d-%H%M%S)"
fi
# In place of this script: signals reach the trainer, which saves its state and ends with 75 and the command to go on.
exec python -m pirl_jax.train --config configs/quickstart.py --config.run.directory="$directory" "$@"
