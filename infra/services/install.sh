#!/usr/bin/env bash
# Copies the units, accounts and settings of the services to where systemd looks for them. Starts nothing. May be run again.
#
#     [DESTDIR=…] infra/services/install.sh
#
# Units are written anew each time (your changes belong into drop-ins: systemctl edit). Files in /etc/headrace are written once and are yours.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
checkout=$(dirname "$(dirname "$here")")
root=${DESTDIR:-}
settings=$root/etc/headrace
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
  echo "root installs services; mend: sudo $0" >&2
  exit 2
fi

install -d -m 0755 "$root/etc/systemd/system" "$root/etc/sysusers.d" "$settings"
for unit in "$here"/systemd/*; do
  sed "s|/opt/headrace|$checkout|g" "$unit" >"$root/etc/systemd/system/$(basename "$unit")"
done
install -m 0644 "$here/sysusers.conf" "$root/etc/sysusers.d/headrace.conf"
for file in "$here"/environment/*.env; do
  [ -e "$settings/$(basename "$file")" ] || install -m 0644 "$file" "$settings/"
done

# systemd reads these as root, before it starts the service as somebody else.
write_secret() { # NAME: its content comes by standard input
  [ -e "$settings/$1" ] || (umask 077 && cat >"$settings/$1.part" && mv -n "$settings/$1.part" "$settings/$1")
}
if ! [ -e "$settings/prefect.secret.env" ]; then
  password=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
  write_secret prefect.secret.env <<<"PREFECT_SERVER_API_AUTH_STRING=headrace:$password"
  write_secret worker.secret.env <<<"PREFECT_API_AUTH_STRING=headrace:$password"
fi
write_secret worker.secret.env <<<"PREFECT_API_AUTH_STRING=" # a machine for workers alone: the line of the server's machine goes here
write_secret mlflow.secret.env </dev/null

if [ -z "$root" ]; then
  systemd-sysusers headrace.conf
  ! id postgres >/dev/null 2>&1 || install -d -o postgres -g postgres -m 0700 /var/backups/headrace
  systemctl daemon-reload
fi
echo "units are in $root/etc/systemd/system, settings in $settings"
