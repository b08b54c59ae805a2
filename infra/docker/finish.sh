#!/bin/sh
# What both images' build stages do after installing: `packages`, then `sources`. Nothing of the sources goes into /opt/venv, so a
# change of theirs leaves the large layer as it is. What Python would compile at each start, with a root that it cannot write, is
# compiled here; nothing is changed afterwards, so no process compares times.
set -eu
PYTHON=/opt/venv/bin/python
COMPILE="-m compileall -q -j 0 --invalidation-mode unchecked-hash"

packages() {
  site=$($PYTHON -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo /opt/headrace >"$site/headrace.pth"
  $PYTHON -m pip uninstall --quiet --yes pip
  find "$site" -type d -name tests -prune -exec rm -r {} +
  rm -rf "$site"/torch/test "$site"/torch/bin/*test* "$site"/torch/bin/*Test "$site"/torch/bin/protoc*
  # Headers are for DeepSpeed options that compile, which needs a compiler: one that BASE has.
  command -v g++ >/dev/null || rm -rf "$site/torch/include" "$site/pyarrow/include"
  # Torch has a file for Python 3.12 and newer, by name. Any other that does not compile is an error.
  # shellcheck disable=SC2086 # words
  $PYTHON $COMPILE -x /py312_ "$site"
}

sources() {
  cd /opt/headrace
  $PYTHON -c 'from setuptools import setup; setup()' --quiet egg_info
  if [ -d flows ]; then
    mkdir bin
    printf '#!%s\nfrom flows.finished import main\n\nmain()\n' $PYTHON >bin/headrace
    chmod 755 bin/headrace
  fi
  # shellcheck disable=SC2086 # words
  $PYTHON $COMPILE .
}

"$1"
