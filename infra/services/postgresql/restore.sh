#!/usr/bin/env bash
# Puts a dump in the place of a database. The database that was there stays, under another name.
#
#     [PGHOST=… PGPORT=…] restore.sh DATABASE DUMP               as the superuser, postgres, with the service stopped
#     [PGHOST=… PGPORT=…] restore.sh --rehearse DATABASE DUMP    restores beside it, counts, and removes that again
#
# The dump is restored into DATABASE_restoring, and takes the name only when all of it is there: a bad dump changes nothing.
set -euo pipefail
export PGUSER=${PGUSER:-postgres} LC_ALL=C PGOPTIONS="${PGOPTIONS:-} -c client_min_messages=warning"
sql=(psql --no-password --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1)

rehearse=
[ "${1:-}" = --rehearse ] && rehearse=1 && shift
if [ $# -ne 2 ] || ! [[ $1 =~ ^[a-z_][a-z0-9_]{0,40}$ ]]; then
  echo "usage: restore.sh [--rehearse] DATABASE DUMP" >&2
  exit 2
fi
database=$1 dump=$2 scratch=$1_restoring
if ! contents=$(pg_restore --list "$dump" 2>&1); then
  echo "$dump is no whole dump: $contents" >&2
  exit 7
fi
if ! grep -q "^; *dbname: $database$" <<<"$contents"; then
  echo "$dump is not of $database:$(grep -o '^; *dbname: .*' <<<"$contents" | cut -d: -f2)" >&2
  exit 2
fi
[ -n "$rehearse" ] && scratch=$1_rehearsal

drop_scratch() { "${sql[@]}" --dbname=postgres --command="DROP DATABASE IF EXISTS $scratch"; }
drop_scratch
trap drop_scratch EXIT
"${sql[@]}" --dbname=postgres --command="CREATE DATABASE $scratch OWNER $database ENCODING 'UTF8' TEMPLATE template0"
"${sql[@]}" --dbname=postgres --command="REVOKE ALL ON DATABASE $scratch FROM PUBLIC"
if ! pg_restore --no-password --exit-on-error --single-transaction --dbname="$scratch" "$dump"; then
  echo "$dump cannot be restored; $database is as it was" >&2
  exit 7
fi
"${sql[@]}" --dbname="$scratch" --command="ANALYZE"
found=$("${sql[@]}" --dbname="$scratch" --command="SELECT count(*) || ' tables, ' || coalesce(sum(greatest(reltuples, 0)), 0)::bigint || ' rows'
  FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
if [ -n "$rehearse" ]; then
  echo "$(basename "$dump" .part) can be restored: $found"
  exit 0
fi
before=${database}_before_$(date -u +%Y%m%dT%H%M%SZ)
exists=$("${sql[@]}" --dbname=postgres --command="SELECT count(*) FROM pg_database WHERE datname = '$database'")
swap="ALTER DATABASE $scratch RENAME TO $database;"
[ "$exists" = 0 ] || swap="ALTER DATABASE $database RENAME TO \"$before\"; $swap"
if ! "${sql[@]}" --dbname=postgres --single-transaction --command="$swap"; then
  echo "somebody works with $database; mend: stop its service (systemctl stop ${database/_/-}), then again. Nothing was changed" >&2
  exit 8
fi
trap - EXIT
echo "$database is $(basename "$dump"): $found"
[ "$exists" = 0 ] || echo "what was there is $before; when all is well: dropdb $before"
