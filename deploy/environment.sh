#!/bin/sh
# environment.sh GROUP…: makes the environment $VENV with exactly the packages of these dependency groups. For images.
# The set of packages is resolved again. Versions and hashes come from requirements.lock, or the script fails.
set -eu
cd "$(dirname "$0")/.."
: "${VENV:?}"
. deploy/uv.sh

python3 -m venv "$VENV"
install_uv
groups=""
for group in "$@"; do groups="$groups --group $group"; done
# shellcheck disable=SC2086 # options without blanks
uv_pip compile pyproject.toml $groups --constraint requirements.lock --no-header --no-annotate --output-file wanted.txt
python3 deploy/pinned.py requirements.lock <wanted.txt >wanted.lock
uv_pip sync --require-hashes --compile-bytecode wanted.lock # removes uv and pip again
