#!/usr/bin/env bash
# Makes .venv-trl at the root of the repository, with TRL 1.16.0: an oracle for the tests of the distillation
# losses, never a dependency of evolve. Run again, it does nothing. PYTHON chooses the interpreter
# (default: python3); TRL_SYSTEM_SITE=1 takes everything but TRL from that interpreter's environment.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${TRL_VENV:-$root/.venv-trl}"

if [[ -e "$venv/.complete" ]]; then
  exit 0
fi

rm -rf "$venv"
if [[ "${TRL_SYSTEM_SITE:-}" == 1 ]]; then
  # A venv made from a venv sees the packages of the first one's interpreter only, so they are named in a file.
  "${PYTHON:-python3}" -m venv "$venv"
  "${PYTHON:-python3}" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
    >"$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"
else
  "${PYTHON:-python3}" -m venv "$venv"
fi
echo '*' >"$venv/.gitignore"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

if [[ "${TRL_SYSTEM_SITE:-}" == 1 ]]; then
  "${pip[@]}" --no-deps "trl==1.16.0"
else
  # torch first: left to itself the resolver takes the CUDA build, which is many times larger. The CPU build
  # has a local version of its own, so it is found only where an index offers it.
  "${pip[@]}" "torch==2.13.0+cpu" 2>/dev/null ||
    "${pip[@]}" "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
    "${pip[@]}" "torch==2.13.0"
  "${pip[@]}" "trl==1.16.0"
fi

"$venv/bin/python" -c "import trl.experimental.gkd, trl.kernels.chunked_divergence"
touch "$venv/.complete"
