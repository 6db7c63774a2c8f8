# Functions that install requirements.lock in the Python environment $VENV. Source this file in the root folder.

install_uv() { # installs uv with its hash from the lock; uv installs the other packages much faster than pip
  wanted=$(mktemp)
  sed -n '/^uv==/,/[^\\]$/p' requirements.lock >"$wanted"
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$wanted" && rm -f "$wanted"
}

uv_pip() { # COMMAND OPTION…: runs `uv pip` with this machine's certificate authorities and pip's package index
  command=$1
  shift
  [ -e /etc/ssl/certs/ca-certificates.crt ] && set -- --system-certs "$@"
  index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$VENV/bin/python" -m pip config get global.index-url 2>/dev/null || true)}}
  [ -z "$index" ] || set -- --default-index "$index" "$@"
  "$VENV/bin/python" -m uv pip "$command" --quiet --python "$VENV/bin/python" "$@"
}
