#!/bin/sh
# Prepares a clone: installs missing system packages, finds Python 3.12 and installs the Python packages in .venv.
# Each step first checks whether it is necessary. If nothing is missing, the script ends soon and prints nothing.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
. deploy/uv.sh
BINARIES="mariadb-server-core mariadb-client-core" # only the programs: no server is started by the system

fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
begin() { step_began=$(date +%s); printf '… %s\n' "$1"; }
done_in() { printf '✓ %-26s %4s s\n' "$1" "$(($(date +%s) - step_began))"; }

# mariadbd is in sbin, which is not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin

is_312() { "$@" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() { # prints the path of a Python 3.12 that runs; a shim of pyenv can exist without a Python behind it
  for candidate in python3.12 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if is_312 "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  for uv in uv "$HOME/.local/bin/uv"; do
    candidate=$("$uv" python find 3.12 2>/dev/null) && is_312 "$candidate" && echo "$candidate" && return
  done
  return 1
}

stamp() { # prints a hash of the path, the Python version, the lock and pyproject.toml: a new hash means a new .venv
  { pwd; "$python" -VV; cat requirements.lock pyproject.toml; } | sha256sum | cut -c1-64
}

missing_packages() { # prints the missing Debian packages; the compiler builds mysqlclient, which has no wheels
  { have mariadbd && have mariadb-install-db; } || own_mariadb || echo "$BINARIES"
  { have mariadb-dump && have mariadb; } || echo mariadb-client # backup and restore need it, also with another server
  have gcc || echo gcc
  have pkg-config || echo pkg-config
  have curl || echo curl # `make up` prints a curl command to paste
  pkg-config --exists libmariadb 2>/dev/null || echo libmariadb-dev
  [ -e /usr/include/stdio.h ] || echo libc6-dev
  case $python in
    /usr/bin/*) # Debian splits Python into packages
      "$python" -c 'import ensurepip' 2>/dev/null || echo python3.12-venv
      [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || echo python3.12-dev
      ;;
  esac
}

own_mariadb() { # succeeds if the team has its own MariaDB, so that this machine needs no server
  [ -n "${EVERGREEN_MARIADB_HOST:-}" ] || grep -q '^EVERGREEN_MARIADB_HOST=.' "${EVERGREEN_ENV_FILE:-.env}" 2>/dev/null
}

install_packages() { # NAME…
  if [ "$(id -u)" = 0 ]; then as_root=""
  elif have sudo && sudo -n true 2>/dev/null; then as_root="sudo -n"
  else fail "these packages are missing and need root; install them and try again:
    sudo apt-get update && sudo apt-get install --no-install-recommends $*"
  fi
  have apt-get || fail "these Debian packages are missing here, and there is no apt: $*"
  begin "installing system packages: $*"
  log=$(mktemp)
  wait="-o DPkg::Lock::Timeout=120" # another apt may be running
  # shellcheck disable=SC2086 # the options contain no blanks
  $as_root apt-get -q $wait update >"$log" 2>&1 || { tail -n 3 "$log" >&2; fail "apt-get update failed"; }
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y $wait install --no-install-recommends "$@" >"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "apt-get could not install: $*"; }
  rm -f "$log"
  done_in "system packages"
}

make_environment() {
  begin "making $VENV with $("$python" -V)"
  is_312 "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV"
  install_uv || fail "uv could not be installed: is a package index reachable?"
  uv_pip sync --require-hashes requirements.lock ||
    fail "the packages of requirements.lock could not be installed (see above)"
  uv_pip install --no-deps --no-build-isolation -e . || fail "evergreen itself could not be installed (see above)"
  stamp >"$VENV/evergreen-stamp"
  done_in "Python environment"
}

python=$(find_python) || fail "Python 3.12 is not here. Get it with one of
    sudo apt-get install python3.12 python3.12-venv python3.12-dev    (Ubuntu 24.04)
    pyenv install 3.12
    uv python install 3.12"

missing=$(missing_packages | tr '\n' ' ')
# shellcheck disable=SC2086 # the names contain no blanks
[ -z "${missing% }" ] || install_packages $missing

if [ "$(cat "$VENV/evergreen-stamp" 2>/dev/null)" != "$(stamp)" ] || ! is_312 "$VENV/bin/python"; then
  make_environment
fi
