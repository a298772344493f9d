"""TLS to a real server: whom a client believes, whom the server believes, and certificates that change."""

import datetime
import logging

import grpc
import numpy as np
import pytest
import seqloom
import trustme
from cryptography.hazmat.primitives import serialization
from helpers.frames import noise
from helpers.real_server import until
from helpers.tolerances import near
from seqloom_server.rpc.server import CannotStart

X = noise(6, 5, 0, "f4")


async def assert_serves(served, client) -> None:
    result = await client.infer("small", [X])
    np.testing.assert_allclose(result.outputs[0], served.expected("small", X)[0], **near(rtol=1e-4, atol=1e-5))


def localhost(served):
    return served.address.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_client_that_knows_the_authority_and_has_a_token_is_served(serve, secured, host):
    secured.token()
    async with (
        serve(**secured.options()) as served,
        secured.client(served.address.replace("127.0.0.1", host)) as client,
    ):
        await assert_serves(served, client)
        async with client.stream("small") as stream:
            chunks = [chunk.outputs async for chunk in stream.run(np.split(X, 3))]
        np.testing.assert_allclose(np.concatenate(chunks), served.expected("small", X)[0], **near(rtol=1e-4, atol=1e-5))


def expired(secured):
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return secured.ca.issue_cert("localhost", not_before=begin, not_after=begin + datetime.timedelta(days=1))


