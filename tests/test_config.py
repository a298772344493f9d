"""The server's options: a flag before the environment, that before the file, that before the default; each checked."""

import argparse
import dataclasses

import pytest
from seqloom_server import config
from seqloom_server.config import ConfigError, ServerConfig


def load(flags=(), environment=None):
    parser = argparse.ArgumentParser()
    config.add_options(parser)
    return config.load(vars(parser.parse_args(list(flags))), environment or {})


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "seqloom.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_defaults_are_those_of_the_class():
    assert load() == ServerConfig()


def test_a_flag_goes_before_the_environment_that_before_the_file_and_that_before_the_default(file):
    path = file("threads = 2\nmax_slice_ms = 3\n")
    assert load().threads == 0
    assert load(["--config", path]).threads == 2
    assert load(["--config", path], {"SEQLOOM_THREADS": "3"}).threads == 3
    assert load(["--config", path, "--threads", "4"], {"SEQLOOM_THREADS": "3"}).threads == 4
    assert load(["--config", path, "--threads", "4"], {"SEQLOOM_THREADS": "3"}).max_slice_ms == 3


def test_the_environment_may_name_the_file_and_a_flag_names_another(file, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("threads = 7")
    named = {"SEQLOOM_CONFIG": file("threads = 2")}
    assert load([], named).threads == 2
    assert load(["--config", str(other)], named).threads == 7


OTHER_VALUES = {int: 2 << 20, float: 0.625, bool: True}


@pytest.mark.parametrize("field", dataclasses.fields(ServerConfig), ids=lambda field: field.name)
def test_every_option_is_a_flag_a_variable_and_a_key_of_the_file(field, file):
    if field.type is str:
        value = field.metadata.get("choices", ["localhost:7"])[-1]
    else:
        value = {"threads": 3}.get(field.name, OTHER_VALUES[field.type])
    assert value != field.default
    text = str(value).lower() if field.type is bool else str(value)
    in_toml = f'"{text}"' if field.type is str else text
    for loaded in (
        load([f"--{field.name.replace('_', '-')}", text]),
        load([], {f"SEQLOOM_{field.name.upper()}": text}),
        load(["--config", file(f"{field.name} = {in_toml}")]),
    ):
        assert loaded == dataclasses.replace(ServerConfig(), **{field.name: value})


WRONG = [
    ("threads", "many", "an integer"),
    ("threads", "-1", "at least 0"),
    ("threads", "1.5", "an integer"),
    ("threads", "", "an integer"),
    ("switch_interval_ms", "0", "at least 0.01"),
    ("grace_seconds", "inf", "finite"),
    ("grace_seconds", "nan", "at least 0"),
    ("max_padding", "1.5", "at most 1"),
    ("window_steps", "63", "at least 64"),
    ("max_message_bytes", str(1 << 31), "at most 2147483647"),
    ("device", "tpu", "auto, cpu, cuda"),
    ("log_level", "loud", "debug, info, warning, error"),
    ("listen", "localhost", "HOST:PORT"),
    ("listen", "localhost:65536", "HOST:PORT"),
    ("listen", "::1:50051", "HOST:PORT"),
    ("http", ":9464", "HOST:PORT"),
    ("models", "", "is empty"),
    ("poison_slots", "perhaps", "true or false"),
]


@pytest.mark.parametrize(("name", "text", "expected"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_that_the_caller_gave_it(name, text, expected, file):
    flag, variable = f"--{name.replace('_', '-')}", f"SEQLOOM_{name.upper()}"
    for source, arguments, environment in (
        (flag, [f"{flag}={text}"], {}),
        (variable, [], {variable: text}),
    ):
        with pytest.raises(ConfigError) as caught:
            load(arguments, environment)
        assert str(caught.value).startswith(f"{source}: ")
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threads = '2'", "threads: is '2': expected an integer"),
        ("threads = true", "threads: is True: expected an integer"),
        ("threads = 1.0", "threads: is 1.0: expected an integer"),
        ("poison_slots = 1", "poison_slots: is 1: expected true or false"),
        ("listen = 50051", "listen: is 50051: expected text"),
        ("max_padding = 2", "max_padding: is 2: expected at least 0, at most 1"),
        ("max_pading = 0.5", "max_pading: unknown option"),
        ("[server]\nthreads = 1", "server: unknown option"),
        ("threads = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_file_and_key(file, text, expected):
    path = file(text)
    with pytest.raises(ConfigError) as caught:
        load(["--config", path])
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_what_is_wrong_is_told_also_where_another_source_goes_before_it(file):
    path = file("threads = 'many'")
    with pytest.raises(ConfigError, match="threads: is 'many': expected an integer"):
        load(["--config", path, "--threads", "2"])
    with pytest.raises(ConfigError, match=r"^SEQLOOM_THREADS: is -1: expected at least 0"):
        load(["--threads", "2"], {"SEQLOOM_THREADS": "-1"})


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(["--config", str(tmp_path / "none.toml")])


def test_an_unknown_variable_is_refused():
    with pytest.raises(ConfigError, match="SEQLOOM_THREDS: unknown option"):
        load([], {"SEQLOOM_THREDS": "2"})


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        load(["--threds", "2"])
    assert "--threds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variable",
    [
        "SEQLOOM_PORT",  # docker compose's, for the published port; also Kubernetes', for a service called seqloom
        "SEQLOOM_HTTP_PORT",
        "SEQLOOM_PORT_50051_TCP_ADDR",
        "SEQLOOM_SERVICE_HOST",
        "SEQLOOM_SERVICE_PORT_GRPC",
        "SEQLOOM_SERVER_SERVICE_HOST",
    ],
)
def test_variables_that_compose_and_kubernetes_set_are_none_of_ours(variable):
    assert load([], {variable: "tcp://10.0.0.1:50051", "UNRELATED": "1"}) == ServerConfig()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:50051", ("[::1]", 50051)),
        ("a-b.example:65535", ("a-b.example", 65535)),
    ],
)
def test_an_address_is_split_at_its_port(address, parts):
    assert config.split_address(address) == parts
