"""The parts of the GPU benchmark that run on the device in this process: correctness, then forward and back."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from seqloom_server.engine.core.sequence import Member, Op, OutputSpec, Sequence, Slice
from seqloom_server.engine.device.slice_runner import run
from seqloom_server.engine.device.transfers import staging_of
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.batch_gradients import Example, GradientRequest

from benchmarks.harness.table_rows import Row
from benchmarks.setup.gpu_bench import GpuBench, differentiate, examples_of, forward, forward_flops, torch_module

_LENGTHS = [100, 97, 80, 100, 33, 7]  # of what is checked
_OUTPUTS_WITHIN, _GRADIENTS_WITHIN = 1e-4, 1e-3  # of the largest number, in float32 beside float64
_OWN = GradientRequest(parameters="smallest")
_OWN_UP_TO = 256  # callers; of more the gigabytes that go to the CPU would be all that is measured


class Wrong(Exception):
    """The device does not give what the CPU gives."""


def correctness(bench: GpuBench) -> Iterator[Row]:
    """Every cell, a ragged slice and its gradients, beside float64 on the CPU. Raises Wrong."""
    for title, spec in bench.specs.items():
        weights = bench.weights(title)
        exact = Network(dataclasses.replace(spec, dtype="float64"), weights.network.parameters(), "cpu")
        for lengths in (_LENGTHS, [100] * 4):
            examples = examples_of(spec, lengths)
            got = _outputs(weights, [example.xs for example in examples])
            wanted = _outputs(ServedWeights("exact", 1, exact), [example.xs.astype("f8") for example in examples])
            error = max(_error(one, other) for one, other in zip(got, wanted, strict=True))
            told = "of one length" if lengths[0] == lengths[-1] else "ragged"
            yield _checked(f"outputs, {told}", title, error, _OUTPUTS_WITHIN)
        ours = differentiate(weights.network, examples_of(spec, _LENGTHS), total=True, wants=GradientRequest()).total
        doubled = examples_of(exact.spec, _LENGTHS)
        theirs = differentiate(exact, doubled, total=True, wants=GradientRequest()).total
        error = max(_error(ours[name].cpu().numpy(), theirs[name].numpy()) for name in theirs)
        yield _checked("gradients", title, error, _GRADIENTS_WITHIN)


def ceiling(bench: GpuBench) -> Iterator[Row]:
    """A large product of float32, which is what everything else stands beside."""
    one, other = (torch.randn(bench.size, bench.size, device=bench.device) for _ in range(2))
    rounds = bench.interleaved({"ours": lambda: one @ other}, 0.0)["ours"]
    flops = 2.0 * bench.size**3
    for result in rounds:
        result["tflops"] = flops / result["device_ms"] / 1e9
    bench.ceiling = 1e12 * float(np.median([result["tflops"] for result in rounds]))
    yield Row.of(f"a product of {bench.size} x {bench.size} matrices", "float32", rounds)


def forwards(bench: GpuBench) -> Iterator[Row]:
    """The recurrent layers, N sequences by t steps, beside torch.nn's."""
    for title, spec in bench.specs.items():
        weights = bench.weights(title)
        rnn = torch_module(weights.network)["rnn"].eval()
        for count in bench.counts:
            xs = torch.randn(bench.steps, count, spec.input_size, device=bench.device)

            def theirs(xs: torch.Tensor = xs, rnn: torch.nn.Module = rnn) -> object:
                with torch.inference_mode():
                    return rnn(xs)

            runs = {"ours": forward(weights, count, bench.steps), "torch.nn": theirs}
            rounds = bench.interleaved(runs, forward_flops(spec, count * bench.steps))
            row = Row.of(f"forward, N={count} by t={bench.steps}", title, rounds["ours"])
            yield row.against(rounds["torch.nn"], "device_ms", "torch.nn")


def precisions(bench: GpuBench) -> Iterator[Row]:
    """The same in TF32 and bfloat16, beside full precision."""
    title, spec = next(iter(bench.specs.items()))
    for precision in ("tf32", "bf16"):
        other = f"{title} {precision}"
        bench.specs[other] = dataclasses.replace(spec, precision=precision)
        for count in bench.counts:
            runs = {"ours": forward(bench.weights(other), count, bench.steps)}
            runs["full"] = forward(bench.weights(title), count, bench.steps)
            rounds = bench.interleaved(runs, forward_flops(spec, count * bench.steps))
            row = Row.of(f"forward, N={count} by t={bench.steps}", other, rounds["ours"])
            yield row.against(rounds["full"], "device_ms", "full precision")
        del bench.specs[other]


def backwards(bench: GpuBench) -> Iterator[Row]:
    """Forward and back with the output layer: the sum, and every caller's own, beside torch.nn's autograd."""
    for title, spec in bench.specs.items():
        network = bench.weights(title).network
        module = torch_module(network)
        for count in bench.counts:
            examples = examples_of(spec, [bench.steps] * count)
            xs = torch.from_numpy(np.stack([example.xs for example in examples], 1)).to(bench.device)
            labels = torch.from_numpy(np.stack([example.targets for example in examples], 1)).long().to(bench.device)

            def theirs(
                xs: torch.Tensor = xs, labels: torch.Tensor = labels, module: torch.nn.ModuleDict = module
            ) -> None:
                module.zero_grad(set_to_none=True)
                logits = module["output"](module["rnn"](xs)[0].flatten(0, 1))
                torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum").backward()

            def ours(wants: GradientRequest, network: Network = network, given: list[Example] = examples) -> object:
                return differentiate(network, given, total=wants is not _OWN, wants=wants)

            runs = {"ours": lambda ours=ours: ours(GradientRequest()), "torch.nn": theirs}
            if count <= _OWN_UP_TO:
                runs["own"] = lambda ours=ours: ours(_OWN)
            cells = count * bench.steps
            flops = 3 * (forward_flops(spec, cells) + 2.0 * spec.outputs_width * spec.output_size * cells)
            rounds = bench.interleaved(runs, flops)
            for name, told in (("ours", "summed"), ("own", "each its own")):
                if name in rounds:
                    row = Row.of(f"forward and back, N={count} by t={bench.steps}, {told}", title, rounds[name])
                    yield row.against(rounds["torch.nn"], "device_ms", "torch.nn")


def _outputs(weights: ServedWeights, frames: list[np.ndarray]) -> list[np.ndarray]:
    """One slice of whole sequences, as a server runs it."""
    members = [
        Member(Sequence(Op.INFER, weights, OutputSpec(), None), [xs], len(xs), 0, None, True, None, True, True, False)
        for xs in frames
    ]
    piece = Slice(weights, members, max(map(len, frames)), sum(map(len, frames)))
    given = dict(run(piece, staging_of(weights.network.device.type)))
    return [given[member].values for member in members]


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _checked(what: str, title: str, error: float, within: float) -> Row:
    if not error <= within:
        raise Wrong(f"{what} of {title} differ from the CPU's in float64 by {error:.1e}: at most {within:.0e} is right")
    return Row.of(what, title, [{"worst_error": error}], None, f"at most {within:.0e} is right")
