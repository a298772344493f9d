"""The server's options, each declared once: a flag, an environment variable and a key of a TOML file are made from it.

A flag goes before the environment, the environment before the file, the file before the default. `max_slice_ms` is
--max-slice-ms, SEQLOOM_MAX_SLICE_MS and max_slice_ms.
"""

import argparse
import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PREFIX = "SEQLOOM_"
_CONFIG_VARIABLE = f"{_PREFIX}CONFIG"
# Compose's own SEQLOOM_PORT on the host, and what Kubernetes and container links set for a service called seqloom.
_OF_OTHERS = re.compile(rf"{_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\w+)?)")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})")
_UNIX = re.compile(r"unix:(?://(?=/))?((?!//)[!-~]+)|unix-abstract:([!-~]+)")
_UNIX_BYTES = 107  # the most that the name of such a socket has
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class ConfigError(ValueError):
    """An option that cannot be; the text names it as the caller gave it: the flag, the variable or the file's key."""


class _Refused(ValueError):
    """A value that its field does not take."""


def _option(default: Any, help: str, *, least: float | None = None, most: float | None = None, **more: Any) -> Any:
    """A field of ServerConfig; more: choices, metavar, or address=True, and for unix sockets as well, unix=True."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most, **more})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Every option of the server, checked. Raises ValueError."""

    models: str = _option("models", "the folder of the model folders; it is made where it is absent", metavar="DIR")
    runs: str = _option("runs", "the folder of the training runs; it is made where it is absent", metavar="DIR")
    listen: str = _option(
        "127.0.0.1:50051",
        "HOST:PORT of gRPC, where port 0 takes a free one, or unix:PATH",
        metavar="HOST:PORT|unix:PATH",
        address=True,
        unix=True,
    )
    http: str = _option("127.0.0.1:9464", "HOST:PORT of /metrics and /healthz; port 0 takes a free one", address=True)
    device: str = _option("auto", "where networks run", choices=("auto", "cpu", "cuda"))
    threads: int = _option(
        0, "torch's threads on the CPU; 0 takes one for small networks, all cores for others", least=0, most=1024
    )
    switch_interval_ms: float = _option(
        1.0, "how long the device thread and the event loop may hold the interpreter against each other", least=0.01
    )
    strict_models: bool = _option(False, "ends at the start where a model or a run is broken, instead of telling of it")
    grace_seconds: float = _option(20.0, "how long live work may go on after SIGTERM", least=0)
    max_live_versions: int = _option(4, "versions of one model's weights that may be alive at once", least=1)
    max_sessions: int = _option(10_000, "live sessions that may be open at once", least=1)
    idle_seconds: float = _option(300.0, "a session with nothing to do for so long is ended", least=0.01)
    window_steps: int = _option(4096, "steps of a session that may be sent and not yet acknowledged", least=64)
    max_batch_sequences: int = _option(256, "sequences in one slice of device work", least=1)
    max_batch_steps: int = _option(32_768, "cells, computed padding included, in one slice", least=1)
    max_slice_ms: float = _option(40.0, "how long a slice may take while live sessions are open", least=0.1)
    bulk_slice_ms: float = _option(200.0, "how long a slice may take while none is open", least=0.1)
    max_queue_items: int = _option(16_384, "sequences that may wait", least=1)
    max_queue_steps: int = _option(2_000_000, "steps that may wait", least=1)
    max_queue_bytes: int = _option(1 << 30, "bytes of frames that may wait", least=1)
    max_output_bytes: int = _option(
        512 << 20, "bytes of outputs that callers may leave unread, all together", least=1 << 20
    )
    max_model_bytes: int = _option(2 << 30, "bytes of one model's weights", least=1)
    max_padding: float = _option(
        0.25, "share of a slice's cells that would be padding before the slice is cut", least=0, most=1
    )
    live_share: float = _option(0.5, "share of the device that live frames are owed", least=0, most=1)
    inference_share: float = _option(0.2, "share of the device that whole sequences are owed", least=0, most=1)
    training_share: float = _option(0.2, "share of the device that training is owed", least=0, most=1)
    training_piece_gflop: float = _option(
        0.0,
        "floating-point operations, in 10^9, after which training may be interrupted; 0 goes by the device",
        least=0,
    )
    max_activation_bytes: int = _option(1 << 30, "bytes that a training batch may hold at once", least=1 << 20)
    max_training_bytes: int = _option(64 << 20, "bytes of one training call", least=1 << 16)
    max_training_steps: int = _option(100_000, "steps of one sequence of a training call", least=1)
    max_runs: int = _option(64, "training runs that may exist at once", least=1)
    max_held_calls: int = _option(256, "calls on one run that may wait for an earlier one of their caller", least=1)
    max_sequences_per_request: int = _option(1024, "sequences in one request", least=1)
    max_steps_per_sequence: int = _option(1_000_000, "steps of one whole sequence; live sessions have no end", least=1)
    max_message_bytes: int = _option(4 << 20, "bytes of one message that comes in", least=1 << 16, most=(1 << 31) - 1)
    max_stream_message_bytes: int = _option(
        1 << 20, "bytes of one message of a stream that goes out, but for a row that is larger", least=1 << 12
    )
    poison_slots: bool = _option(False, "a test aid: fills the states of sequences that ended with NaN")
    log_level: str = _option("info", "what is logged, to stderr", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            try:
                _check(field, getattr(self, field.name))
            except _Refused as error:
                raise ValueError(f"{field.name}: {error}") from None


def _check(field: "dataclasses.Field[Any]", value: Any) -> None:
    kind = field.type
    fits = isinstance(value, (int, float) if kind is float else kind)  # type: ignore[arg-type]
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _Refused(f"is {value!r}: expected {_EXPECTED[kind]}")
    if field.metadata.get("choices") and value not in field.metadata["choices"]:
        raise _Refused(f"is {value!r}: expected one of {', '.join(field.metadata['choices'])}")
    if field.metadata.get("address") and not (field.metadata.get("unix") and unix_socket(value)):
        split_address(value, more=", or unix:PATH" if field.metadata.get("unix") else "")
    least, most = field.metadata["least"], field.metadata["most"]
    if kind in (int, float) and not (
        (least is None or value >= least) and value <= (math.inf if most is None else most)
    ):
        raise _Refused(f"is {value}: expected at least {least}" + ("" if most is None else f", at most {most}"))
    if kind is float and not math.isfinite(value):
        raise _Refused(f"is {value}: expected a finite number")
    if kind is str and not value:
        raise _Refused("is empty")


_METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "true|false", str: "HOST:PORT"}
_EXPECTED: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def split_address(address: str, *, more: str = "") -> tuple[str, int]:
    """Returns host and port of "HOST:PORT"; an IPv6 host stands in brackets. Raises ValueError.

    more: what else is expected there.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found[2]) > 65535:
        raise _Refused(f"is {address!r}: expected HOST:PORT, with a port from 0 to 65535{more}")
    return found[1], int(found[2])


def unix_socket(address: str) -> str | None:
    """Returns the path of "unix:PATH", the name after a NUL of "unix-abstract:NAME", None for another address.

    Raises ValueError.
    """
    if not address.startswith(("unix:", "unix-abstract:")):
        return None
    found = _UNIX.fullmatch(address)
    name = "" if found is None else found[1] or f"\0{found[2]}"
    if not 1 <= len(name) <= _UNIX_BYTES or set(name) & set("%?#"):  # gRPC reads it as a URI
        raise _Refused(f"is {address!r}: expected unix:PATH, in at most {_UNIX_BYTES} letters of ASCII but %, ? and #")
    return name


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds --config and a flag for every option, or for those named; flags that are not given leave no trace."""
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"a TOML file of options [{_CONFIG_VARIABLE}]"
    )
    for field in dataclasses.fields(ServerConfig):
        if names and field.name not in names:
            continue
        shown = str(field.default).lower() if field.type is bool else field.default
        parser.add_argument(
            _flag(field.name),
            metavar="|".join(field.metadata.get("choices", ())) or field.metadata.get("metavar", _METAVARS[field.type]),
            default=argparse.SUPPRESS,
            nargs="?" if field.type is bool else None,
            const="true" if field.type is bool else None,
            help=f"{field.metadata['help']} ({shown}) [{_variable(field.name)}]".replace("%", "%%"),
        )


