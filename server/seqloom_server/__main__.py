"""The command `seqloom-server`: serves, makes model folders, and asks a server for its health."""

import argparse
import asyncio
import gc
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from seqloom_server import config
from seqloom_server.config import ConfigError, ServerConfig

log = logging.getLogger("seqloom_server")

# Objects more than before, of which the interpreter's own 700 are a few messages; and how many looks at the young ones
# go to one at the older ones, which are few where those that stay are left out.
_COLLECTED_EVERY = (10_000, 10, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command", _serve)
    try:
        settings = config.load(options, os.environ)
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
    """What kept a command from its end, in one line for people."""


def _serve(settings: ServerConfig, _: dict[str, Any]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is under way yet that would have to end

    import torch

    from seqloom_server.engine.engine import CannotStart
    from seqloom_server.rpc.server import Server

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CommandFailed("device: cuda is asked for, and torch finds none here")

    async def serve() -> None:
        server = Server(settings)
        try:
            await server.start()
        except CannotStart as error:
            raise CommandFailed(str(error)) from None
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def begin_to_stop() -> None:
            stop.set()
            for number in (signal.SIGTERM, signal.SIGINT):  # the second signal ends the process at once
                loop.remove_signal_handler(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, begin_to_stop)
        _spare_the_collector()
        log.info("metrics on http://%s/metrics", server.http_address)
        print(f"seqloom-server: serving on {server.address}", flush=True)
        await stop.wait()
        log.info("stopping: up to %g s for what is under way", settings.grace_seconds)
        await server.stop()

    sys.setswitchinterval(settings.switch_interval_ms / 1e3)
    asyncio.run(serve())
    return 0


def _spare_the_collector() -> None:
    """All that is there by now stays: to look through it for garbage would hold calls up for a tenth of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_EVERY)


def _create_model(settings: ServerConfig, options: dict[str, Any]) -> int:
    from seqloom_server.nn import spec

    fields = {name: options[name] for name in ("cell", "activation", "dtype", "bidirectional", "precision", *_SIZES)}
    try:
        wanted = spec.ModelSpec(**fields)
    except spec.InvalidSpec as error:
        raise CommandFailed(f"--{str(error).replace('_', '-', 1)}") from None
    return _write(settings, options["name"], lambda registry: registry.create(options["name"], wanted, options["seed"]))


def _import_model(settings: ServerConfig, options: dict[str, Any]) -> int:
    from seqloom_server.nn.files import model_folder, state_dict, state_dict_file
    from seqloom_server.nn.spec import InvalidSpec

    path = options["state_dict"]
    try:
        network = state_dict.from_state_dict(
            state_dict_file.read(path), options["activation"], causal_convolution=options["causal_convolution"]
        )
    except (state_dict_file.NoStateDict, InvalidSpec) as error:
        raise CommandFailed(f"{path}: {error}") from None
    if (pathlib.Path(settings.models) / options["name"]).exists():
        raise CommandFailed(f"a model {options['name']!r} exists already")
    files = model_folder.to_bytes(network)
    return _write(settings, options["name"], lambda registry: registry.import_(options["name"], *files, new=True))


def _write(settings: ServerConfig, name: str, change: Any) -> int:
    """Makes a model folder as a server would."""
    from seqloom_server.engine.models.registry import Registry
    from seqloom_server.errors import ServerError

    async def write() -> None:
        info = await change(Registry(folder, "cpu", 1, settings.max_model_bytes))
        print(f"seqloom-server: {folder / name} has {info.parameter_count} parameters")

    folder = pathlib.Path(settings.models)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(write())
    except ServerError as error:
        raise CommandFailed(error.message) from None
    except OSError as error:
        raise CommandFailed(f"models: {settings.models}: {error.strerror}") from None
    return 0


def _healthcheck(settings: ServerConfig, options: dict[str, Any]) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    address = options.get("address") or settings.listen
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
    "conv_channels": "of a causal convolution and relu in front of the first layer; 0 for none",
    "conv_width": "how many of the last inputs it sees",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "seqloom-server",
        description="Serves recurrent networks over gRPC. A flag goes before the environment variable in brackets, "
        "that before the key of the same name in the TOML file, and that before the default in parentheses.",
    )
    config.add_options(parser)
    commands = parser.add_subparsers(title="other commands", metavar="COMMAND")

    create = commands.add_parser("create-model", help="make a model folder with weights drawn from a seed")
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
        "--bidirectional", action="store_true", help="each layer also runs backward: only whole sequences can be run"
    )
    create.add_argument("--activation", choices=("tanh", "relu"), default="tanh")
    create.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    create.add_argument(
        "--precision",
        choices=("full", "tf32", "bf16"),
        default="full",
        help="how outputs are computed; gradients are always computed in full",
    )
    create.add_argument("--seed", type=int, metavar="N", default=0)
    config.add_options(create, "models")
    create.set_defaults(command=_create_model)

    take = commands.add_parser("import-model", help="make a model folder from a torch.nn state dict")
    take.add_argument("name", metavar="NAME")
    take.add_argument(
        "--state-dict",
        required=True,
        metavar="FILE",
        help='a safetensors file, names with "conv.", "rnn." and "output." before',
    )
    take.add_argument(
        "--causal-convolution",
        action="store_true",
        help="the file's convolution is causal, with relu after it: output t sees inputs t-width+1 to t, zeros before "
        'the first; the file itself does not tell it from one that is padded on both sides, as padding="same" does',
    )
    take.add_argument("--activation", choices=("tanh", "relu"), default="tanh", help="an Elman network's phi")
    config.add_options(take, "models")
    take.set_defaults(command=_import_model)

    check = commands.add_parser("healthcheck", help="ask a server whether it serves; the exit status is 0 if it does")
    check.add_argument("--address", metavar="HOST:PORT|unix:PATH", help="by default that of --listen")
    config.add_options(check, "listen")
    check.set_defaults(command=_healthcheck)
    return parser


if __name__ == "__main__":
    sys.exit(main())
