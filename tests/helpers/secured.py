"""Certificates and tokens for a test's server and its callers, made as it runs."""

import pathlib

import seqloom
import trustme
from seqloom_server.rpc.security.new_token import add_token

ALL = ("infer", "train", "admin")


class Secured:
    """A folder with an authority, a certificate of "localhost" and a file of tokens."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.ca = trustme.CA()
        self.certificate, self.key, self.ca_file = folder / "server.pem", folder / "server.key", folder / "ca.pem"
        self.tokens = folder / "tokens.toml"
        self.secrets: dict[str, str] = {}
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.write(self.ca.issue_cert("localhost", "127.0.0.1"))

    def write(self, issued: trustme.LeafCert) -> None:
        """Replaces the server's certificate and key."""
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())

    def token(self, name: str = "all", *scopes: str, **limits: float) -> str:
        """Adds a token to the file, by default with every scope; returns its secret."""
        self.secrets[name] = add_token(str(self.tokens), name, scopes or ALL, **limits)
        return self.secrets[name]

    def remove(self, name: str) -> None:
        """Removes a token from the file, in which another takes its place if it is the only one."""
        head = "[[token]]\n"
        if self.tokens.read_text().count(head) == 1:
            add_token(str(self.tokens), "placeholder", ALL)
        tables = self.tokens.read_text().split(head)
        kept = [table for table in tables if not table.startswith(f'name = "{name}"\n')]
        assert len(kept) == len(tables) - 1
        self.tokens.write_text(head.join(kept))

    def options(self, **more: object) -> dict[str, object]:
        """Options of a server with TLS and tokens."""
        return {"tls_certificate": str(self.certificate), "tls_key": str(self.key), "tokens": str(self.tokens), **more}

    def tls(self, **more: object) -> seqloom.TLS:
        return seqloom.TLS(ca=str(self.ca_file), **more)

    def client(self, address: str, name: str = "all", **more: object) -> seqloom.AsyncClient:
        """A client of a server with TLS and tokens."""
        return seqloom.AsyncClient(address, token=self.secrets[name], tls=self.tls(), timeout=30, **more)
