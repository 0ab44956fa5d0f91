#!/bin/sh
# The torch-free tests on the newest Python (3.12 or later) found here, with the newest zarr, in a venv of their own.
set -eu
VENV=.venv-newest
for candidate in python3.15 python3.14 python3.13 python3.12 \
    $(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3 2>/dev/null | sort -rV); do
  if command -v "$candidate" >/dev/null 2>&1 &&
    "$candidate" -c 'import sys, venv; raise SystemExit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
    PYTHON=$candidate
    break
  fi
done
if [ -z "${PYTHON:-}" ]; then
  echo "test-newest: no Python 3.12 or later found on PATH or in pyenv; nothing to do"
  exit 0
fi
if [ ! -f "$VENV/.installed" ] || [ pyproject.toml -nt "$VENV/.installed" ]; then
  rm -rf "$VENV"
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --upgrade --editable ".[test,fast,distributed]"
  touch "$VENV/.installed"
fi
"$VENV/bin/python" -c 'import sys, numpy, xarray, zarr
print("test-newest: Python", sys.version.split()[0], "zarr", zarr.__version__, "numpy", numpy.__version__,
      "xarray", xarray.__version__)'
# the study is trained with PyTorch, and its tests never skip
exec "$VENV/bin/python" -m pytest -n 2 -q -m "not long" --ignore tests/study/test_dose_overlap_training.py
