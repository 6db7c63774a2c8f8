# For scripts that fill the Python environment $VENV from requirements.lock: sourced, from the top of the checkout.

install_uv() { # by its hash; it then installs the rest in a fraction of pip's time
  wanted=$(mktemp)
  sed -n '/^uv==/,/[^\\]$/p' requirements.lock >"$wanted"
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$wanted" && rm -f "$wanted"
}

uv_pip() { # COMMAND options…: uv, trusting the authorities and using the package index that pip does here
  command=$1
  shift
  [ -e /etc/ssl/certs/ca-certificates.crt ] && set -- --system-certs "$@"
  index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$VENV/bin/python" -m pip config get global.index-url 2>/dev/null || true)}}
  [ -z "$index" ] || set -- --default-index "$index" "$@"
  "$VENV/bin/python" -m uv pip "$command" --quiet --python "$VENV/bin/python" "$@"
}
