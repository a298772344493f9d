"""Fails the image's build when the torch in it is not the build that was asked for: `check_torch.py cpu|cuda`."""

import importlib.metadata
import sys

import torch


def main() -> None:
    wanted = sys.argv[1]
    if wanted not in ("cpu", "cuda"):
        sys.exit(f"DEVICE is {wanted!r}: expected cpu or cuda")
    found = "cuda" if torch.version.cuda else "cpu"
    if found != wanted:
        sys.exit(f"torch {torch.__version__} is a {found} build: DEVICE={wanted} wants another TORCH_INDEX_URL")
    names = [distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()]
    gpu_packages = sorted(name for name in names if name.startswith(("nvidia-", "cuda-", "triton")))
    if wanted == "cpu" and gpu_packages:
        sys.exit(f"a CPU image holds {', '.join(gpu_packages)}")


if __name__ == "__main__":
    main()
