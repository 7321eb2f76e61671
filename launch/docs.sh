#!/usr/bin/env bash
# Builds the site of docs/ into site/; a missing page, link or heading is an error.
#
#   bash launch/docs.sh                      builds it
#   bash launch/docs.sh serve [HOST:PORT]    shows it (127.0.0.1:8000), and again whenever a page is saved
#
# The generator lies in .venv-docs, an environment of its own.  PIRL_PYTHON names the interpreter (3.11 or 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what="${1:-build}"
if [[ "$what" != build && "$what" != serve ]]; then
  echo "launch/docs.sh: $what is neither build nor serve; write bash launch/docs.sh [serve [HOST:PORT]]" >&2
  exit 2
fi
python="${PIRL_PYTHON:-python3}"
[[ -n "${PIRL_PYTHON:-}" || ! -x .venv/bin/python ]] || python=.venv/bin/python
stamp="$("$python" --version) $(sha256sum <requirements-docs.txt)"
if [[ ! -f .venv-docs/pins || "$(<.venv-docs/pins)" != "$stamp" ]]; then
  echo "docs: installing the generator into .venv-docs"
  "$python" -m venv --clear .venv-docs
  .venv-docs/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps --require-hashes -r requirements-docs.txt
  echo "$stamp" >.venv-docs/pins
fi
export NO_MKDOCS_2_WARNING=1 PATH="$PWD/.venv-docs/bin:$PATH"
if [[ "$what" == serve ]]; then
  exec mkdocs serve --strict --dev-addr "${2:-127.0.0.1:8000}"
fi
mkdocs build --strict # --quiet would hide warnings from --strict, too
