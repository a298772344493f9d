"""The server's configuration: every option, declared once, read from flags, the environment and a TOML file.

A flag overrides the environment, the environment overrides the file, the file overrides the default. `max_slice_ms` is
--max-slice-ms, SEQLOOM_MAX_SLICE_MS and max_slice_ms.
"""

import argparse
import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_PREFIX = "SEQLOOM_"
_CONFIG_VARIABLE = f"{_PREFIX}CONFIG"
# Compose sets SEQLOOM_PORT on the host; Kubernetes and container links set the rest for a service called seqloom.
_FOREIGN_VARIABLE = re.compile(rf"{_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\w+)?)")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})")
_UNIX = re.compile(r"unix:(?://(?=/))?((?!//)[!-~]+)|unix-abstract:([!-~]+)")
_MAX_UNIX_BYTES = 107  # of a unix socket's name
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class ConfigError(ValueError):
    """An invalid option; the text names it as it was given: the flag, the variable or the key of the file."""


class _InvalidValue(ValueError):
    """A value that its option does not allow."""


def _option(default: T, help: str, *, least: float | None = None, most: float | None = None, **metadata: object) -> T:
    """Returns a field of ServerConfig.

    metadata: choices, metavar, address=True for HOST:PORT, unix=True where unix:PATH is allowed as well, optional=True
    where "" means none.
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most, **metadata})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Every option of the server, checked. Raises ValueError."""

    models: str = _option("models", "folder of the model folders; created if missing", metavar="DIR")
    runs: str = _option("runs", "folder of the training runs; created if missing", metavar="DIR")
    listen: str = _option(
        "127.0.0.1:50051",
        "address for gRPC: HOST:PORT, where port 0 picks a free port, or unix:PATH",
        metavar="HOST:PORT|unix:PATH",
        address=True,
        unix=True,
    )
    http: str = _option(
        "127.0.0.1:9464", "HOST:PORT for /metrics and /healthz, where port 0 picks a free port", address=True
    )
    tls_certificate: str = _option(
        "", "PEM file of the server's certificate and those between it and its authority", metavar="FILE", optional=True
    )
    tls_key: str = _option("", "PEM file of the certificate's key, without a password", metavar="FILE", optional=True)
    tls_client_ca: str = _option(
        "", "PEM file of authorities, of which each client must show a certificate", metavar="FILE", optional=True
    )
    tokens: str = _option(
        "", "TOML file of the tokens that calls must carry; see make-token", metavar="FILE", optional=True
    )
    allow_insecure: bool = _option(False, "listen also off the loopback without TLS or without tokens")
    reflection: str = _option("on", "tell any caller the services and their messages", choices=("on", "off"))
    device: str = _option("auto", "device that networks run on", choices=("auto", "cpu", "cuda"))
    threads: int = _option(
        0, "torch's threads on the CPU; 0: one for small networks, all cores for large ones", least=0, most=1024
    )
    switch_interval_ms: float = _option(
        1.0,
        "thread switch interval of the Python interpreter, which the device thread and the event loop share",
        least=0.01,
    )
    strict_models: bool = _option(False, "refuse to start if a model or a run cannot be loaded, instead of logging it")
    grace_seconds: float = _option(20.0, "seconds that running work may take after SIGTERM", least=0)
    max_live_versions: int = _option(
        4, "versions of one model's weights in use at once, whatever their size; more within max_live_bytes", least=1
    )
    max_live_bytes: int = _option(
        1 << 30, "bytes of one model's weights and states in use, beyond which max_live_versions holds", least=0
    )
    max_sessions: int = _option(10_000, "live sessions open at once, over all callers", least=1)
    idle_seconds: float = _option(300.0, "seconds without work after which a session is ended", least=0.01)
    window_steps: int = _option(4096, "steps of a session sent and not yet acknowledged", least=64)
    max_batch_sequences: int = _option(256, "sequences in one slice, a batch of device work", least=1)
    max_batch_steps: int = _option(32_768, "steps in one slice, over all its sequences, padding included", least=1)
    max_slice_ms: float = _option(40.0, "milliseconds that a slice may take while live sessions are open", least=0.1)
    bulk_slice_ms: float = _option(200.0, "milliseconds that a slice may take while none is open", least=0.1)
    max_queue_items: int = _option(16_384, "sequences in the queue, over all callers", least=1)
    max_queue_steps: int = _option(2_000_000, "steps in the queue", least=1)
    max_queue_bytes: int = _option(1 << 30, "bytes of frames in the queue", least=1)
    max_queue_seconds: float = _option(
        10.0,
        "seconds that a whole sequence may be expected to wait, whatever its timeout; beyond that it is refused",
        least=0.001,
    )
    max_live_load: float = _option(
        0.75,
        "load of live sessions that have a rate, as a share of the device's time or of the event loop's, whichever is "
        "larger; beyond that no more of them are opened",
        least=0,
        most=1,
    )
    max_output_bytes: int = _option(512 << 20, "bytes of unread outputs, over all callers", least=1 << 20)
    max_model_bytes: int = _option(2 << 30, "bytes of one model's weights", least=1)
    max_padding: float = _option(
        0.25, "share of padding in a slice, beyond which the slice is cut shorter", least=0, most=1
    )
    live_share: float = _option(
        0.5,
        "share of the device time that live sessions with a rate leave, guaranteed to those without",
        least=0,
        most=1,
    )
    inference_share: float = _option(
        0.2,
        "share of the device time that live sessions with a rate leave, guaranteed to whole sequences",
        least=0,
        most=1,
    )
    training_share: float = _option(
        0.2, "share of the device time that live sessions with a rate leave, guaranteed to training", least=0, most=1
    )
    training_piece_gflop: float = _option(
        0.0,
        "floating-point operations, in 10^9, after which training may be interrupted; 0: a value for the device",
        least=0,
    )
    max_activation_bytes: int = _option(1 << 30, "bytes that a training batch holds at once", least=1 << 20)
    max_training_bytes: int = _option(64 << 20, "bytes of one training call", least=1 << 16)
    max_training_steps: int = _option(100_000, "steps of one sequence of a training call", least=1)
    max_runs: int = _option(64, "training runs at once", least=1)
    max_held_calls: int = _option(256, "calls on one run that wait for an earlier call of the same client", least=1)
    max_sequences_per_request: int = _option(1024, "sequences in one request", least=1)
    max_steps_per_sequence: int = _option(
        1_000_000, "steps of one whole sequence; live sessions are unlimited", least=1
    )
    max_message_bytes: int = _option(4 << 20, "bytes of one received message", least=1 << 16, most=(1 << 31) - 1)
    max_stream_message_bytes: int = _option(
        1 << 20, "bytes of one sent message of a stream, unless a single row is larger", least=1 << 12
    )
    max_connections: int = _option(
        4096, "gRPC connections at once; fewer where the system lets the process open fewer files", least=1
    )
    max_connections_per_address: int = _option(
        0, "of these, connections from one IP address, or from one /64 of IPv6; 0: three quarters of them", least=0
    )
    max_calls: int = _option(20_000, "gRPC calls at once, over all connections", least=1)
    max_calls_per_connection: int = _option(1000, "calls at once on one connection", least=1, most=(1 << 31) - 1)
    max_header_bytes: int = _option(16_384, "bytes of one call's metadata", least=1024, most=(1 << 31) - 1)
    handshake_seconds: float = _option(20.0, "seconds that the handshake of a connection may take", least=0.1)
    connection_idle_seconds: float = _option(
        1800.0,
        "seconds after which a connection without calls is closed; its client connects again by itself",
        least=0.1,
    )
    keepalive_seconds: float = _option(
        30.0, "seconds without traffic after which a connection is checked by a ping", least=0.1
    )
    keepalive_timeout_seconds: float = _option(
        20.0, "seconds without an answer to a ping after which a connection is closed", least=0.1
    )
    poison_slots: bool = _option(False, "for tests: fill the states of ended sequences with NaN")
    log_level: str = _option("info", "lowest level logged to stderr", choices=("debug", "info", "warning", "error"))
    log_format: str = _option(
        "text", "format of the log; json: an object a line, and a line for each call", choices=("text", "json")
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            try:
                _check(field, getattr(self, field.name))
            except _InvalidValue as error:
                raise ValueError(f"{field.name}: {error}") from None


def _kind(field: "dataclasses.Field[object]") -> type:
    """Returns an option's type: str, int, float or bool."""
    assert isinstance(field.type, type), "annotations are evaluated in this module"
    return field.type


def _check(field: "dataclasses.Field[object]", value: object) -> None:
    kind = _kind(field)
    if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        raise _InvalidValue(f"is {value!r}: expected {_EXPECTED[kind]}")
    if field.metadata.get("choices") and value not in field.metadata["choices"]:
        raise _InvalidValue(f"is {value!r}: expected one of {', '.join(field.metadata['choices'])}")
    if isinstance(value, str):
        unix = bool(field.metadata.get("unix"))
        if field.metadata.get("address") and not (unix and unix_socket(value)):
            split_address(value, alternative=", or unix:PATH" if unix else "")
        if not value and not field.metadata.get("optional"):
            raise _InvalidValue("is empty")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = field.metadata["least"], field.metadata["most"]
        if not ((least is None or value >= least) and value <= (math.inf if most is None else most)):
            raise _InvalidValue(
                f"is {value}: expected at least {least}" + ("" if most is None else f", at most {most}")
            )
        if kind is float and not math.isfinite(value):
            raise _InvalidValue(f"is {value}: expected a finite number")


_METAVARS: dict[type, str] = {int: "N", float: "X", bool: "true|false", str: "HOST:PORT"}
_EXPECTED: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def split_address(address: str, *, alternative: str = "") -> tuple[str, int]:
    """Returns host and port of "HOST:PORT"; an IPv6 host stands in brackets. Raises ValueError.

    alternative: what the error says is also allowed, such as ", or unix:PATH".
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found[2]) > 65535:
        raise _InvalidValue(f"is {address!r}: expected HOST:PORT, with a port from 0 to 65535{alternative}")
    return found[1], int(found[2])


def unix_socket(address: str) -> str | None:
    """Returns the path of "unix:PATH", the name after a NUL of "unix-abstract:NAME", None for another address.

    Raises ValueError.
    """
    if not address.startswith(("unix:", "unix-abstract:")):
        return None
    found = _UNIX.fullmatch(address)
    name = "" if found is None else found[1] or f"\0{found[2]}"
    if not 1 <= len(name) <= _MAX_UNIX_BYTES or set(name) & set("%?#"):  # gRPC reads it as a URI
        raise _InvalidValue(
            f"is {address!r}: expected unix:PATH of at most {_MAX_UNIX_BYTES} ASCII characters, without %, ? and #"
        )
    return name


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds --config and a flag for every option, or for `names` only; flags not given are absent from the result."""
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"TOML file of options [{_CONFIG_VARIABLE}]"
    )
    for field in dataclasses.fields(ServerConfig):
        if names and field.name not in names:
            continue
        kind = _kind(field)
        default = str(field.default).lower() if kind is bool else "none" if field.default == "" else field.default
        parser.add_argument(
            _flag(field.name),
            metavar="|".join(field.metadata.get("choices", ())) or field.metadata.get("metavar", _METAVARS[kind]),
            default=argparse.SUPPRESS,
            nargs="?" if kind is bool else None,
            const="true" if kind is bool else None,
            help=f"{field.metadata['help']} ({default}) [{_variable(field.name)}]".replace("%", "%%"),
        )


