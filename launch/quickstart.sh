#!/usr/bin/env bash
# The main job: teach a small policy by demonstrations, then improve it by PPO in simulation.
#
#   bash launch/quickstart.sh            on an embedded task; ends with a scripted expert on a task of real LIBERO, and its video
#   bash launch/quickstart.sh libero     on a task of real LIBERO
#
# Further arguments go to the trainer, e.g.  bash launch/quickstart.sh --config.seed=1
set -euo pipefail
recipe=configs/quickstart.py directory=runs/quickstart time="about 13 minutes"
if [[ "${1:-}" == libero ]]; then
  shift
  recipe=configs/libero_small.py directory=runs/quickstart_libero time="about 20 minutes"
fi
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ -e "$directory" ]]; then # a second run does not touch the first
  directory="$directory-$(date +%Y%m%d-%H%M%S)"
fi
echo "quickstart: $recipe, $time on two idle CPU cores"
# Signals reach the trainer, which saves its state and ends with 75 and the command to go on.
relay python -m pirl_jax.train --config "$recipe" --config.run.directory="$directory" "$@"
if [[ "$recipe" == configs/quickstart.py && "${PIRL_LIBERO:-yes}" != no ]]; then
  echo "quickstart: real LIBERO, pictures as stock LIBERO draws them, played by a scripted expert; about a minute"
  relay python -m pirl_jax.evaluate --policy expert --config libero_object_ppo_pi0 --config.env.tasks=0, --config.eval.episodes_per_task=2 \
    --config.eval.num_videos=1 --config.env.num_workers=2 --config.rollout.num_envs=2 --output "$directory/libero"
fi
