#!/usr/bin/env bash
# Evidence that the algorithms learn: one suite, pi0 and pi0.5, each taught once by demonstrations and then improved by PPO with
# flow-SDE, PPO with flow-noise and GRPO with flow-SDE.
#
#   [SEEDS="0 1 2"] bash launch/learning.sh tabletop|libero_object|libero_spatial [pi0] [pi05]
#
# Writes docs/results/SUITE.{json,png}.  Finished runs under runs/learning are kept: a second call continues where the first stopped.
# Asked to end by a signal it lets the run under way save its state, says so, and ends with exit code 75.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
suite=${1:?"name a suite: tabletop, libero_object or libero_spatial"}
again="$(printf '%q ' ${SEEDS:+env "SEEDS=$SEEDS"} bash "$ROOT/launch/learning.sh" "$@")"
models=("${@:2}")
[[ ${#models[@]} -gt 0 ]] || models=(pi0 pi05)

train() { # NAME flags...; skipped where the run is finished
  local directory="runs/learning/$suite/$1"
  local status=0
  if [[ ! -f "$directory/table.json" ]]; then
    relay python -m pirl_jax.train "${recipe[@]}" --config.run.directory="$directory" --resume auto "${@:2}" || status=$?
  fi
  [[ "$status" -ne 75 ]] || echo "launch/learning.sh was asked to end; to go on: $again" >&2
  [[ "$status" -eq 0 ]] || exit "$status"
}

# LIBERO's RL stage has a time limit close to what the expert needs, so that a policy has to become faster as well as surer: episodes
# are shorter and their outcome is less of a foregone conclusion, which is what makes a CPU run of minutes show something.
case $suite in
  tabletop) recipe=(--config configs/tabletop_small.py) limit=50 ;;
  libero_object) recipe=(--config configs/libero_small.py) limit=115 ;;
  libero_spatial) recipe=(--config configs/libero_small.py --config.env.suite=libero_spatial "--config.env.tasks=(2,)") limit=80 ;;
  *) fail "no recipe for suite $suite; choose tabletop, libero_object or libero_spatial" ;;
esac

for seed in ${SEEDS:-0}; do
  for model in "${models[@]}"; do
    same=(--config.seed="$seed" --config.model.pi05="$([[ $model == pi05 ]] && echo True || echo False)")
    train "${model}_sft_$seed" "${same[@]}" --config.num_iterations=0 --config.eval.baseline=False --config.eval.episodes_per_task=10
    same+=(--config.model.checkpoint="runs/learning/$suite/${model}_sft_$seed" --config.env.max_episode_steps="$limit")
    train "${model}_ppo_sde_$seed" "${same[@]}"
    train "${model}_grpo_sde_$seed" "${same[@]}" --config.model.add_value_head=False --config.algorithm.adv_type=grpo \
      --config.algorithm.group_size=8 --config.algorithm.critic_warmup_iterations=0
    train "${model}_ppo_noise_$seed" "${same[@]}" --config.model.noise_method=flow_noise \
      "--config.model.noise_logvar_range=(0.2,0.6)" --config.model.noise_steps=all
  done
done
python -m pirl_jax.compare runs/learning/"$suite"/pi0*_{ppo_sde,ppo_noise,grpo_sde}_* --output "docs/results/$suite"
