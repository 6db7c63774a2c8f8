#!/bin/sh
# lock.sh [OPTION…]: writes requirements.lock for pyproject.toml. Pins that still fit stay, so what changes is what was
# asked for; --upgrade-package NAME, or --upgrade for all, takes newer ones.
# The command stands at the lock's top, for people and for Renovate, which runs it and knows no option but these:
# options with values need the `=`, and what else there is to say stands in pyproject.toml under tool.uv.pip.
set -eu
cd "$(dirname "$0")/.."
VENV=.venv
. deploy/uv.sh

groups="--group=serving --group=pipelines --group=stack --group=containers --group=load --group=dev"
options="--generate-hashes $groups --output-file=requirements.lock pyproject.toml"
export UV_CUSTOM_COMPILE_COMMAND="uv pip compile $options"
# shellcheck disable=SC2086 # options without blanks
uv_pip compile $options "$@"
