"""Where a server may listen: on the loopback; elsewhere with TLS and tokens, or if it is told to."""

import pytest
from helpers.real_server import open_channel
from seqloom_server.config import ServerConfig
from seqloom_server.rpc.security.listening import Exposed, check_listening
from seqloom_server.rpc.server import CannotStart

BOTH = {"tls_certificate": "c", "tls_key": "k", "tokens": "t"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.3.2.1:1", "[::1]:1", "localhost:1", "unix:/run/a.sock"])
def test_the_loopback_needs_nothing(address):
    check_listening(ServerConfig(listen=address))


@pytest.mark.parametrize("option", ["listen", "http"])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1"])
def test_elsewhere_both_tls_and_tokens_are_needed_or_the_operators_word(option, address):
    for given, named in (
        ({}, ("--tls-certificate", "--tokens")),
        ({"tokens": "t"}, ("--tls-certificate",)),
        ({"tls_certificate": "c", "tls_key": "k"}, ("--tokens",)),
    ):
        with pytest.raises(Exposed, match=rf"^{option}: is ") as caught:
            check_listening(ServerConfig(**{option: address, **given}))
        for word in ("--tls-certificate", "--tokens"):
            assert (word in str(caught.value)) == (word in named)
        assert "--allow-insecure" in str(caught.value)
        assert "\n" not in str(caught.value)
        check_listening(ServerConfig(**{option: address, **given}, allow_insecure=True))
    check_listening(ServerConfig(**{option: address, **BOTH}))


async def test_a_server_off_the_loopback_starts_only_protected(serve, secured):
    secured.token()
    with pytest.raises(CannotStart, match="--allow-insecure"):
        async with serve(listen="0.0.0.0:0"):
            pass
    async with (
        serve(listen="0.0.0.0:0", allow_insecure=True) as served,
        open_channel(served.address.replace("0.0.0.0", "127.0.0.1")) as channel,
    ):
        await channel.channel_ready()
    async with (
        serve(listen="0.0.0.0:0", http="0.0.0.0:0", **secured.options()) as served,
        secured.client(served.address.replace("0.0.0.0", "127.0.0.1")) as client,
    ):
        assert [model.name for model in await client.models()] == ["small"]


@pytest.mark.parametrize("text", ["[[token]", "", None])
async def test_a_server_needs_a_file_of_tokens_that_can_be_read(serve, secured, text):
    if text is not None:
        secured.tokens.write_text(text)
    with pytest.raises(CannotStart, match=r"^tokens: .*tokens\.toml: "):
        async with serve(tokens=str(secured.tokens)):
            pass
