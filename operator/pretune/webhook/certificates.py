"""The webhook's TLS certificate, renewed under way: who made it (the chart, cert-manager) writes new files, nobody restarts us.

The kubelet swaps the folder of a mounted Secret as a whole, but anybody's files may be read half written. So a pair is read once, tried
on a context that nobody uses, and only then given to the one that serves, from memory: OpenSSL changes a context before it finds that
certificate and key do not fit. New connections get the new pair; those that are open go on.
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

EVERY = 5.0  # seconds between two looks; the kubelet itself takes up to a minute to bring a changed Secret
SOON = 7 * 86400.0  # seconds before the end from which a person should look at what renews it


class CertificateError(Exception):
    """tls.crt and tls.key are not there, or are no pair; the message names the folder."""


class Certificates:
    """`context` serves the newest pair of `folder` that fits."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CertificateError where there is no pair to begin with."""
        self._folder = Path(folder)
        self._pair: tuple[bytes, bytes] = b"", b""
        self._refused: object = None  # what was found last, and not taken
        self.ends = 0.0  # Unix seconds
        self.context = _context()
        try:
            self._take(self._read())
        except (OSError, ValueError) as error:
            raise CertificateError(self._sentence(error)) from None

    @property
    def left(self) -> float:
        """Seconds that the certificate is valid from now; negative: it has ended."""
        return self.ends - time.time()

    async def follow(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self.look()

    def look(self) -> None:
        """Take the files' pair if it is another one; keep the old one, and say so once, where it does not fit."""
        found: object = None
        try:
            found = pair = self._read()
            if pair == self._pair:
                self._refused = None
                return
            self._take(pair)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if self._refused != (found, str(error)):
                log.warning(
                    "%s; the certificate that was read before is kept, until %s",
                    self._sentence(error),
                    self._until(),
                )
                self._refused = found, str(error)
            return
        self._refused = None
        log.info("the certificate in %s is a new one, valid until %s", self._folder, self._until())

    def _read(self) -> tuple[bytes, bytes]:
        return (self._folder / "tls.crt").read_bytes(), (self._folder / "tls.key").read_bytes()

    def _take(self, pair: tuple[bytes, bytes]) -> None:
        ends = not_after(pair[0])
        with _file(pair[0]) as certificate, _file(pair[1]) as key:
            for context in (_context(), self.context):
                context.load_cert_chain(certificate, key, password=_no_password)
        self._pair, self.ends = pair, ends
        if self.left < SOON:
            log.warning(
                "the certificate in %s is valid until %s only: is it renewed?",
                self._folder,
                self._until(),
            )

    def _sentence(self, error: Exception) -> str:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return (
            f"{self._folder}: tls.crt and tls.key cannot be used: {words or type(error).__name__}"
        )

    def _until(self) -> str:
        return datetime.fromtimestamp(self.ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ValueError("the key has a password")


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A file in memory, since OpenSSL reads from a path only, and our root is read-only."""
    descriptor = os.memfd_create("pretune")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


# --- when it ends: the standard library tells that only of a certificate that the other side of a connection has shown


def not_after(pem: bytes) -> float:
    """Unix seconds at which the first certificate of a PEM file ends. Raises ValueError where it is no certificate."""
    try:
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        text = pem.decode("ascii", "replace")
        first = text[text.index(begin) : text.index(end) + len(end)]
        certificate = _parts(_parts(ssl.PEM_cert_to_DER_cert(first))[0][1])
        fields = [
            one for one in _parts(certificate[0][1]) if one[0] != 0xA0
        ]  # without its version, which may be left out
        kind, value = _parts(fields[3][1])[
            1
        ]  # serial number, algorithm, issuer, validity: (not before, not after)
        form = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}[
            kind
        ]  # UTCTime until 2049, GeneralizedTime
        return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except (ValueError, LookupError) as error:
        raise ValueError(f"tls.crt holds no certificate ({type(error).__name__})") from None


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of each value in a row, by the distinguished encoding rules (X.690)."""
    found, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, at = int.from_bytes(der[at : at + more], "big"), at + more
        if at + size > len(der):
            raise ValueError("cut off")
        found.append((tag, der[at : at + size]))
        at += size
    return found
