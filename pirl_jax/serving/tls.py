"""Certificates of a policy server: read and tried out before anybody connects.

Refuses to know what is said over the connections.
"""

import pathlib
import ssl


def server_context(certificate: pathlib.Path, key: pathlib.Path) -> ssl.SSLContext:
    """What a server greets with: PEM files of its certificate (chain) and its private key.

    Raises:
        ValueError: a file cannot be read, they do not belong together, or have expired.
    """
    named = f"--tls {certificate} {key}"

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{named} cannot be used ({error}); give a certificate and its own private key, both "
            f"PEM and without a password"
        ) from error
    try:
        _greet(context, certificate)
    except ssl.SSLCertVerificationError as error:
        raise ValueError(
            f"{named}: no client would trust the certificate ({error.verify_message}); renew it"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{named}: a trial connection failed ({error}); give other files"
        ) from error
    return context


def client_context(authority: pathlib.Path | None) -> ssl.SSLContext:
    """What a client verifies servers with.

    authority: PEM file of the certificates to trust; None: those of the system.

    Raises:
        ValueError: the file cannot be read, or holds none.
    """
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ValueError(
            f"--tls-ca {authority} cannot be used ({error}); give a PEM file of certificates"
        ) from error


def _greet(context: ssl.SSLContext, certificate: pathlib.Path) -> None:
    """One handshake within this process, with a client that trusts this very certificate.

    Raises:
        ssl.SSLError: it does not come about.
    """
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it
    to_client = ssl.MemoryBIO()
    to_server = ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):  # each says twice what it has to say
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
