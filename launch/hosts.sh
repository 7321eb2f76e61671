#!/usr/bin/env bash
# Trains on several hosts together; what follows the first argument goes to the trainer.
#
#   bash launch/hosts.sh HOST1,HOST2,... --config RECIPE [...]     over ssh; HOST1 must be reachable by that name from all of them
#   srun --ntasks-per-node=1 bash launch/hosts.sh auto --config RECIPE [...]                       in an allocation of Slurm
#   gcloud compute tpus tpu-vm ssh NAME --worker=all \
#     --command="cd CHECKOUT && PIRL_ACCELERATOR=tpu bash launch/hosts.sh auto --config RECIPE"
#
# All hosts need this checkout and whatever the recipe names at the same paths, and run.directory on storage that they share.
# Of the environment only PIRL_* travels over ssh.  The first failure ends all.
#   PIRL_PORT  where HOST1 listens for the others (default 8476)
#   PIRL_SSH   instead of ssh, e.g. "ssh -i KEY"
set -euo pipefail
hosts="${1:?name the hosts (HOST1,HOST2,...), or auto}"
shift

if [[ "$hosts" == auto || "$hosts" =~ ^[^,]+:[0-9]+,[0-9]+,[0-9]+$ ]]; then # one of them: known to the cluster, or told by the lines below
  # shellcheck source=launch/setup.sh
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  exec python -m pirl_jax.train --hosts="$hosts" "$@"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
IFS=, read -r -a names <<<"$hosts"
read -r -a remote <<<"${PIRL_SSH:-ssh} -tt" # with a terminal, so that what runs there ends with the connection
settings=""
for name in "${!PIRL_@}"; do
  settings+="export $name=$(printf %q "${!name}"); "
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for index in "${!names[@]}"; do
  address="${names[0]##*@}:${PIRL_PORT:-8476},${#names[@]},$index"
  # Through a pipe, because progress is a bar on a terminal.
  command="${settings}cd $(printf %q "$root") && { bash launch/hosts.sh $(printf '%q ' "$address" "$@") 2>&1 | cat; exit \${PIPESTATUS[0]}; }"
  "${remote[@]}" "${names[index]}" "bash -c $(printf %q "$command")" </dev/null > >(sed -u "s/\r$//; s/^/[${names[index]}] /") 2>&1 &
done
for _ in "${names[@]}"; do
  wait -n || exit $?
done
