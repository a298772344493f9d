#!/usr/bin/env bash
# safetensors 0.8.0: safe_open says "No such file or directory" of a file that is there and may not be read.
#
# It raises FileNotFoundError, without errno, whatever kept the file from being opened: where the system says "Permission
# denied", and open() raises PermissionError, whoever reads the message looks for a file that lies in its place.
# Source: https://github.com/safetensors/safetensors/issues/805 (open).
# So Seqloom opens the file itself first, and says which of both it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'safetensors==0.8.0' 'numpy==2.4.6'
cd "$folder"
venv/bin/python -c '
import numpy, safetensors.numpy
safetensors.numpy.save_file({"a": numpy.zeros(3, "f4")}, "there.safetensors")'
chmod 0 there.safetensors
without_rights=()
if [ "$(id -u)" = 0 ]; then without_rights=(unshare -U); fi # root may read everything but in a namespace of users
${without_rights[@]+"${without_rights[@]}"} venv/bin/python - <<'PYTHON'
import safetensors

print("safetensors", safetensors.__version__)


def told(call):
    try:
        call()
    except OSError as error:
        return f"{type(error).__name__}, errno {error.errno}: {error}"
    return "opened"


system = told(lambda: open("there.safetensors", "rb"))
found = told(lambda: safetensors.safe_open("there.safetensors", "np").__enter__())
print("open():     ", system)
print("safe_open():", found)
if not system.startswith("PermissionError"):
    raise SystemExit("this system lets the file be read: nothing is shown")
if not found.startswith("FileNotFoundError, errno None: No such file or directory"):
    raise SystemExit("it behaves otherwise now")
PYTHON
