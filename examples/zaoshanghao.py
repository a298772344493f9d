"""Runs one second of 早上好 through the server, forward and backward, and compares it with the formulas in plain numpy.

A frame every 10 ms makes 100 frames of 160 samples at 16 kHz: a matrix of 100 x 160. The network has 1,000 hidden units
and 6,000 output classes. Its weights are random, so it knows no Chinese; the example shows the arithmetic: the outputs,
and every gradient of the loss. The sequence is sent alone, then again in batches with other callers' sequences.
"""

import argparse
import asyncio
import contextlib
import pathlib
import signal
import sys
import tempfile
from collections.abc import Mapping

import numpy as np
import seqloom
from features import HOP
from formulas import FORMULAS, Arrays, apart, backward, forward, loss
from matplotlib.figure import Figure
from own_server import OwnServer, own_server
from recordings import GREETING, shipped
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "zaoshanghao"
SPEC = seqloom.ModelSpec(cell="elman", input_size=160, hidden_size=1000, output_size=6000)
STEPS = 100
FRAMES = {"zao": 30, "shang": 40, "hao": 30}  # steps 1 to 30, 31 to 70, 71 to 100
CLASSES = {"zao": 1000, "shang": 3000, "hao": 5000}  # three of the 6,000, whose order means nothing
KINDS = ("hidden", "logits", "probs", "log_probs")
OUTPUTS_TOLERANCE, GRADIENTS_TOLERANCE = 1e-4, 1e-3
WRT = ("parameters", "inputs", "initial_state", "outputs", "hidden")


def greeting() -> np.ndarray:
    """Returns X, [100, 160] float32: one second of the voice whose words are closest to the positions of the labels."""
    recording = next(one for one in shipped().recordings if one.speaker == "m4" and one.words == GREETING)
    samples = recording.samples[9 * HOP :][: STEPS * HOP]
    return samples.reshape(STEPS, HOP)


def labels() -> np.ndarray:
    """Returns y, [100]: the class of each step."""
    return np.repeat([CLASSES[word] for word in FRAMES], list(FRAMES.values()))


async def serve_alone(client: seqloom.AsyncClient, xs: np.ndarray, y: np.ndarray) -> Arrays:
    """Returns the server's outputs and gradients for one sequence [T, D], one call after the other."""
    outputs = {kind: (await client.infer(MODEL, [xs], outputs=kind)).outputs[0] for kind in KINDS}
    g = await client.gradients(MODEL, [xs], [y], wrt=WRT)
    delta, _ = g.factors["rnn.bias_ih_l0"]  # 100 steps of both factors are smaller than their products
    return outputs | {
        "loss": np.array(g.loss),
        "dL/do_t": g.outputs[0],
        "dL/ds_t": g.hidden[0],
        "delta_t": delta,
        "dL/dx_t": g.inputs[0],
        "dL/ds_0": g.initial_state.hidden[0, 0],
        "dL/dV": g.parameters["output.weight"],
        "dL/dU": g.parameters["rnn.weight_ih_l0"],
        "dL/dW": g.parameters["rnn.weight_hh_l0"],
        "dL/dc": g.parameters["output.bias"],
        "dL/db": g.parameters["rnn.bias_ih_l0"],
    }


async def serve_among_others(address: str, xs: np.ndarray, y: np.ndarray, callers: int) -> Arrays:
    """As serve_alone, while other callers send sequences of 20 to 200 steps, each over its own connection.

    Each requests outputs, then gradients, repeatedly.
    """
    random, over = np.random.default_rng(0), asyncio.Event()

    async def other(client: seqloom.AsyncClient) -> None:
        while not over.is_set():
            noise = random.normal(0, 0.1, (random.integers(20, 201), SPEC.input_size))
            result = await client.infer(MODEL, [noise], outputs="labels")
            gradients = await client.gradients(MODEL, [noise], result.outputs, wrt="inputs")
            assert len(gradients.inputs[0]) == len(noise)

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:  # the tasks end before the clients
        first, *others = [await stack.enter_async_context(seqloom.AsyncClient(address)) for _ in range(callers + 1)]
        await asyncio.gather(*(client.model(MODEL) for client in (first, *others)))  # now all are connected
        for client in others:
            group.create_task(other(client))
        try:
            return await serve_alone(first, xs, y)
        finally:
            over.set()


async def through_the_service(
    address: str, server: OwnServer | None, xs: np.ndarray, y: np.ndarray, callers: int
) -> tuple[Mapping[str, np.ndarray], dict[str, Arrays]]:
    """Creates the model if it does not exist; returns its weights, and the results of each way of calling."""
    async with seqloom.AsyncClient(address) as client:
        with contextlib.suppress(seqloom.AlreadyExists):
            await client.create_model(MODEL, SPEC, seed=0)
        if (model := await client.model(MODEL)).spec != SPEC:
            raise ValueError(f"{address} serves another model as {MODEL!r}: {model.spec}")
        with tempfile.TemporaryDirectory() as folder:
            await client.export_model(MODEL, folder)
            weights = load_file(pathlib.Path(folder) / "model.safetensors")
        print_sizes(model.parameter_count)
        alone = await serve_alone(client, xs, y)
    before = server and server.metrics()
    among = await serve_among_others(address, xs, y, callers)
    if server and before:
        grown = server.metrics() - before
        mean = grown["seqloom_batch_sequences_sum"] / grown["seqloom_batch_sequences_count"]
        print(f"Among {callers} other callers: {mean:.1f} sequences shared a batch on average.")
    return weights, {"alone": alone, "among others": among}


