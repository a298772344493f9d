"""The command `seqloom-server`: starts a server, makes model folders and tokens, and checks a server's health."""

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

from seqloom_server import config, logs
from seqloom_server.config import ConfigError, ServerConfig

if TYPE_CHECKING:
    from seqloom_server.engine.models.registry import ModelInfo, Registry

log = logging.getLogger("seqloom_server")

# The garbage collector's thresholds. The interpreter's own 700 new objects are only a few messages; the older
# generations are small, since the objects that stay are frozen.
_GC_THRESHOLDS = (10_000, 10, 2)

_TURNS_OF_WAITING = "10000"  # a tenth to half a millisecond
DEAD = 70  # the exit status of a server whose device thread has died: EX_SOFTWARE of sysexits.h
_DEAD_GRACE_SECONDS = 3.0  # for callers to read that it has died


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = getattr(options, "command", _serve)
    try:
        settings = config.load(vars(options), os.environ)
        logs.configure(settings.log_level, settings.log_format)
        result: int = command(settings, options)
        return result
    except (ConfigError, CommandFailed) as error:
        print(f"seqloom-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class CommandFailed(Exception):
    """A command failed; the text is one line for the user."""


def _wait_briefly_in_openmp() -> None:
    """Has OpenMP's threads wait awake for the next step, but not for a thread that has lost its processor.

    libgomp's own 300,000 turns of waiting are milliseconds, in which a helper that waits for the device thread keeps
    the event loop or the callers off its processor: with something else busy, steps took up to ten times as long
    (docs/performance.md). It reads the environment when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS_OF_WAITING)


def _silence_grpc_core() -> None:
    """Has gRPC's core log nothing, unless the environment says otherwise.

    It writes a line for each TLS handshake that fails, which anybody who reaches the port can have it do without end,
    and what it writes is not of the log's format. It reads the environment when grpc is imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _serve(settings: ServerConfig, _: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # no work is running yet that would have to end
    _silence_grpc_core()
    _wait_briefly_in_openmp()

    import torch

    from seqloom_server.engine.admission.loop_time import TimedLoop
    from seqloom_server.engine.engine import CannotStart
    from seqloom_server.rpc.connections import open_files
    from seqloom_server.rpc.server import Server

    open_files.raise_limit(settings.max_connections)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CommandFailed("device: is cuda: torch finds no CUDA device")

    async def serve() -> int:
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
        server.engine.on_death(begin_shutdown)  # a process that can compute nothing must end to be started again
        _freeze_garbage_collector()
        log.info("metrics on http://%s/metrics", server.http_address)
        print(f"seqloom-server: serving on {server.address}", flush=True)
        await stop.wait()
        if server.engine.alive:
            log.info("shutting down: running work may take up to %g s more", settings.grace_seconds)
            await server.stop()
        else:
            log.critical("the device thread has died: callers are told, then the process ends")
            await server.stop(min(_DEAD_GRACE_SECONDS, settings.grace_seconds))
        return 0 if server.engine.alive else DEAD

    sys.setswitchinterval(settings.switch_interval_ms / 1e3)
    with asyncio.Runner(loop_factory=TimedLoop) as runner:
        return runner.run(serve())


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


def _make_token(settings: ServerConfig, options: argparse.Namespace) -> int:
    from seqloom_server.rpc.security.new_token import add_token
    from seqloom_server.rpc.security.watched_files import BrokenFile

    if not settings.tokens:
        raise CommandFailed("tokens: is missing: expected --tokens FILE")
    limits = {
        "max_streams": options.max_streams,
        "steps_per_second": options.steps_per_second,
        "max_runs": options.runs_of_token,
    }
    try:
        secret = add_token(settings.tokens, options.name, options.scopes.split(","), **limits)
    except BrokenFile as error:
        raise CommandFailed(f"tokens: {error}") from None
    print(secret)
    return 0


def _healthcheck(settings: ServerConfig, options: argparse.Namespace) -> int:
    if options.address is None and (settings.tokens or settings.tls_certificate):
        return _check_by_http(settings.http)
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    address = options.address or settings.listen
    try:
        if config.unix_socket(address) is None:
            host, port = config.split_address(address)
            address = f"{_reachable(host)}:{port}"
    except ValueError as error:
        raise CommandFailed(f"--address: {error}") from None
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError as error:
            raise CommandFailed(f"{address}: {error.code().name}: {error.details()}") from None
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


def _check_by_http(address: str) -> int:
    """Asks /healthz, which needs no token."""
    import urllib.error
    import urllib.request

    host, port = config.split_address(address)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{_reachable(host)}:{port}/healthz", timeout=3) as reply:
            print(reply.read().decode().strip())
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode().strip())
        return 1
    except OSError as error:
        raise CommandFailed(f"{address}: {getattr(error, 'reason', error)}") from None


def _reachable(host: str) -> str:
    """Returns where a server that listens on all addresses is reached from its own machine."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)


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

    make = commands.add_parser("make-token", help="add a token to the file of tokens, and print its secret, once")
    make.add_argument("name", metavar="NAME")
    make.add_argument("--scopes", required=True, metavar="SCOPE,...", help="any of infer, train and admin")
    make.add_argument("--max-streams", type=int, metavar="N", help="live streams open at once (no limit)")
    make.add_argument("--steps-per-second", type=float, metavar="X", help="steps a second, of all its calls (no limit)")
    make.add_argument(
        "--max-runs",
        type=int,
        metavar="N",
        dest="runs_of_token",  # the server's option of this name is for all runs
        help="training runs at once (no limit)",
    )
    config.add_options(make, "tokens")
    make.set_defaults(command=_make_token)

    check = commands.add_parser("healthcheck", help="check a server's health; exit status 0 if it is serving")
    check.add_argument(
        "--address",
        metavar="HOST:PORT|unix:PATH",
        help="server to ask by gRPC, without TLS or a token (the address of --listen; of a server that has TLS or "
        "tokens, /healthz at that of --http)",
    )
    config.add_options(check, "listen", "http", "tls_certificate", "tokens")
    check.set_defaults(command=_healthcheck)
    return parser


if __name__ == "__main__":
    sys.exit(main())
