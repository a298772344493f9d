"""The file of tokens: what it may say, what is wrong with others, and how a token is added."""

import concurrent.futures
import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.rpc.security.new_token import add_token
from seqloom_server.rpc.security.tokens import SCOPES, digest_of, parse
from seqloom_server.rpc.security.watched_files import BrokenFile

DIGEST = hashlib.sha256(b"secret").hexdigest()
GOOD = f'[[token]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = ["infer"]\n'


def test_a_token_is_found_by_its_secret_and_by_nothing_else():
    tokens = parse(GOOD.encode())
    assert tokens.find("secret").name == "a"
    for other in ("", "Secret", "secret ", DIGEST, "a", "\ud800"):
        assert tokens.find(other) is None


@pytest.mark.parametrize("text", [b"", b"# none yet\n", b"token = []\n"])
def test_a_file_without_tokens_is_taken_for_one_that_was_cut(text):
    with pytest.raises(BrokenFile, match=r"has no \[\[token\]\]"):
        parse(text)
    assert len(parse(text, may_be_empty=True)) == 0


WRONG = [
    ("name = 3", "name", "is 3"),
    ('name = "A b"', "name", "expected a name like"),
    ("", "name", "is None"),
    ('sha256 = "00"', "sha256", "64 hexadecimal digits"),
    (f'sha256 = "{"g" * 64}"', "sha256", "64 hexadecimal digits"),
    ("scopes = []", "scopes", "infer, train, admin"),
    ('scopes = "infer"', "scopes", "infer, train, admin"),
    ('scopes = ["infer", "root"]', "scopes", "root"),
    ("max_streams = -1", "max_streams", "at least 0"),
    ("max_streams = true", "max_streams", "an integer"),
    ("max_streams = 1.5", "max_streams", "an integer"),
    ("steps_per_second = 0", "steps_per_second", "above 0"),
    ("steps_per_second = inf", "steps_per_second", "finite"),
    ("steps_per_second = nan", "steps_per_second", "finite"),
    ("max_runs = '1'", "max_runs", "an integer"),
    ('secret = "x"', "'secret'", "is unknown"),
]


@pytest.mark.parametrize(("line", "key", "words"), WRONG)
def test_what_is_wrong_is_named_with_the_token_and_the_key(line, key, words):
    lines = dict(part.split(" = ", 1) for part in GOOD.splitlines()[1:])
    lines.pop(key, None)
    if line:
        name, value = line.split(" = ", 1)
        lines[name] = value
    table = "".join(f"{name} = {value}\n" for name, value in lines.items())
    with pytest.raises(BrokenFile, match=rf"^token 1: {key}") as caught:
        parse(f"[[token]]\n{table}".encode())
    assert words in str(caught.value)
    assert DIGEST not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff", "not valid TOML"),
        (b"[[token]", "not valid TOML"),
        (b"tokens = 3", "'tokens' is unknown"),
        (b"[token]\nname = 'a'", "expected [[token]]"),
        (b"token = [1]", "token 1: expected a table"),
        (GOOD.encode() + GOOD.encode(), "token 2: name: is that of token 1"),
        (GOOD.encode() + GOOD.replace('"a"', '"b"').encode(), "token 2: sha256: is that of token 1"),
    ],
)
def test_a_file_that_is_none_of_tokens_is_refused(text, words):
    with pytest.raises(BrokenFile) as caught:
        parse(text)
    assert words in str(caught.value)


limits = st.fixed_dictionaries(
    {
        "max_streams": st.none() | st.integers(0, 1 << 40),
        "steps_per_second": st.none() | st.floats(1e-3, 1e12),
        "max_runs": st.none() | st.integers(0, 1 << 40),
    }
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        st.tuples(st.sets(st.sampled_from(SCOPES), min_size=1), limits),
        max_size=4,
    )
)
def test_what_is_added_is_what_is_read(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text("# ours\n")
    secrets = {name: add_token(str(path), name, sorted(scopes), **more) for name, (scopes, more) in wanted.items()}
    tokens = parse(path.read_bytes(), may_be_empty=True)
    assert len(tokens) == len(wanted)
    assert len(set(secrets.values())) == len(wanted)
    for name, (scopes, more) in wanted.items():
        token = tokens.find(secrets[name])
        assert (token.name, token.scopes) == (name, scopes)
        assert {key: getattr(token, key) for key in more} == more
        assert secrets[name] not in path.read_text()
    assert path.read_text().startswith("# ours\n")


def test_the_file_is_readable_by_its_owner_only_also_if_it_was_by_all(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text("")
    path.chmod(0o644)
    add_token(str(path), "a", ["infer"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_a_link_the_file_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    add_token(str(tmp_path / "link"), "a", ["infer"])
    assert (tmp_path / "link").is_symlink()
    assert parse((tmp_path / "real").read_bytes()).named("a")


@pytest.mark.parametrize(
    ("name", "scopes", "limits"),
    [("a", ["infer"], {}), ("B", ["infer"], {}), ("b", ["root"], {}), ("b", ["infer"], {"max_streams": -1})],
)
def test_what_may_not_be_added_changes_nothing(tmp_path, name, scopes, limits):
    path = tmp_path / "tokens.toml"
    path.write_text(GOOD)
    with pytest.raises(BrokenFile):
        add_token(str(path), name, scopes, **limits)
    assert path.read_text() == GOOD
    assert set(os.listdir(tmp_path)) <= {"tokens.toml", "tokens.toml.lock"}


def test_a_broken_file_is_not_added_to(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text("[[token]")
    with pytest.raises(BrokenFile, match="not valid TOML"):
        add_token(str(path), "a", ["infer"])
    assert path.read_text() == "[[token]"


def test_many_who_add_at_once_lose_nothing(tmp_path):
    path = str(tmp_path / "tokens.toml")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda n: add_token(path, f"t{n}", ["infer"]), range(16)))
    with open(path, "rb") as file:
        tokens = parse(file.read())
    assert {tokens.find(secret).name for secret in secrets} == {f"t{n}" for n in range(16)}


def test_the_digest_is_that_of_the_utf_8_bytes():
    assert digest_of("sécret").hex() == hashlib.sha256("sécret".encode()).hexdigest()
