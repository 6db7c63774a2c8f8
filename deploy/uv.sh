# Functions to fill the Python environment $VENV from requirements.lock. Source this file at the top of the checkout.

install_uv() { # checks uv's hash; uv then installs the other packages in a fraction of pip's time
  wanted=$(mktemp)
  sed -n '/^uv==/,/[^\\]$/p' requirements.lock >"$wanted"
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$wanted" && rm -f "$wanted"
}

uv_pip() { # COMMAND options…: runs uv with the certificate authorities and the package index of pip on this machine
  command=$1
  shift
  [ -e /etc/ssl/certs/ca-certificates.crt ] && set -- --system-certs "$@"
  index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$VENV/bin/python" -m pip config get global.index-url 2>/dev/null || true)}}
  [ -z "$index" ] || set -- --default-index "$index" "$@"
  "$VENV/bin/python" -m uv pip "$command" --quiet --python "$VENV/bin/python" "$@"
}
