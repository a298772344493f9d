#!/usr/bin/env bash
# One virtual environment with torch, tritonclient and Triton's server, and the folder of its Python backend.
#
#   PEERS_HOME   where it goes (~/.cache/seqloom-peers); what is there already is kept
#   PYTHON       the interpreter that it is made with (python3; 3.11 or 3.12)
#   TORCH_INDEX  the package index that torch comes from (pip's own)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${PEERS_HOME:-$HOME/.cache/seqloom-peers}
bin=$home/venv/bin
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || {
  echo "peers: Triton's wheel has a backend for Python 3.11 and 3.12 only: name one with PEERS_PYTHON=" >&2
  exit 1
}
mkdir -p "$home"
[ -x "$bin/python" ] || "${PYTHON:-python3}" -m venv "$home/venv"
# torch goes first: from the index of CPU builds it brings no CUDA
"$bin/pip" install -q -c "$here/constraints.txt" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
"$bin/pip" install -q -c "$here/constraints.txt" -r "$here/requirements.txt"
site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
version=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# the wheel keeps the backend and its stub, one for each version of Python, apart; the server wants them in one folder
mkdir -p "$home/backends"
cp -R "$site/pytriton/tritonserver/backends/python" "$home/backends/"
cp "$site/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub" "$home/backends/python/"
echo "peers: ready in $home"
