"""Makes examples/models/digits, the model that README and the image start with: what the demo trains, kept."""

import asyncio
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from demo import MODEL, learn  # noqa: E402
from own_server import own_server  # noqa: E402
from recordings import shipped  # noqa: E402
from seqloom_server.nn.files import model_folder  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with own_server(pathlib.Path(folder)) as server:
            asyncio.run(learn(server.address, shipped(), None))
        network, _ = model_folder.load(pathlib.Path(folder) / MODEL)
        model_folder.save(ROOT / "examples" / "models" / MODEL, network)  # whose versions begin anew


if __name__ == "__main__":
    main()
