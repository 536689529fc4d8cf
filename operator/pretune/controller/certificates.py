"""The webhook's certificate, which the controller that leads issues and renews.

The webhook's pods mount it from a Secret, and load a new one without a restart
(webhook/certificates.py). The API server trusts the authorities in `caBundle` of the
MutatingWebhookConfiguration. The chart creates both objects without these fields, and never
renders them: so no tool that applies the chart undoes them.

Each certificate has an authority of its own, whose key is discarded after signing. So no
stored key can issue another certificate that the API server trusts.

There is no gap: an authority is in caBundle for CHECK_INTERVAL_SECONDS before its certificate is in
the Secret, and stays there for OVERLAP_SECONDS after the next one, which the kubelet brings to the
pods within two minutes. Each write names the version that was read, so that two controllers that
both think they lead do not mix two certificates.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pretune.api.types import Object
from pretune.kube.types import ApiError, Cluster

log = logging.getLogger(__name__)

CHECK_INTERVAL_SECONDS = 10.0
OVERLAP_SECONDS = 3600.0  # in which the API server also trusts the certificate before this one
BACKDATED_SECONDS = 3600.0  # the API server's clock may be behind ours
RENEW_AT = 2 / 3  # of a certificate's life

ADMISSION_VERSION, ADMISSION_KIND = (
    "admissionregistration.k8s.io/v1",
    "MutatingWebhookConfiguration",
)


@dataclass(frozen=True)
class Certificate:
    """A certificate, its key, and the authority that signed it; all PEM."""

    authority: bytes
    certificate: bytes
    key: bytes

    @property
    def issued_at(self) -> float:
        """When it was issued, in Unix seconds."""
        return _load(self.certificate).not_valid_before_utc.timestamp() + BACKDATED_SECONDS

    def is_due(self, now: float) -> bool:
        """Whether it is to be renewed."""
        expires_at = _load(self.certificate).not_valid_after_utc.timestamp()
        return now >= self.issued_at + RENEW_AT * (expires_at - self.issued_at)


class CertificateIssuer:
    """Keeps the Secret `<name>-tls` and the caBundle of `name` current. `clock`: Unix seconds."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        days: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._clock, self._days = cluster, clock, days
        self._namespace, self._name = namespace, name
        self._host = f"{name}.{namespace}.svc"
        self._next: Certificate | None = None  # issued, and not in the Secret yet

    async def run(self) -> None:
        """Check again and again, until cancelled. Each cause of a failure is logged once.

        Whatever it is: others may have changed both objects, and the reconciles go on meanwhile.
        """
        logged = ""
        while True:
            try:
                await self.check()
                logged = ""
            except (ApiError, OSError, TimeoutError) as error:
                cause = str(error) or type(error).__name__
                if cause != logged:
                    log.warning("the webhook's certificate cannot be checked: %s", cause)
                logged = cause
            except Exception as error:  # a defect of ours
                if repr(error) != logged:
                    log.exception("the webhook's certificate cannot be checked")
                logged = repr(error)
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def check(self) -> None:
        """Do the next step, if there is one. Raises as the cluster does."""
        secret, configuration = await asyncio.gather(
            self._cluster.get("v1", "Secret", self._namespace, f"{self._name}-tls"),
            self._cluster.get(ADMISSION_VERSION, ADMISSION_KIND, "", self._name),
        )
        if secret is None or configuration is None:
            missing = f"Secret {self._name}-tls" if secret is None else ADMISSION_KIND
            raise ApiError(404, "NotFound", f"{missing} is missing: install the chart again")
        now, current = self._clock(), read_certificate(secret, self._host, self._clock())
        if (current is None or current.is_due(now)) and self._next is None:
            self._next = issue(self._host, now, self._days)
        known = [certificate for certificate in (current, self._next) if certificate is not None]
        bundles = list(read_bundles(configuration))
        wanted = build_bundle(bundles, known, now)
        if any(bundle != wanted for bundle in bundles):
            await self._write_bundle(configuration, wanted)
            if current is not None:
                return  # the API servers have until the next check to see it
        if self._next is not None:
            await self._write_secret(secret, self._next)
            self._next = None

    async def _write_bundle(self, configuration: Object, bundle: bytes) -> None:
        client = {"caBundle": base64.b64encode(bundle).decode()}
        webhooks = [
            {"name": webhook["name"], "clientConfig": client}
            for webhook in configuration.get("webhooks") or []
        ]
        patch = {"webhooks": webhooks}
        await self._write(ADMISSION_VERSION, ADMISSION_KIND, configuration, patch, strategic=True)
        log.info("caBundle of %s holds %d authorities", self._name, len(split_pem(bundle)))

    async def _write_secret(self, secret: Object, certificate: Certificate) -> None:
        files = {
            "ca.crt": certificate.authority,
            "tls.crt": certificate.certificate,
            "tls.key": certificate.key,
        }
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        await self._write("v1", "Secret", secret, {"data": data})
        log.info("issued a new certificate for %s, for %d days", self._host, self._days)

    async def _write(
        self, api_version: str, kind: str, obj: Object, patch: Object, strategic: bool = False
    ) -> None:
        """Patch the object as it was read. Another writer is no error: the next check reads it."""
        meta = obj["metadata"]
        names = ("namespace", "name", "uid", "resourceVersion")
        ref = {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {name: meta[name] for name in names if name in meta},
        }
        try:
            await self._cluster.patch(ref, patch, strategic=strategic)
        except ApiError as error:
            if error.code != 409:
                raise
            self._next = None


