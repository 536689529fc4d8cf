"""The webhook's TLS certificate, which is replaced while the webhook serves.

Its issuer (the chart, cert-manager) writes new files, and nothing restarts the webhook.

The kubelet replaces the folder of a mounted Secret at once, but other files may be read half
written. So a pair is read once, tried with a context that serves no connection, and only then
loaded into the one that serves, from memory: OpenSSL changes a context before it finds that
certificate and key do not belong together. New connections get the new pair, open ones go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

# The kubelet takes up to two minutes to bring a changed Secret (docs/dev/facts-kubernetes.md).
CHECK_INTERVAL_SECONDS = 5.0
EXPIRY_WARNING_SECONDS = 7 * 86400.0  # before the expiry: someone should look at the renewal

Pair = tuple[bytes, bytes]  # the contents of tls.crt and tls.key


class CertificateError(Exception):
    """A file is missing or unusable; the message names it.

    tls.crt and tls.key are missing, or do not belong together; or the clients' authority is none.
    """


class CertificateWatcher:
    """`context` serves the newest pair in `folder` that is usable; `expires_at` is in Unix
    seconds."""

    def __init__(self, folder: str | Path, client_ca: str | Path = "") -> None:
        """Raises CertificateError where there is no usable pair at the start.

        client_ca: file with the authority that a client's certificate must be of; "": no client
        needs one. It is read once.
        """
        self._folder = Path(folder)
        self._pair: Pair = b"", b""
        self._refused: object = None  # what was found last and is not used
        self.expires_at = 0.0
        self.context = _new_context()
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
            try:
                self.context.load_verify_locations(client_ca)
            except OSError as error:  # ssl.SSLError is one
                cause = error.strerror or str(error)
                raise CertificateError(
                    f"{client_ca}: no certificate can be read: {cause}"
                ) from None
        try:
            self._load(self._read())
        except (OSError, ValueError) as error:
            raise CertificateError(self._describe(error)) from None

    @property
    def seconds_left(self) -> float:
        """Seconds until the certificate expires; negative once it has."""
        return self.expires_at - time.time()

    async def watch_files(self) -> None:
        """Load each new pair, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            self.reload_if_changed()

    def reload_if_changed(self) -> None:
        """Load the pair in the files if it is a new one; keep the old one if it is not usable.

        That is logged once.
        """
        pair: Pair | None = None
        try:
            pair = self._read()
            if pair == self._pair:
                self._refused = None
                return
            self._load(pair)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if self._refused != (pair, str(error)):
                log.warning(
                    "%s; the previous certificate stays in use, it is valid until %s",
                    self._describe(error),
                    self._expiry(),
                )
                self._refused = pair, str(error)
            return
        self._refused = None
        log.info("loaded a new certificate from %s, valid until %s", self._folder, self._expiry())

    def _read(self) -> Pair:
        return (self._folder / "tls.crt").read_bytes(), (self._folder / "tls.key").read_bytes()

    def _load(self, pair: Pair) -> None:
        expires_at = parse_expiry(pair[0])
        with _memory_file(pair[0]) as certificate, _memory_file(pair[1]) as key:
            for context in (_new_context(), self.context):
                context.load_cert_chain(certificate, key, password=_refuse_password)
        self._pair, self.expires_at = pair, expires_at
        if self.seconds_left < EXPIRY_WARNING_SECONDS:
            log.warning(
                "the certificate in %s expires at %s: check that it is renewed",
                self._folder,
                self._expiry(),
            )

    def _describe(self, error: Exception) -> str:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        cause = cause or type(error).__name__
        return f"{self._folder}: tls.crt and tls.key cannot be used: {cause}"

    def _expiry(self) -> str:
        return datetime.fromtimestamp(self.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _refuse_password() -> str:
    """OpenSSL would ask for it at the terminal."""
    raise ValueError("the key has a password")


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """Return the path of a file in memory: OpenSSL reads only from a path, and our root is
    read-only."""
    descriptor = os.memfd_create("pretune")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


# --- the expiry: the standard library reads it only from a certificate of a connection's other side


def parse_expiry(pem: bytes) -> float:
    """Return when the first certificate of a PEM file expires, in Unix seconds.

    Raises ValueError where it is no certificate.
    """
    try:
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        text = pem.decode("ascii", "replace")
        first = text[text.index(begin) : text.index(end) + len(end)]
        certificate = _parse_der(_parse_der(ssl.PEM_cert_to_DER_cert(first))[0][1])
        # Without the version, which is optional: serial number, algorithm, issuer, validity, …
        fields = [field for field in _parse_der(certificate[0][1]) if field[0] != 0xA0]
        tag, value = _parse_der(fields[3][1])[1]  # of the validity: (not before, not after)
        # UTCTime until 2049, then GeneralizedTime.
        time_format = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}[tag]
        expiry = datetime.strptime(value.decode("ascii"), time_format)
        return expiry.replace(tzinfo=UTC).timestamp()
    except (ValueError, LookupError) as error:
        raise ValueError(f"tls.crt holds no certificate ({type(error).__name__})") from None


def _parse_der(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each value in a row (distinguished encoding rules, X.690)."""
    values, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            size_bytes = size & 0x7F
            size, at = int.from_bytes(der[at : at + size_bytes], "big"), at + size_bytes
        if at + size > len(der):
            raise ValueError("cut off")
        values.append((tag, der[at : at + size]))
        at += size
    return values
