"""Programs in place of apptainer and of pyxis' `srun`, which no registry has: what they start sees an image and its mounts, and nothing else.

Mounts, the other root, and all of Slurm are real. An image is a text file: lines `SOURCE TARGET` of what it holds, `NAME=VALUE` of its own
environment.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

_ENTER = """#!/bin/bash
# enter IMAGE WORK_DIR MOUNTS COMMAND...: runs a command in an image; MOUNTS are separated by spaces.
set -eu
if [ "${INSIDE-}" != yes ]; then INSIDE=yes exec unshare --mount "$0" "$@"; fi
unset INSIDE
image=$1 work_dir=$2 mounts=$3
shift 3
root=$(dirname "$0")/root
mount -t tmpfs none "$root"
show() {  # SOURCE TARGET FLAGS
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --rbind "$1" "$root$2"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
}
while read -r line; do
  case $line in *=*) export "${line?}" ;; *) show ${line% *} ${line#* } rw ;; esac
done <"$image"
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$root/$name"; done
for folder in /dev /proc /sys; do show $folder $folder rw; done
mkdir -p "$root/tmp"
for mount in $mounts; do
  IFS=: read -r source target flags <<<"$mount"
  show "$source" "${target:-$source}" "${flags:-rw}"
done
exec /usr/sbin/chroot "$root" env --chdir="$work_dir" "$@"
"""

_APPTAINER = """#!/bin/bash
# apptainer exec [--bind MOUNT]... [--pwd FOLDER] [--nv] IMAGE COMMAND...
[ "$1" = exec ] || { echo "unknown command: $1" >&2; exit 64; }
shift
mounts=() work_dir=/
while :; do
  case $1 in
    --bind) mounts+=("$2"); shift 2 ;;
    --pwd) work_dir=$2; shift 2 ;;
    --nv) shift ;;
    -*) echo "unknown flag: $1" >&2; exit 64 ;;
    *) break ;;
  esac
done
image=$1
shift
exec ENTER "$image" "$work_dir" "${mounts[*]}" "$@"
"""

_SRUN = """#!/bin/bash
# srun with pyxis' options.
options=() image= mounts= work_dir=/
while [ "$1" != bash ]; do
  case $1 in
    --container-image=*) image=${1#*=} ;;
    --container-mounts=*) mounts=${1#*=} ;;
    --container-workdir=*) work_dir=${1#*=} ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [ -z "$image" ]; then exec SRUN "${options[@]}" "$@"; fi
exec SRUN "${options[@]}" ENTER "$image" "$work_dir" "${mounts//,/ }" "$@"
"""

IMAGE_PREFIX = "/opt/environment"
"""Where the image has its Python environment: this one's, under another path."""


def install(folder: Path) -> Path:
    """Writes the programs into a folder that is to be first on PATH; returns an image beside them."""
    (folder / "root").mkdir(parents=True)
    real = shutil.which("srun")
    assert real is not None
    for name, text in {"enter": _ENTER, "apptainer": _APPTAINER, "singularity": _APPTAINER, "srun": _SRUN}.items():
        path = folder / name
        path.write_text(text.replace("ENTER", shlex.quote(str(folder / "enter"))).replace("SRUN", real))
        path.chmod(0o755)
    image = folder / "image"
    held = {"/usr": "/usr", "/etc": "/etc", sys.base_prefix: sys.base_prefix, sys.prefix: IMAGE_PREFIX}
    own = {"PATH": f"{IMAGE_PREFIX}/bin:/usr/bin:/bin", "PYTHONPATH": "/nowhere"}
    lines = [f"{source} {target}" for source, target in held.items() if os.path.lexists(source)] + [f"{name}={value}" for name, value in own.items()]
    image.write_text("\n".join(lines) + "\n")
    return image