# --- pure


def issue(host: str, now: float, days: int) -> Certificate:
    """Return a new certificate for a host name, from a new authority that nothing can use again.

    now: Unix seconds. Both are valid for `days`.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    issuer = _name(f"{host.partition('.')[0]} authority {serial:x}"[:64])

    def build(subject: x509.Name, public_key: Any, is_authority: bool) -> x509.CertificateBuilder:
        begin = datetime.fromtimestamp(int(now), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - timedelta(seconds=BACKDATED_SECONDS))
            .not_valid_after(begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
            .add_extension(_key_usage(is_authority), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                False,
            )
        )

    authority = build(issuer, authority_key.public_key(), True)
    leaf = (
        build(_name(host[:64]), key.public_key(), False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    )
    authority_pem, leaf_pem = (
        builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        for builder in (authority, leaf)
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Certificate(authority_pem, leaf_pem, pem)


def read_certificate(secret: Object, host: str, now: float) -> Certificate | None:
    """Return what a Secret holds; None where that is not usable for the host now."""
    data = secret.get("data") or {}
    try:
        authority_pem, leaf_pem, key_pem = (
            base64.b64decode(data[name], validate=True) for name in ("ca.crt", "tls.crt", "tls.key")
        )
        found = Certificate(authority_pem, leaf_pem, key_pem)
        leaf, authority = _load(found.certificate), _load(found.authority)
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = serialization.load_pem_private_key(found.key, password=None)
        fits = key.public_key() == leaf.public_key()
    except Exception:  # the libraries raise many types for what is no certificate
        return None
    is_valid = (
        leaf.not_valid_before_utc.timestamp() <= now < leaf.not_valid_after_utc.timestamp()
        and host in names.get_values_for_type(x509.DNSName)
        and fits
    )
    return found if is_valid else None


def read_bundles(configuration: Object) -> Iterable[bytes]:
    """Yield the caBundle of each webhook; b"" where it has none."""
    for webhook in configuration.get("webhooks") or []:
        try:
            yield base64.b64decode(webhook["clientConfig"].get("caBundle") or "")
        except binascii.Error:
            yield b""


def build_bundle(bundles: Iterable[bytes], known: Iterable[Certificate], now: float) -> bytes:
    """Return the caBundle: the authorities of the known certificates, of which the current is first.

    Others that are trusted already stay until the current certificate is OVERLAP_SECONDS old: a
    certificate of theirs may still be served. The order does not change while nothing else does.
    """
    known = list(known)
    authorities = {certificate.authority.strip(): None for certificate in known}
    if not known or now < known[0].issued_at + OVERLAP_SECONDS:
        for bundle in bundles:
            for pem in split_pem(bundle):
                if _is_valid(pem, now):
                    authorities.setdefault(pem)
    return b"".join(pem + b"\n" for pem in sorted(authorities))


def split_pem(bundle: bytes) -> list[bytes]:
    """Return the certificates of a PEM file."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    return [begin + part.partition(end)[0] + end for part in bundle.split(begin)[1:] if end in part]


def _is_valid(pem: bytes, now: float) -> bool:
    try:
        return now < _load(pem).not_valid_after_utc.timestamp()
    except ValueError:
        return False


def _load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