def load(flags: Mapping[str, str], environment: Mapping[str, str]) -> ServerConfig:
    """Returns the configuration from flags as add_options() parses them, the environment, and the TOML file.

    --config or SEQLOOM_CONFIG names the file. Raises ConfigError.
    """
    fields = {field.name: field for field in dataclasses.fields(ServerConfig)}
    values: dict[str, object] = {}

    def set_option(name: str, value: object, source: str) -> None:
        try:
            _check(fields[name], value)  # also a value that a later source overrides
        except _InvalidValue as error:
            raise ConfigError(f"{source}: {error}") from None
        values[name] = value

    path = flags.get("config", environment.get(_CONFIG_VARIABLE))
    for key, value in (_read(path) if path is not None else {}).items():
        if key not in fields:
            raise ConfigError(f"{path}: {key}: unknown option; --help lists all options")
        set_option(key, value, f"{path}: {key}")
    by_variable = {_variable(name): name for name in fields}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE or _FOREIGN_VARIABLE.fullmatch(variable):
            continue
        if variable not in by_variable:
            raise ConfigError(f"{variable}: unknown option; --help lists all options")
        name = by_variable[variable]
        set_option(name, _parse(fields[name], text, variable), variable)
    for name in fields.keys() & flags.keys():
        set_option(name, _parse(fields[name], flags[name], _flag(name)), _flag(name))
    return ServerConfig(**values)  # type: ignore[arg-type]  # checked one by one


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # bad TOML, or bytes that are not UTF-8
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def _parse(field: "dataclasses.Field[object]", text: str, source: str) -> object:
    kind = _kind(field)
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{source}: is {text!r}: expected {_EXPECTED[kind]}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _PREFIX + name.upper()
