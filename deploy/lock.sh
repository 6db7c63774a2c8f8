#!/bin/sh
# lock.sh [OPTION…]: writes requirements.lock for pyproject.toml. Pins that still fit stay, so only requested packages
# change. --upgrade-package NAME takes a newer version of one package, --upgrade of all packages.
# The command is at the top of the lock, for people and for Renovate. Renovate runs it and knows no other options:
# options with values need the `=`, and all other settings are in pyproject.toml under tool.uv.pip.
set -eu
cd "$(dirname "$0")/.."
VENV=.venv
. deploy/uv.sh

groups="--group=serving --group=pipelines --group=stack --group=containers --group=load --group=dev"
options="--generate-hashes $groups --output-file=requirements.lock pyproject.toml"
export UV_CUSTOM_COMPILE_COMMAND="uv pip compile $options"
# shellcheck disable=SC2086 # options without blanks
uv_pip compile $options "$@"
