#!/bin/sh
# What GitHub, Renovate and pre-commit read: held against its schema, and what workflows do against what is known to go
# wrong there. Says nothing where all is well; needs no network.
set -eu
cd "$(dirname "$0")/.."

quietly() { # COMMAND…: what it says is shown where it fails
  said=$("$@" 2>&1) || { printf '%s\n' "$said" >&2; exit 1; }
}
schema() { # NAME FILE…
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
