#!/bin/sh
# environment.sh GROUP…: creates the environment $VENV of an image with the packages of these dependency groups.
# Versions and hashes come from requirements.lock. The script fails if a package is not in it.
set -eu
cd "$(dirname "$0")/.."
: "${VENV:?}"
. deploy/uv.sh

python3 -m venv "$VENV"
install_uv
groups=""
for group in "$@"; do groups="$groups --group $group"; done
# shellcheck disable=SC2086 # the options contain no blanks
uv_pip compile pyproject.toml $groups --constraint requirements.lock --no-header --no-annotate --output-file wanted.txt
python3 deploy/pinned.py requirements.lock <wanted.txt >wanted.lock
uv_pip sync --require-hashes --compile-bytecode wanted.lock # also removes uv and pip
