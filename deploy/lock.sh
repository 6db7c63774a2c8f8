#!/bin/sh
# lock.sh [OPTION…]: writes requirements.lock for pyproject.toml. Versions that still fit are kept.
# --upgrade-package NAME takes a newer version of one package, --upgrade takes newer versions of all packages.
# The first lines of the lock contain the command, which Renovate runs. Renovate accepts an option's value only after
# `=`, and only some options. All other settings are in pyproject.toml under tool.uv.pip.
set -eu
cd "$(dirname "$0")/.."
VENV=.venv
. deploy/uv.sh

groups="--group=serving --group=pipelines --group=stack --group=containers --group=load --group=dev"
options="--generate-hashes $groups --output-file=requirements.lock pyproject.toml"
export UV_CUSTOM_COMPILE_COMMAND="uv pip compile $options"
# shellcheck disable=SC2086 # the options contain no blanks
uv_pip compile $options "$@"
