"""What a client takes for a server's address: what gRPC would understand in another way is refused at once."""

import pytest
import seqloom

FACES = [seqloom.Client, seqloom.AsyncClient]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:50051",
        "https://localhost:50051",
        "HTTPS://localhost:50051",
        "grpc://localhost:50051",
        "grpcs://localhost:50051",
        "passthrough:///localhost:50051",
        "tcp:localhost:50051",
        "localhost:50051/",
        "localhost:50051/path",
        "localhost:50051?a=b",
        "localhost:50051#a",
        "user@localhost:50051",
        "user:word@localhost:50051",
        " localhost:50051",
        "localhost:50051\n",
        "local host:50051",
        "localhost :50051",
        "one,two:50051",
        "bücher.example:50051",
        "",
        ":",
        ":50051",
        "localhost",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:70000",
        "localhost:-1",
        "localhost:+1",
        "localhost:٣",
        "localhost:http",
        "127.0.0.1",
        "::1",
        "::1:50051",
        "2001:db8::1:50051",
        "[::1]",
        "[::1]:",
        "[::1:50051",
        "[]:50051",
        "[localhost]:50051",
        "[127.0.0.1]:50051",
        "[::1]:65536",
        "dns:",
        "dns:///",
        "dns:///localhost:65536",
        "dns:/// localhost:50051",
        "ipv4:127.0.0.1:50051,127.0.0.2:65536",
        "ipv6:[::1]:65536",
        "unix:",
        "unix-abstract:",
        None,
        50051,
        b"localhost:50051",
        ("localhost", 50051),
    ],
)
def test_what_is_no_address_is_refused_at_once_with_what_is_expected(face, address):
    with pytest.raises(seqloom.InvalidArgument, match=r"^address: is ") as caught:
        face(address)
    assert repr(address) in str(caught.value)
    for expected in ("'host:port'", "tls=seqloom.TLS()"):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051",
        "LOCALHOST:1",
        "127.0.0.1:65535",
        "a-b.c_d.example.:443",
        "[::1]:50051",
        "[2001:db8::7]:50051",
        "[::ffff:10.0.0.1]:50051",
        "[fe80::1%eth0]:50051",
        "dns:localhost:50051",
        "dns:localhost",
        "dns:///localhost:50051",
        "dns://8.8.8.8/localhost:50051",
        "DNS:///localhost:50051",
        "ipv4:127.0.0.1:50051",
        "ipv4:127.0.0.1:50051,127.0.0.2:50052",
        "ipv6:[::1]:50051",
        "ipv6:::1",
        "unix:/run/seqloom.sock",
        "unix:seqloom.sock",
        "unix:///run/seqloom.sock",
        "unix:/run/a:99999",
        "unix-abstract:seqloom",
        "vsock:2:99999",
        "xds:///seqloom.example",
    ],
)
def test_an_address_or_a_target_of_grpc_is_taken(address):
    seqloom.AsyncClient(address)
