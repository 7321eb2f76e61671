#!/usr/bin/env bash
# Evidence that the algorithms learn: one suite, pi0 and pi0.5, each taught once by demonstrations and then improved by PPO with
# flow-SDE, PPO with flow-noise and GRPO with flow-SDE.
#
#   bash launch/learning.sh tabletop|libero_object|libero_spatial [seed ...]        writes docs/results/SUITE.{json,png}
#
# Finished runs under runs/learning are kept: a second call continues where the first stopped.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
suite=${1:?"name a suite: tabletop, libero_object or libero_spatial"}
seeds=("${@:2}")
[[ ${#seeds[@]} -gt 0 ]] || seeds=(0)

train() { # NAME flags...; skipped where the run is finished
  local directory="runs/learning/$suite/$1"
  if [[ ! -f "$directory/table.json" ]]; then
    python -m pirl_jax.train "${recipe[@]}" --config.run.directory="$directory" --resume auto "${@:2}"
  fi
}

# LIBERO's RL stage has a time limit close to what the expert needs, so that a policy has to become faster as well as surer: episodes
# are shorter and their outcome is less of a foregone conclusion, which is what makes a CPU run of minutes show something.
case $suite in
  tabletop) recipe=(--config configs/tabletop_small.py) limit=50 ;;
  libero_object) recipe=(--config configs/libero_small.py) limit=115 ;;
  libero_spatial) recipe=(--config configs/libero_small.py --config.env.suite=libero_spatial "--config.env.tasks=(2,)") limit=80 ;;
  *) fail "no recipe for suite $suite; choose tabletop, libero_object or libero_spatial" ;;
esac

runs=()
for seed in "${seeds[@]}"; do
  for model in pi0 pi05; do
    same=(--config.seed="$seed" --config.model.pi05="$([[ $model == pi05 ]] && echo True || echo False)")
    train "${model}_sft_$seed" "${same[@]}" --config.num_iterations=0 --config.eval.baseline=False --config.eval.episodes_per_task=10
    same+=(--config.model.checkpoint="runs/learning/$suite/${model}_sft_$seed" --config.env.max_episode_steps="$limit")
    train "${model}_ppo_sde_$seed" "${same[@]}"
    train "${model}_grpo_sde_$seed" "${same[@]}" --config.model.add_value_head=False --config.algorithm.adv_type=grpo \
      --config.algorithm.group_size=8 --config.algorithm.critic_warmup_iterations=0
    train "${model}_ppo_noise_$seed" "${same[@]}" --config.model.noise_method=flow_noise \
      "--config.model.noise_logvar_range=(0.2,0.6)" --config.model.joint_logprob=True
    for variant in ppo_sde ppo_noise grpo_sde; do runs+=("runs/learning/$suite/${model}_${variant}_$seed"); done
  done
done
python -m pirl_jax.compare "${runs[@]}" --output "docs/results/$suite"
