#!/bin/sh
# Checks the files of GitHub, Renovate, Docker Compose and pre-commit against their schemas, and the workflows for
# known mistakes. Prints nothing on success. Needs no network.
set -eu
cd "$(dirname "$0")/.."

quietly() { # COMMAND…: runs the command and shows its output only if it fails
  output=$("$@" 2>&1) || { printf '%s\n' "$output" >&2; exit 1; }
}
schema() { # NAME FILE…: checks the files against the schema NAME
  name=$1
  shift
  quietly .venv/bin/check-jsonschema --builtin-schema "vendor.$name" "$@"
}

schema github-workflows .github/workflows/*.yaml
schema github-issue-forms .github/ISSUE_TEMPLATE/*.yaml
schema renovate renovate.json
schema compose-spec docker-compose.yaml
quietly .venv/bin/pre-commit validate-config .pre-commit-config.yaml
quietly .venv/bin/actionlint -shellcheck= -pyflakes= .github/workflows/*.yaml
quietly .venv/bin/zizmor --offline --pedantic --quiet .github
