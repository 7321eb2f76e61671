#!/usr/bin/env bash
# Trains on several hosts together; what follows the first argument goes to the trainer.
#
#   bash launch/hosts.sh HOST1,HOST2,... --config RECIPE [...]     over ssh; HOST1 must be reachable by that name from all of them
#   srun --ntasks-per-node=1 bash launch/hosts.sh auto --config RECIPE [...]                       in an allocation of Slurm
#   gcloud compute tpus tpu-vm ssh NAME --worker=all \
#     --command="cd CHECKOUT && PIRL_ACCELERATOR=tpu bash launch/hosts.sh auto --config RECIPE"
#
# All hosts need this checkout and whatever the recipe names at the same paths, and run.directory on storage that they share.
# Of the environment only PIRL_* travels over ssh.  The first failure ends all.  A signal to this script is one to all hosts: they save
# the same iteration, and it ends with exit code 75; the same command with --resume auto goes on.  Under Slurm, with requeueing:
#
#   sbatch --nodes=N --ntasks-per-node=1 --signal=USR1@300 --open-mode=append --requeue --wrap \
#     'srun bash launch/hosts.sh auto --config RECIPE --resume auto || { [ $? -eq 75 ] && scontrol requeue $SLURM_JOB_ID; }'
#
#   PIRL_PORT  where HOST1 listens for the others (default 8476)
#   PIRL_SSH   instead of ssh, e.g. "ssh -i KEY"
set -euo pipefail
again="$(printf '%q ' bash "${BASH_SOURCE[0]}" "$@")--resume auto"
hosts="${1:?name the hosts (HOST1,HOST2,...), or auto}"
shift

if [[ "$hosts" == auto || "$hosts" =~ ^[^,]+:[0-9]+,[0-9]+,[0-9]+$ ]]; then # one of them: known to the cluster, or told by the lines below
  # shellcheck source=launch/setup.sh
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  if [[ -z "${PIRL_HEED_INPUT:-}" ]]; then
    exec python -m pirl_jax.train --hosts="$hosts" "$@"
  fi
  # Started by the lines below: names of signals come in, and the end of the input where nobody is left at the other end.
  exec 3<&0
  python -m pirl_jax.train --hosts="$hosts" "$@" 3<&- </dev/null &
  child=$!
  { while read -r name; do kill -s "$name" "$child"; done; kill -s HUP "$child"; } <&3 >/dev/null 2>&1 &
  status=0
  wait "$child" || status=$?
  kill "$!" 2>/dev/null || true
  exit "$status"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
IFS=, read -r -a names <<<"$hosts"
read -r -a remote <<<"${PIRL_SSH:-ssh}"
settings="export PIRL_HEED_INPUT=1; "
for name in "${!PIRL_@}"; do
  [[ "$name" != PIRL_API_KEY ]] || continue # command lines are for all to read, and training needs none
  settings+="export $name=$(printf %q "${!name}"); "
done
inputs="$(mktemp -d)"
channels=()
tell() { # NAME of a signal, to all hosts
  local channel
  asked="$1"
  for channel in "${channels[@]}"; do
    echo "$1" 2>/dev/null >&"$channel" || true # one that has ended reads nothing
  done
}
asked=""
trap 'tell KILL; rm -rf "$inputs"' EXIT
trap '' PIPE
trap 'tell HUP' HUP
trap 'tell TERM' INT TERM
trap 'tell USR1' USR1
for index in "${!names[@]}"; do
  address="${names[0]##*@}:${PIRL_PORT:-8476},${#names[@]},$index"
  command="${settings}cd $(printf %q "$root") && exec bash launch/hosts.sh $(printf '%q ' "$address" "$@")"
  mkfifo "$inputs/$index"
  (
    for channel in "${channels[@]}"; do exec {channel}>&-; done # else the input of the others would not end with this script
    exec "${remote[@]}" "${names[index]}" "bash -c $(printf %q "$command")" <"$inputs/$index" > >(sed -u "s/^/[${names[index]}] /") 2>&1
  ) &
  exec {channel}>"$inputs/$index"
  channels+=("$channel")
done
[[ -z "$asked" ]] || tell "$asked" # before all of them could hear it
left=${#names[@]}
status=0
while [[ "$left" -gt 0 ]]; do
  asked=""
  code=0
  wait -n || code=$?
  [[ -z "$asked" || "$(jobs -rp | wc -l)" -lt "$left" ]] || continue # the wait has ended, not a host
  left=$((left - 1))
  case "$code" in
    0) ;;
    75) status=75 ;;
    *) exit "$code" ;;
  esac
done
[[ "$status" -eq 0 ]] || echo "asked to end; to go on: $again" >&2
exit "$status"
