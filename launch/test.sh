#!/usr/bin/env bash
# Runs the tests:  bash launch/test.sh [--all] [pytest arguments]
#   --all          the slow ones too
#   PIRL_MAY_SKIP  regular expression of skip reasons that are fine here; a test skipped for another reason is a failure
#                  (default: every reason is fine; '^$' allows none)
#   PIRL_TEST_PROCESSES  how many processes share the tests (default: one per core)
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

selection=(-m "not slow")
if [[ "${1:-}" == "--all" ]]; then
  selection=()
  shift
fi
output="$(mktemp)"
trap 'rm -f "$output"' EXIT
status=0
python -m pytest -rs -n "${PIRL_TEST_PROCESSES:-logical}" --dist loadfile "${selection[@]}" "$@" 2>&1 | tee "$output" || status=$?

unexpected="$(grep '^SKIPPED' "$output" | grep -vE "${PIRL_MAY_SKIP:-.}" || true)"
if [[ -n "$unexpected" ]]; then
  printf 'These tests must run here and were skipped:\n%s\n' "$unexpected"
  [[ "$status" -ne 0 ]] || status=1
fi
tail -n 1 "$output"
exit "$status"
