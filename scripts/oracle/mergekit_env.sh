#!/usr/bin/env bash
# Makes .venv-mergekit at the root of the repository, with mergekit 0.1.5: an oracle for the tests, never a
# dependency of evolve. Run again, it does nothing. PYTHON chooses the interpreter (default: python3).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${MERGEKIT_VENV:-$root/.venv-mergekit}"

if [[ -e "$venv/.complete" ]]; then
  exit 0
fi

rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
echo '*' >"$venv/.gitignore"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

# torch first: left to itself the resolver takes the CUDA build, which is many times larger. The CPU build
# has a local version of its own, so it is found only where an index offers it.
"${pip[@]}" "torch==2.13.0+cpu" 2>/dev/null ||
  "${pip[@]}" "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
  "${pip[@]}" "torch==2.13.0"
"${pip[@]}" "mergekit==0.1.5"

"$venv/bin/python" -c "import mergekit.merge"
touch "$venv/.complete"
