"""wss://: files that do not serve are a sentence; a client trusts whom it was told to trust."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from pirl_jax.serving import client, tls, wire
from tests.serving import conftest, test_client


class Authority:
    """Certificates made by the openssl command."""

    def __init__(self, folder):
        self.folder = folder
        self.run(
            "req -x509 -nodes -keyout ca.key -out ca.pem -subj /CN=authority -days 2", new=True
        )
        self.make("server", "IP:127.0.0.1")

    def run(self, arguments, new=False):
        words = ["openssl", *arguments.split()]
        if new:
            words += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        subprocess.run(words, cwd=self.folder, check=True, capture_output=True, timeout=60)

    def make(self, name, subject, days=1):
        """NAME.pem and NAME.key, signed; the chain with them."""
        request = f"req -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        self.run(f"{request} -addext subjectAltName={subject}", new=True)
        signed = "-CA ca.pem -CAkey ca.key -copy_extensions copy"
        self.run(f"x509 -req -in {name}.csr {signed} -out {name}.pem -days {days}")

    def __call__(self, name):
        return str(self.folder / name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("the openssl command makes the certificates, and is not there")
    return Authority(tmp_path_factory.mktemp("authority"))


def asked(port, host="127.0.0.1", authority=""):
    """The answer of an encrypted server, as an evaluation gets it."""
    context = tls.client_context(authority)
    with client.connect(f"wss://{host}:{port}", "secret", 1, context) as remote:
        return client.decide(remote, test_client.SPEC, 5)(test_client.turn(1))


@pytest.fixture
def encrypted(authority):
    """Port of a server with a key and a certificate."""
    context = tls.server_context(authority("server.pem"), authority("server.key"))

    def listen(listener):
        return wire.listen(test_client.Echo(), {}, api_key="secret", tls=context, sock=listener)

    with conftest.running(listen) as port:
        yield port


def test_a_client_that_trusts_the_authority_is_served(authority, encrypted):
    assert asked(encrypted, authority=authority("ca.pem")).shape == (1, 5, 7)


def test_one_thread_reads_and_writes_a_connection(authority, encrypted, monkeypatch):
    """Two of them lost one handshake in two hundred on a busy machine."""
    threads = {}

    def noting(function):
        def note(self, *arguments, **options):
            threads.setdefault(self, set()).add(threading.get_ident())
            return function(self, *arguments, **options)

        return note

    for kind, names in ((ssl.SSLSocket, ("recv", "send")), (ssl.SSLObject, ("read", "write"))):
        for name in names:
            monkeypatch.setattr(kind, name, noting(getattr(kind, name)))
    asked(encrypted, authority=authority("ca.pem"))
    assert threads and all(len(idents) == 1 for idents in threads.values()), threads


def test_a_client_trusts_nobody_else(authority, encrypted):
    remedy = "give the certificate of who signed the server's with --tls-ca FILE"
    with pytest.raises(ValueError, match=rf"certificate verify failed.*; {remedy}"):
        asked(encrypted)
    with pytest.raises(ValueError, match=rf"Hostname mismatch.*; {remedy}"):
        asked(encrypted, "localhost", authority("ca.pem"))
    with pytest.raises(ValueError, match="cannot be reached"):
        test_client.ask(encrypted, 1)  # in the clear


def test_clients_in_the_clear_and_half_handshakes_hurt_nobody(authority, encrypted):
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b""):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", encrypted)) as sock,
        ):
            sock.sendall(data)
    assert asked(encrypted, authority=authority("ca.pem")).shape == (1, 5, 7)


@pytest.fixture(scope="module")
def bad(authority):
    """name -> certificate, key, what is said."""
    authority.make("other", "IP:127.0.0.1")
    authority.make("expired", "IP:127.0.0.1", days=-1)
    authority.run("ec -in server.key -out locked.key -aes256 -passout pass:secret")
    (authority.folder / "text").write_text("a certificate")
    (authority.folder / "empty").write_text("")
    (authority.folder / "folder").mkdir()
    return {
        "missing": ("nothing.pem", "server.key", "No such file"),
        "a missing key": ("server.pem", "nothing.key", "No such file"),
        "a folder": ("folder", "server.key", "."),
        "text": ("text", "server.key", "."),
        "empty": ("empty", "server.key", "."),
        "exchanged": ("server.key", "server.pem", "."),
        "another's key": ("server.pem", "other.key", "(?i)key values mismatch"),
        "locked": ("server.pem", "locked.key", "."),
        "no key": ("server.pem", "server.pem", "."),
    }


NAMES = (
    "missing",
    "a missing key",
    "a folder",
    "text",
    "empty",
    "exchanged",
    "another's key",
    "locked",
    "no key",
)


@pytest.mark.parametrize("name", NAMES)
def test_files_that_do_not_serve_are_a_sentence(name, authority, bad):
    certificate, key, reason = bad[name]
    paths = authority(certificate), authority(key)
    with pytest.raises(ValueError, match=reason) as told:
        tls.server_context(*paths)
    text = str(told.value)
    assert text.startswith(f"--tls {paths[0]} {paths[1]} cannot be used (")
    assert text.endswith(
        "; give a certificate and its own private key, both PEM and without a password"
    )


def test_an_expired_certificate_is_a_sentence(authority, bad):
    with pytest.raises(
        ValueError, match=r"trust the certificate \(certificate has expired\); renew"
    ):
        tls.server_context(authority("expired.pem"), authority("expired.key"))


def test_whom_to_trust_must_be_readable(authority, bad):
    for name in ("nothing.pem", "folder", "text", "empty", "server.key"):
        with pytest.raises(ValueError, match=r"--tls-ca .* cannot be used .*; give a PEM file"):
            tls.client_context(authority(name))