WRONG = {
    "of another authority": lambda secured: trustme.CA().issue_cert("localhost"),
    "expired": expired,
    "of another name": lambda secured: secured.ca.issue_cert("other.example"),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_client_does_not_talk_to_a_server_whose_certificate_is(serve, secured, kind):
    secured.token()
    secured.write(WRONG[kind](secured))
    async with serve(**secured.options()) as served:
        async with secured.client(localhost(served), retries=0) as client:
            with pytest.raises(seqloom.Unavailable):
                await client.models()
        assert served.value("requests_total") == 0


async def test_a_certificate_that_its_server_signed_itself_is_not_believed(serve, secured):
    secured.token()
    own = trustme.CA()
    secured.certificate.write_bytes(own.cert_pem.bytes())
    secured.key.write_bytes(own.private_key_pem.bytes())
    async with serve(**secured.options()) as served, secured.client(localhost(served), retries=0) as client:
        with pytest.raises(seqloom.Unavailable):
            await client.models()


async def test_a_name_that_the_certificate_has_can_be_given(serve, secured):
    secured.token()
    secured.write(secured.ca.issue_cert("other.example"))
    async with serve(**secured.options()) as served:
        tls = secured.tls(server_name="other.example")
        async with seqloom.AsyncClient(served.address, token=secured.secrets["all"], tls=tls) as client:
            await assert_serves(served, client)


async def test_a_unix_socket_may_have_tls_too(serve, secured, tmp_path):
    secured.token()
    async with serve(**secured.options(), listen=f"unix:{tmp_path}/s") as served:
        tls = secured.tls(server_name="localhost")
        async with seqloom.AsyncClient(served.address, token=secured.secrets["all"], tls=tls) as client:
            await assert_serves(served, client)


async def test_a_client_without_tls_is_not_served(serve, secured):
    secured.token()
    async with (
        serve(**secured.options()) as served,
        seqloom.AsyncClient(served.address, token=secured.secrets["all"], retries=0) as client,
    ):
        with pytest.raises(seqloom.Unavailable):
            await client.models()


def pair(issued):
    return {"certificate": issued.cert_chain_pems[0].bytes(), "key": issued.private_key_pem.bytes()}


async def test_with_a_client_ca_only_its_clients_are_served_and_they_need_a_token_still(serve, secured):
    secret = secured.token()
    clients = trustme.CA()
    comment = "# Autorité\n".encode()  # as bundles of authorities have
    secured.certificate.with_name("clients.pem").write_bytes(comment + clients.cert_pem.bytes())
    options = secured.options(tls_client_ca=str(secured.certificate.with_name("clients.pem")))
    good, foreign = pair(clients.issue_cert("a@b.example")), pair(secured.ca.issue_cert("a@b.example"))
    async with serve(**options) as served:
        for tls in (secured.tls(), secured.tls(**foreign)):
            async with seqloom.AsyncClient(served.address, token=secret, tls=tls, retries=0) as client:
                with pytest.raises(seqloom.Unavailable):
                    await client.models()
        async with seqloom.AsyncClient(served.address, token=secret, tls=secured.tls(**good)) as client:
            await assert_serves(served, client)
        async with seqloom.AsyncClient(served.address, tls=secured.tls(**good)) as client:
            with pytest.raises(seqloom.Unauthenticated):
                await client.models()


def encrypted(secured):
    key = serialization.load_pem_private_key(secured.key.read_bytes(), None)
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secured.key.write_bytes(key.private_bytes(*kinds, serialization.BestAvailableEncryption(b"word")))


BROKEN = {
    "a key of another certificate": lambda s: s.key.write_bytes(s.ca.issue_cert("x.example").private_key_pem.bytes()),
    "a key with a password": encrypted,
    "no key": lambda s: s.key.unlink(),
    "an empty key": lambda s: s.key.write_bytes(b""),
    "a certificate cut short": lambda s: s.certificate.write_bytes(s.certificate.read_bytes()[:300]),
    "a certificate that is none": lambda s: s.certificate.write_bytes(b"\xff certificate"),
    "a folder": lambda s: (s.certificate.unlink(), s.certificate.mkdir()),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_the_server_does_not_start_with(serve, secured, kind):
    secured.token()
    BROKEN[kind](secured)
    with pytest.raises(CannotStart, match=r"^tls: .*server\.(pem|key)") as caught:
        async with serve(**secured.options()):
            pass
    assert "\n" not in str(caught.value)


async def test_an_authority_of_clients_that_is_none_is_refused_at_the_start(serve, secured):
    secured.token()
    secured.ca_file.write_text("none")
    with pytest.raises(CannotStart, match=r"^tls: .*ca\.pem"):
        async with serve(**secured.options(tls_client_ca=str(secured.ca_file))):
            pass


@pytest.mark.parametrize("options", [("tls_certificate",), ("tls_key",), ("tls_client_ca",)])
async def test_options_that_are_no_pair_are_refused(serve, secured, options):
    with pytest.raises(CannotStart, match="is missing"):
        async with serve(**{name: str(secured.ca_file) for name in options}):
            pass


async def test_new_certificates_are_for_new_connections_and_open_ones_live_on(serve, secured):
    secured.token()
    async with serve(**secured.options()) as served:
        async with secured.client(served.address) as before:
            await assert_serves(served, before)
            other = trustme.CA()
            secured.write(other.issue_cert("127.0.0.1"))

            async def known_by_the_other():
                tls = seqloom.TLS(ca=other.cert_pem.bytes())
                async with seqloom.AsyncClient(
                    served.address, token=secured.secrets["all"], tls=tls, retries=0
                ) as client:
                    try:
                        await assert_serves(served, client)
                    except seqloom.Unavailable:
                        return False
                    return True

            while not await known_by_the_other():
                pass
            await assert_serves(served, before)
        async with secured.client(served.address, retries=0) as after:
            with pytest.raises(seqloom.Unavailable):
                await after.models()
        assert served.value("reload_failures_total") == 0


@pytest.mark.parametrize("kind", BROKEN)
async def test_files_that_break_later_change_nothing_but_are_told(serve, secured, caplog, kind):
    secured.token()
    async with serve(**secured.options()) as served:
        BROKEN[kind](secured)
        await until(lambda: served.value("reload_failures_total", files="tls"))
        record = next(record for record in caplog.records if record.levelno == logging.ERROR)
        assert "what they said before stays" in record.getMessage()
        assert "PRIVATE KEY" not in caplog.text
        async with secured.client(served.address) as client:
            await assert_serves(served, client)


async def test_broken_files_that_are_mended_are_used(serve, secured):
    secured.token()
    async with serve(**secured.options()) as served:
        secured.key.write_bytes(b"")
        await until(lambda: served.value("reload_failures_total", files="tls") == 1)
        other = trustme.CA()
        secured.write(other.issue_cert("127.0.0.1"))
        credentials = grpc.ssl_channel_credentials(other.cert_pem.bytes())
        async with grpc.aio.secure_channel(served.address, credentials) as channel:
            await channel.channel_ready()
        assert served.value("reload_failures_total") == 1