def print_sizes(parameters: int) -> None:
    """Prints how many parameters weight sharing saves, and the operations of a frame."""
    products = SPEC.hidden_size * (SPEC.input_size + SPEC.hidden_size + SPEC.output_size)
    print(f"{STEPS} frames of {HOP} samples, {SPEC.hidden_size:,} hidden units, {SPEC.output_size:,} classes.")
    print(f"Parameters: {parameters:,}, shared by all steps; a set for each of them would be {STEPS * parameters:,}.")
    print(f"A frame costs {2 * products:,} floating-point operations, a second of speech {2 * products * STEPS:,}.")


def compare(weights: Mapping[str, np.ndarray], xs: np.ndarray, y: np.ndarray, served: Mapping[str, Arrays]) -> bool:
    """Prints the difference between served results and formulas; returns whether it is within the tolerances."""
    exact_weights = {name: weight.astype(float) for name, weight in weights.items()}
    exact = forward(exact_weights, xs.astype(float))
    exact["log_probs"] = np.log(exact["probs"])
    print("Through the service in float32 against numpy in float64, step by step: the largest relative difference")
    worst = 0.0
    for way, found in served.items():
        differences = {kind: apart(found[kind], exact[kind]) for kind in KINDS}
        worst = max(worst, *differences.values())
        print(f"  {way:12}  " + "  ".join(f"{kind} {difference:.1e}" for kind, difference in differences.items()))
    print("The loss, the sum of -log p_t[y_t] over the steps:")
    for way, found in served.items():
        print(f"  {way:12}  {found['loss']:.4f}")
    print(f"  {'numpy':12}  {loss(exact['probs'], y):.4f}")
    gradients = backward(exact_weights, xs.astype(float), y)
    print(f"Its gradients, likewise:{'':{15}}" + "  ".join(f"{way:>12}" for way in served))
    worst_gradient = 0.0
    for name, formula in FORMULAS.items():
        row = [apart(found[name], gradients[name]) for found in served.values()]
        worst_gradient = max(worst_gradient, *row)
        print(f"  {name:7} = {formula:27}  " + "  ".join(f"{difference:12.1e}" for difference in row))
    print(f"The largest difference of a gradient: {worst_gradient:.1e}")
    return worst < OUTPUTS_TOLERANCE and worst_gradient < GRADIENTS_TOLERANCE


def draw(path: pathlib.Path, xs: np.ndarray, numbers: Arrays) -> None:
    """Writes a PNG: the waveform, the hidden state over time, the probabilities of the three labels."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    wave, state, probs = figure.subplots(3, 1, sharex=True, height_ratios=[1, 2, 1.2])
    seconds = np.arange(xs.size) / xs.size
    wave.plot(seconds, xs.ravel(), linewidth=0.4, color="#1f4e79")
    wave.set(ylabel="waveform", xlim=(0, 1))
    most = np.abs(numbers["hidden"]).max()
    image = state.imshow(
        numbers["hidden"].T, aspect="auto", cmap="RdBu", vmin=-most, vmax=most, extent=(0, 1, SPEC.hidden_size, 0),
        interpolation="nearest",
    )  # fmt: skip
    state.set(ylabel="hidden unit")
    figure.colorbar(image, ax=state, label="$s_t$", pad=0.01)
    middles = (np.arange(STEPS) + 0.5) / STEPS
    for word, number in CLASSES.items():
        probs.plot(middles, numbers["probs"][:, number], label=word)
    probs.axhline(1 / SPEC.output_size, color="0.6", linewidth=0.8, linestyle="--", label="1 / 6,000")
    probs.set(xlabel="seconds", ylabel="$p_t$ of the labels")
    probs.legend(loc="upper right", ncols=4, fontsize="small")
    probs.ticklabel_format(axis="y", scilimits=(-4, -4))
    figure.suptitle("One second of zao shang hao; the weights are drawn from a seed, not trained")
    end = 0
    for word, frames in FRAMES.items():
        begin, end = end, end + frames
        wave.text((begin + end) / 2 / STEPS, 1.03, word, transform=wave.get_xaxis_transform(), ha="center")
        for axis in (wave, state, probs):
            axis.axvline(end / STEPS, color="0.6", linewidth=0.6, linestyle="--")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Runs the example; the exit status is 1 if the server's results differ too much from numpy's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", metavar="HOST:PORT", help="a server that runs; by default one is started")
    parser.add_argument("--callers", type=int, default=8, metavar="N", help="how many others there are (8)")
    parser.add_argument("--picture", type=pathlib.Path, default=ROOT / "build" / "zaoshanghao.png", metavar="PNG")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # the server ends with the example
    xs, y = greeting(), labels()
    try:
        with contextlib.ExitStack() as stack:
            server = None
            if options.address is None:
                models = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                server = stack.enter_context(own_server(models))
            address = options.address or server.address
            weights, served = asyncio.run(through_the_service(address, server, xs, y, options.callers))
    except (seqloom.SeqloomError, RuntimeError, ValueError) as error:
        print(f"zaoshanghao: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

    agree = compare(weights, xs, y, served)
    draw(options.picture, xs, served["alone"])
    print(f"Waveform, hidden state, probabilities of the labels: {options.picture}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
