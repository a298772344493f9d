"""Puts `prometheus` and `promtool` into a folder of the virtual environment, for the tests of deploy/; needs no root.

They come from the machine's own PATH, else from Debian's or Ubuntu's package, unpacked and not installed. Where neither
can be had it says so, and exits with 1.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(sys.prefix) / "prometheus"
PROGRAMS = ("prometheus", "promtool")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    found = [shutil.which(program) for program in PROGRAMS]
    if all(found):
        for program, path in zip(PROGRAMS, found, strict=True):
            target = FOLDER / program
            target.unlink(missing_ok=True)
            target.symlink_to(str(path))
    elif all(map(shutil.which, ("apt-get", "dpkg"))):
        unpack_package()
    else:
        sys.exit("there is no apt-get here: put prometheus and promtool on the PATH (prometheus.io/download)")


def unpack_package() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt drops its rights where it can
        download = ["apt-get", "download", "-qq", "prometheus"]
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        if done.returncode and os.geteuid() == 0:  # a container begins without lists of packages
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
            done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        packages = list(pathlib.Path(folder).glob("prometheus_*.deb"))
        if done.returncode or not packages:
            sys.exit(f"apt-get cannot download prometheus: {done.stderr.strip().splitlines()[-1:]}")
        subprocess.run(["dpkg", "-x", str(packages[0]), folder], check=True)
        for program in PROGRAMS:
            (FOLDER / program).unlink(missing_ok=True)
            shutil.copy2(pathlib.Path(folder) / "usr" / "bin" / program, FOLDER / program)


if __name__ == "__main__":
    main()
