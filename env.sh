#!/bin/sh
# Writes missing secrets to .env. Existing secrets are kept. `docker compose` and `make up` both read this file.
set -eu
cd "$(dirname "$0")"
umask 077
touch .env

hex() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }
fernet() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'; } # Fernet needs 32 bytes in URL-safe base64

secret() { # NAME VALUE: writes the variable unless it already has a value
  grep -q "^$1=." .env && return
  sed -i "/^$1=\$/d" .env
  printf '%s=%s\n' "$1" "$2" >>.env
  written="$written $1"
}

written=""
for name in MARIADB_ROOT DB_ADMIN DB_LOADER DB_PIPELINE DB_API DB_READER DB_MLFLOW DB_MAINTENANCE POSTGRES AIRFLOW GRAFANA; do
  secret "EVERGREEN_${name}_PASSWORD" "$(hex)"
done
secret EVERGREEN_AIRFLOW_JWT_SECRET "$(hex)"
secret EVERGREEN_AIRFLOW_FERNET_KEY "$(fernet)"
secret EVERGREEN_API_KEY "$(hex)"
chmod 600 .env
echo "${written:+.env: wrote$written}" | sed 's/^$/.env: nothing was missing/'
