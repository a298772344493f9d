"""What a client takes for its token and for TLS, and where it sends no token."""

import socket

import pytest
import seqloom


@pytest.mark.parametrize("face", [seqloom.Client, seqloom.AsyncClient])
@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:50051", "example.org:50051", "localhost.example.org:50051", "[2001:db8::1]:50051", "0.0.0.0:50051",
     "ipv4:127.0.0.1:50051,10.0.0.1:50051", "dns://8.8.8.8/localhost:50051", "dns:///example.org", "vsock:2:5",
     "xds:///localhost"],
)  # fmt: skip
def test_the_sdk_sends_no_token_in_the_clear_to_another_machine(face, address):
    with pytest.raises(seqloom.InvalidArgument, match=r"^token: would be sent unencrypted") as caught:
        face(address, token="secret-4711")
    assert "secret-4711" not in str(caught.value)
    seqloom.AsyncClient(address)
    seqloom.AsyncClient(address, token="secret", tls=seqloom.TLS())


@pytest.mark.parametrize(
    "address",
    ["localhost:50051", "LOCALHOST:50051", "127.0.0.1:50051", "127.9.9.9:1", "[::1]:50051",
     "unix:/run/a.sock", "unix-abstract:a", "dns:localhost:50051", "dns:///localhost:50051",
     "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1"],
)  # fmt: skip
def test_on_this_machine_a_token_needs_no_tls(address):
    seqloom.AsyncClient(address, token="secret")


@pytest.mark.parametrize("given", [{"certificate": b"pem"}, {"key": b"pem"}])
def test_a_certificate_and_its_key_are_given_together(given):
    with pytest.raises(seqloom.InvalidArgument, match="only one of certificate and key"):
        seqloom.TLS(**given)


def test_neither_the_key_nor_the_token_is_shown():
    tls = seqloom.TLS(ca=b"pem-ca", certificate=b"pem-c", key=b"pem-key-4711")
    client = seqloom.AsyncClient("localhost:1", token="secret-4711", tls=tls)
    assert "4711" not in repr(tls)
    assert "4711" not in repr(client._connection.config)


async def test_a_file_that_cannot_be_read_is_named(tmp_path):
    async with seqloom.AsyncClient("localhost:1", tls=seqloom.TLS(ca=str(tmp_path / "ca.pem"))) as client:
        with pytest.raises(seqloom.InvalidArgument, match=r"^tls: .*ca\.pem: No such file"):
            await client.models()


@pytest.mark.parametrize("token", ["sécret", "a\nb", b"secret", 3])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(seqloom.InvalidArgument, match="printable ASCII"):
        seqloom.AsyncClient("localhost:1", token=token)


async def test_a_token_in_the_clear_goes_through_no_proxy(serve, monkeypatch):
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        async with serve() as served:
            port = served.address.rpartition(":")[2]
            async with seqloom.AsyncClient(f"localhost:{port}", token="secret", timeout=5) as client:
                await client.models()
        with pytest.raises(BlockingIOError):
            proxy.accept()
