"""The command `seqloom-server`: starts a server, creates or imports model folders, and checks a server's health."""

import argparse
import asyncio
import gc
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING

from seqloom_server import config
from seqloom_server.config import ConfigError, ServerConfig

if TYPE_CHECKING:
    from seqloom_server.engine.models.registry import ModelInfo, Registry

log = logging.getLogger("seqloom_server")

# The garbage collector's thresholds. The interpreter's own 700 new objects are only a few messages; the older
# generations are small, since the objects that stay are frozen.
_GC_THRESHOLDS = (10_000, 10, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = getattr(options, "command", _serve)
    try:
        settings = config.load(vars(options), os.environ)
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        result: int = command(settings, options)
        return result
    except (ConfigError, CommandFailed) as error:
        print(f"seqloom-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class CommandFailed(Exception):
    """A command failed; the text is one line for the user."""


def _serve(settings: ServerConfig, _: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # no work is running yet that would have to end

    import torch

    from seqloom_server.engine.admission.loop_time import TimedLoop
    from seqloom_server.engine.engine import CannotStart
    from seqloom_server.rpc.server import Server

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CommandFailed("device: is cuda: torch finds no CUDA device")

    async def serve() -> None:
        server = Server(settings)
        try:
            await server.start()
        except CannotStart as error:
            raise CommandFailed(str(error)) from None
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def begin_shutdown() -> None:
            stop.set()
            for number in (signal.SIGTERM, signal.SIGINT):  # the second signal ends the process at once
                loop.remove_signal_handler(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, begin_shutdown)
        _freeze_garbage_collector()
        log.info("metrics on http://%s/metrics", server.http_address)
        print(f"seqloom-server: serving on {server.address}", flush=True)
        await stop.wait()
        log.info("shutting down: running work may take up to %g s more", settings.grace_seconds)
        await server.stop()

    sys.setswitchinterval(settings.switch_interval_ms / 1e3)
    with asyncio.Runner(loop_factory=TimedLoop) as runner:
        runner.run(serve())
    return 0


def _freeze_garbage_collector() -> None:
    """Excludes all present objects from garbage collection, which would delay calls by a tenth of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _create_model(settings: ServerConfig, options: argparse.Namespace) -> int:
    from seqloom_server.nn.spec import InvalidSpec, ModelSpec

    names = ("cell", "activation", "dtype", "bidirectional", "precision", *_SIZES)
    try:
        spec = ModelSpec(**{name: getattr(options, name) for name in names})
    except InvalidSpec as error:
        raise CommandFailed(f"--{str(error).replace('_', '-', 1)}") from None
    return _write_model(settings, options.name, lambda registry: registry.create(options.name, spec, options.seed))


def _import_model(settings: ServerConfig, options: argparse.Namespace) -> int:
    from seqloom_server.nn.files import model_folder, state_dict, state_dict_file
    from seqloom_server.nn.spec import InvalidSpec

    path = options.state_dict
    try:
        network = state_dict.from_state_dict(
            state_dict_file.read(path), options.activation, causal_convolution=options.causal_convolution
        )
    except (state_dict_file.NoStateDict, InvalidSpec) as error:
        raise CommandFailed(f"{path}: {error}") from None
    if (pathlib.Path(settings.models) / options.name).exists():
        raise CommandFailed(f"a model {options.name!r} exists already")
    files = model_folder.to_bytes(network)
    return _write_model(settings, options.name, lambda registry: registry.import_(options.name, *files, new=True))


def _write_model(
    settings: ServerConfig, name: str, write: "Callable[[Registry], Coroutine[None, None, ModelInfo]]"
) -> int:
    """Writes a model folder through a registry, as a server does."""
    from seqloom_server.engine.models.registry import Registry
    from seqloom_server.errors import ServerError

    async def run() -> None:
        info = await write(Registry(folder, "cpu", 1, settings.max_model_bytes))
        print(f"seqloom-server: {folder / name} has {info.parameter_count} parameters")

    folder = pathlib.Path(settings.models)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(run())
    except ServerError as error:
        raise CommandFailed(error.message) from None
    except OSError as error:
        raise CommandFailed(f"models: {settings.models}: {error.strerror}") from None
    return 0


def _healthcheck(settings: ServerConfig, options: argparse.Namespace) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    address = options.address or settings.listen
    try:
        if config.unix_socket(address) is None:
            host, port = config.split_address(address)
            address = f"{({'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}).get(host, host)}:{port}"
    except ValueError as error:
        raise CommandFailed(f"--address: {error}") from None
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError as error:
            raise CommandFailed(f"{address}: {error.code().name}: {error.details()}") from None
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


_SIZES = ("input_size", "hidden_size", "output_size", "num_layers", "conv_channels", "conv_width")
_SIZE_DEFAULTS = {"num_layers": 1, "conv_channels": 0, "conv_width": 0}
_SIZE_HELP = {
    "conv_channels": "output channels of a causal convolution with relu before the first layer; 0 for none",
    "conv_width": "kernel width of that convolution, in steps",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "seqloom-server",
        description="Serves and trains recurrent networks over gRPC. A flag overrides the environment variable in "
        "brackets, which overrides the key of the same name in the TOML file, which overrides the default in "
        "parentheses.",
    )
    config.add_options(parser)
    commands = parser.add_subparsers(title="other commands", metavar="COMMAND")

    create = commands.add_parser("create-model", help="create a model folder with random weights")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--cell", required=True, choices=("elman", "gru", "lstm"))
    for name in _SIZES:
        create.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            metavar="N",
            required=name not in _SIZE_DEFAULTS,
            default=_SIZE_DEFAULTS.get(name),
            help=_SIZE_HELP.get(name),
        )
    create.add_argument(
        "--bidirectional", action="store_true", help="run each layer backward, too: takes whole sequences only"
    )
    create.add_argument("--activation", choices=("tanh", "relu"), default="tanh")
    create.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    create.add_argument(
        "--precision",
        choices=("full", "tf32", "bf16", "int8"),
        default="full",
        help="precision of outputs; gradients are always computed in full precision",
    )
    create.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the random weights")
    config.add_options(create, "models")
    create.set_defaults(command=_create_model)

    import_ = commands.add_parser("import-model", help="create a model folder from a torch.nn state dict")
    import_.add_argument("name", metavar="NAME")
    import_.add_argument(
        "--state-dict",
        required=True,
        metavar="FILE",
        help='safetensors file whose tensor names begin with "conv.", "rnn." or "output."',
    )
    import_.add_argument(
        "--causal-convolution",
        action="store_true",
        help="the convolution is causal and followed by relu: output t sees inputs t-width+1 to t, with zeros before "
        'the first; a state dict does not say whether it is, or padded on both sides as with padding="same"',
    )
    import_.add_argument(
        "--activation", choices=("tanh", "relu"), default="tanh", help="activation function of an Elman network"
    )
    config.add_options(import_, "models")
    import_.set_defaults(command=_import_model)

    check = commands.add_parser("healthcheck", help="check a server's health; exit status 0 if it is serving")
    check.add_argument("--address", metavar="HOST:PORT|unix:PATH", help="server to check (the address of --listen)")
    config.add_options(check, "listen")
    check.set_defaults(command=_healthcheck)
    return parser


if __name__ == "__main__":
    sys.exit(main())
