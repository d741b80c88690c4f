#!/usr/bin/env bash
# Measure training and inference on one GPU beside timm, in under 9 minutes; flags are those of gpu.py.
#
#   experiments/benchmarks/gpu.sh --output=gpu.md
#
# Needs jax for the GPU, and torch and timm for the comparison, in $PYTHON (default python3). Where there is no network,
# name a folder with wheels of the other dependencies: WHEELS=wheels experiments/benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m experiments.benchmarks.gpu "$@"
