"""The trained networks that read: textgenrnn and the two of g2p-en."""

import json
import pathlib
import re

import numpy as np
import torch

from benchmarks.pretrained.packages import Pretrained, Run, Said, Sequences, Tensors, layer

_TEXT = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"  # English that does not change


def networks(folder: pathlib.Path) -> list[Pretrained]:
    """Returns those of the packages that pretrained.install() put into a folder. They read this project's licence."""
    text = re.sub(r"\s+", " ", _TEXT.read_text())
    return [_textgenrnn(folder / "textgenrnn", text), *_g2p(folder / "g2p_en", text.lower())]


def _textgenrnn(folder: pathlib.Path, text: str) -> Pretrained:
    """The next character of a text, from the 40 before it."""
    import h5py  # there after install()

    w: Tensors = {}
    with h5py.File(folder / "textgenrnn_weights.hdf5") as file:
        file.visititems(
            lambda name, each: w.update({name: torch.from_numpy(each[()])} if hasattr(each, "dtype") else {})
        )
    numbers = json.loads((folder / "textgenrnn_vocab.json").read_text())
    parameters = {}
    for number, name in enumerate(("rnn_1", "rnn_2")):
        u, v, both = (w[f"{name}/{name}/{part}:0"] for part in ("kernel", "recurrent_kernel", "bias"))
        # two biases mean cuDNN's layout of each gate, in arrays of Keras' shapes
        tensors = (torch.cat([gate.reshape(-1, len(u)) for gate in u.chunk(4, 1)]), torch.cat(v.chunk(4, 1)))
        parameters |= layer(number, *tensors, *both.chunk(2))
    below = {name: each for name, each in parameters.items() if name.endswith("l0")}
    index = torch.tensor([numbers.get(character, 0) for character in text])
    embedded = w["embedding/embedding/embeddings:0"][index]
    starts = range(0, len(index) - 40, 10)
    xs = [embedded[start : start + 40] for start in starts]
    attention, weight, bias = (
        w[name].double()
        for name in ("attention/attention/attention_W:0", "output/output/kernel:0", "output/output/bias:0")
    )

    def say(run: Run) -> Said:
        hidden, lower = run(parameters, xs)[0], run(below, xs)[0]
        seen = torch.cat([torch.stack(xs).double(), torch.stack(lower), torch.stack(hidden)], 2)
        logits = ((seen @ attention).softmax(1) * seen).sum(1) @ weight + bias
        return Said(hidden, logits, logits.softmax(1), logits.argmax(1), index[[start + 40 for start in starts]])

    return Pretrained("textgenrnn", parameters, list(embedded[:4000].split(1000)), say)


def _g2p(folder: pathlib.Path, text: str) -> list[Pretrained]:
    """Phonemes of words: one network reads the letters, another goes on from its state and writes."""
    file = np.load(folder / "checkpoint20.npz", allow_pickle=False)
    w = {name: torch.from_numpy(file[name]) for name in file.files}
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    reads, writes = (layer(0, *(w[f"{part}_{name}"] for name in names)) for part in ("enc", "dec"))
    writes |= {"output.weight": w["fc_w"], "output.bias": w["fc_b"]}
    first, last, letter_a, end = 2, 3, 3, 2  # numbers of its phonemes and of its letters

    def letters(word: str) -> torch.Tensor:
        return w["enc_emb"][[ord(letter) - ord("a") + letter_a for letter in word] + [end]]

    words = [letters(word) for word in sorted(set(re.findall("[a-z]+", text)))]
    running = re.sub("[^a-z]", "", text)
    long = [letters(running[start : start + 999]) for start in range(0, 4000, 1000)]
    spoken: Sequences = []  # by the network in full: what the other is given to go on from

    def say_letters(run: Run) -> Said:
        return Said(run(reads, words)[0])

    def say(run: Run) -> Said:
        state = run(reads, words)[2]
        if not spoken:
            spoken.extend(_greedy(run, writes, state, w["dec_emb"], first, last))
        hidden, logits, _ = run(writes, [w["dec_emb"][each] for each in spoken], state)
        every = torch.cat(logits)
        return Said(hidden, every, every.softmax(1), every.argmax(1))

    return [
        Pretrained("g2p-en, letters", reads, long, say_letters),
        Pretrained("g2p-en, phonemes", writes, [], say),
    ]


def _greedy(
    run: Run, writes: Tensors, state: tuple[torch.Tensor, ...], embedding: torch.Tensor, first: int, last: int
) -> Sequences:
    """Returns `first` and the phonemes before `last` of each word, 19 at most."""
    spoken = [[first] for _ in range(state[0].shape[1])]
    for _ in range(19):
        _, logits, state = run(writes, [embedding[each[-1:]] for each in spoken], state)
        for each, row in zip(spoken, logits, strict=True):
            each.append(int(row.argmax()))
    return [torch.tensor(each[: each.index(last)] if last in each else each) for each in spoken]
