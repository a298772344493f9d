"""The environment that setup.sh made, which is looked for under PEERS_HOME."""

import os
import pathlib
import subprocess


class PeerMissing(Exception):
    """There is no environment of the peers; the text says how to make one."""


class Environment:
    """What setup.sh made."""

    def __init__(self) -> None:
        home = pathlib.Path(os.environ.get("PEERS_HOME") or pathlib.Path.home() / ".cache" / "seqloom-peers")
        self.python = home / "venv" / "bin" / "python"
        self.backends = home / "backends"
        if not (self.python.exists() and (self.backends / "python" / "triton_python_backend_stub").exists()):
            how = "`make peers` makes it, see benchmarks/peers/README.md"
            raise PeerMissing(f"Triton is left out: no environment in {home}; {how}")
        paths = subprocess.check_output([self.python, "-c", _PATHS], text=True).split("\n")
        self._site, self._libraries = map(pathlib.Path, paths[:2])

    @property
    def server(self) -> pathlib.Path:
        """The program."""
        return self._site / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def variables(self, **more: str) -> dict[str, str]:
        """The environment variables that the server and the processes of its models run with."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": f"{self._site / 'nvidia_pytriton.libs'}:{self._libraries}",
            "PATH": f"{self.python.parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(self._site),
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }


_PATHS = "import sysconfig; print(sysconfig.get_paths()['purelib']); print(sysconfig.get_config_var('LIBDIR'))"