def load(flags: Mapping[str, Any], environment: Mapping[str, str]) -> ServerConfig:
    """Returns the options from flags as add_options() parses them, the environment, and the file that either names.

    Raises ConfigError.
    """
    fields = {field.name: field for field in dataclasses.fields(ServerConfig)}
    values: dict[str, Any] = {}

    def take(name: str, value: Any, source: str) -> None:
        try:
            _check(fields[name], value)  # also what a later source overrides
        except _Refused as error:
            raise ConfigError(f"{source}: {error}") from None
        values[name] = value

    path = flags.get("config", environment.get(_CONFIG_VARIABLE))
    for key, value in (_read(path) if path is not None else {}).items():
        if key not in fields:
            raise ConfigError(f"{path}: {key}: is no option; --help lists them")
        take(key, value, f"{path}: {key}")
    by_variable = {_variable(name): name for name in fields}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE or _OF_OTHERS.fullmatch(variable):
            continue
        if variable not in by_variable:
            raise ConfigError(f"{variable}: is no option; --help lists them")
        name = by_variable[variable]
        take(name, _parsed(fields[name], text, variable), variable)
    for name in fields.keys() & flags.keys():
        take(name, _parsed(fields[name], flags[name], _flag(name)), _flag(name))
    return ServerConfig(**values)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # bad TOML, or bytes that are no UTF-8
        raise ConfigError(f"{path}: is no TOML: {error}") from None


def _parsed(field: "dataclasses.Field[Any]", text: str, source: str) -> Any:
    try:
        if field.type is bool:
            return _BOOLEANS[text.lower()]
        return field.type(text)  # type: ignore[operator]
    except (ValueError, KeyError):
        raise ConfigError(f"{source}: is {text!r}: expected {_EXPECTED[field.type]}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _PREFIX + name.upper()
