#!/usr/bin/env bash
# Evidence that the algorithms learn: one suite, pi0 and pi0.5, each taught once by demonstrations and then improved by PPO with
# flow-SDE, PPO with flow-noise and GRPO with flow-SDE.
#
#   [SEEDS="0 1 2"] bash launch/learning.sh evidence [a b c ...] [--runs DIR]
#   [SEEDS="0 1 2"] bash launch/learning.sh tabletop|libero_object|libero_spatial [pi0] [pi05]
#   [SEEDS="0 1 2"] bash launch/learning.sh exploration
#
# The first plays the cells of docs/results.md, row by row (python -m pirl_jax.evidence), at low priority, with its runs beside the
# checkout; what has results in docs/results/evidence is not played again.
# The last compares samplers and losses on tabletop instead: equal episodes from one SFT start per seed.
# The others write docs/results/SUITE.{json,png}.  Finished runs under runs/learning are kept: a second call continues where the first stopped.
# Asked to end by a signal it lets the run under way save its state, says so, and ends with exit code 75.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
suite=${1:?"name a suite: tabletop, libero_object, libero_spatial; or evidence, exploration"}
again="$(printf '%q ' ${SEEDS:+env "SEEDS=$SEEDS"} bash "$ROOT/launch/learning.sh" "$@")"
models=("${@:2}")
[[ ${#models[@]} -gt 0 ]] || models=(pi0 pi05)

if [[ "$suite" == evidence ]]; then
  status=0
  relay nice -n 15 python -m pirl_jax.evidence play "${@:2}" ${SEEDS:+"--seeds=$SEEDS"} || status=$?
  [[ "$status" -ne 75 ]] || echo "launch/learning.sh was asked to end; to go on: $again" >&2
  [[ "$status" -eq 75 ]] || python -m pirl_jax.evidence tables
  exit "$status"
fi

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
  tabletop | exploration) recipe=(--config configs/tabletop_small.py) limit=50 ;;
  libero_object) recipe=(--config configs/libero_small.py) limit=115 ;;
  libero_spatial) recipe=(--config configs/libero_small.py --config.env.suite=libero_spatial "--config.env.tasks=(2,)") limit=80 ;;
  *) fail "no recipe for suite $suite; choose evidence, tabletop, libero_object, libero_spatial or exploration" ;;
esac

# All with one bound on how far an iteration may move the policy: samplers at equal learning rates differ by far in that.
explore() { # SEED
  local same=(--config.seed="$1" --config.model.checkpoint="runs/learning/$suite/sft_$1" --config.num_iterations=24)
  local bounded=("${same[@]}" --config.algorithm.target_kl=0.06)
  local free=(--config.model.add_value_head=False --config.algorithm.critic_warmup_iterations=0)
  local grouped=("${free[@]}" --config.algorithm.group_size=8)
  local clone=("${free[@]}" --config.algorithm.loss=clone --config.algorithm.adv_type=raw)
  local all=(--config.model.noise_steps=all)
  local last=(--config.model.noise_steps=last --config.model.noise_method=flow_noise)
  local wide=("${last[@]}" "--config.model.noise_logvar_range=(0.4,0.4)")
  train "sft_$1" --config.seed="$1" --config.num_iterations=0 --config.eval.baseline=False
  train "ppo_one_$1" "${bounded[@]}"
  train "ppo_last_04_$1" "${bounded[@]}" "${wide[@]}"
  train "grpo_last_04_$1" "${bounded[@]}" "${wide[@]}" "${grouped[@]}" --config.algorithm.adv_type=grpo
  train "nft_last_04_$1" "${bounded[@]}" "${wide[@]}" "${grouped[@]}" --config.algorithm.loss=nft --config.algorithm.adv_type=rloo
  train "clone_last_04_$1" "${same[@]}" "${wide[@]}" "${clone[@]}"
  train "clone_one_$1" "${same[@]}" "${clone[@]}"
  train "ppo_last_025_$1" "${bounded[@]}" "${last[@]}" "--config.model.noise_logvar_range=(0.25,0.25)"
  train "ppo_all_2_05_$1" "${bounded[@]}" "${all[@]}" --config.model.noise_level=0.5
  train "ppo_all_4_08_$1" "${bounded[@]}" "${all[@]}" --config.model.num_steps=4
  train "ppo_all_4_05_$1" "${bounded[@]}" "${all[@]}" --config.model.num_steps=4 --config.model.noise_level=0.5
}

if [[ "$suite" == exploration ]]; then
  for seed in ${SEEDS:-0}; do
    explore "$seed"
  done
  python -m pirl_jax.compare runs/learning/exploration/{ppo,grpo,nft,clone}_* --output docs/results/exploration
  exit
fi

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
