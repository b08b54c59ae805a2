#!/usr/bin/env bash
# Dumps databases, each as one consistent snapshot, restores every dump once to see that it can be, and keeps the newest.
#
#     [KEEP=14] [REHEARSE=1] [PGHOST=… PGPORT=…] backup.sh FOLDER DATABASE…        as the superuser, postgres
#
# A dump has its name only when it is complete, on the disk, and was restored; until then it is FOLDER/….part.
# Older ones are removed after that, never before.
set -euo pipefail
umask 077
export PGUSER=${PGUSER:-postgres} LC_ALL=C
here=$(dirname "$(readlink -f "$0")")
keep=${KEEP:-14}

if [ $# -lt 2 ] || ! [ "$keep" -ge 1 ] 2>/dev/null; then
  echo "usage: [KEEP=14] [REHEARSE=1] backup.sh FOLDER DATABASE…" >&2
  exit 2
fi
folder=$1
shift
if ! [ -d "$folder" ] || ! [ -w "$folder" ]; then
  echo "$folder is no folder that $(id -un) may write; mend: install -d -o $(id -un) -m 0700 $folder" >&2
  exit 2
fi
exec 9<"$folder"
flock --nonblock 9 || { echo "another backup writes $folder" >&2; exit 8; }

for database in "$@"; do
  rm -f "$folder/$database"-*.dump.part
  dump=$folder/$database-$(date -u +%Y%m%dT%H%M%SZ).dump
  pg_dump --no-password --format=custom --file="$dump.part" --dbname="$database"
  [ "${REHEARSE:-1}" = 0 ] || "$here/restore.sh" --rehearse "$database" "$dump.part"
  sync "$dump.part"
  mv -n "$dump.part" "$dump"
  sync "$folder"
  echo "$dump: $(stat -c %s "$dump") bytes"
  find "$folder" -maxdepth 1 -type f -name "$database-????????T??????Z.dump" | sort -r | tail -n +$((keep + 1)) | xargs -r -d '\n' rm --
done
