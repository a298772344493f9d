"""docs/security.md: its numbers, its scopes, its metrics and its example of a file are those of the code."""

import re

from helpers.pages import code, section, table, text
from seqloom_server.config import ServerConfig
from seqloom_server.metrics import Metrics
from seqloom_server.rpc.security import gate, scopes, tokens, watched_files, wrong_tokens

PAGE = "docs/security.md"


def test_the_example_is_a_file_of_tokens():
    (example,) = re.findall(r"^(    \[\[token\]\]\n(?:    .*\n)+)", text(PAGE), re.MULTILINE)
    found = tokens.parse(example.replace("9f2c…", "9f2c" * 16).encode())
    (token,) = found
    assert (token.name, token.scopes) == ("gateway", {"infer", "train"})
    assert None not in (token.max_streams, token.steps_per_second, token.max_runs)


def test_the_scopes_and_the_methods_of_any_token_are_those_of_the_code():
    assert [scope for scope, _ in table(PAGE, "Tokens")] == list(tokens.SCOPES)
    open_to_any = {path.rpartition("/")[2] for path, scope in scopes._METHODS.items() if scope == scopes.ANY}
    (told,) = re.findall(r"^(.*) need any token", section(PAGE, "Tokens"), re.MULTILINE)
    assert set(re.findall(r"[A-Z]\w+[A-Z]\w+", told)) == open_to_any


def test_the_numbers_are_those_of_the_code():
    page = " ".join(text(PAGE).split())
    first, minutes = wrong_tokens.FIRST_SECONDS, wrong_tokens.FORGOTTEN_SECONDS / 60
    for words in (
        f"is not answered for {first:g} s, after the second for {2 * first:g} s",
        f"up to {wrong_tokens.LONGEST_SECONDS:g} s; it is forgotten after {minutes:g} minutes",
        f"Up to {gate._MAX_WAITING} calls of the address wait",
        f"The table holds {wrong_tokens._MAX_ADDRESSES:,} addresses",
        f"is the first {wrong_tokens._IPV6_PREFIX} bits",
    ):
        assert words in page, words
    assert watched_files.LOOK_SECONDS <= 2, "a few seconds"


def test_the_options_and_metrics_that_it_names_are_there():
    options = {f"--{name.replace('_', '-')}" for name in vars(ServerConfig())}
    used = set(re.findall(r"--[a-z][a-z-]+", text(PAGE))) - {"--scopes"}
    assert used <= options
    names = {metric.name for metric in Metrics().registry.collect()}
    for name in re.findall(r"`(seqloom_\w+?)(?:_total)?(?:\{.*?\})?`", text(PAGE)):
        if name != "seqloom_server":
            assert name in names, name
    assert not code(PAGE)
