"""The webhook's certificate: issued, renewed without a gap, and never mixed up by two controllers."""

from __future__ import annotations

import asyncio
import base64
import copy
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from pretune.api.types import Object
from pretune.controller import certificates
from pretune.controller.certificates import (
    CHECK_INTERVAL_SECONDS,
    OVERLAP_SECONDS,
    CertificateIssuer,
    issue,
    read_certificate,
    split_pem,
)
from pretune.kube.types import ApiError, Cluster
from pretune.webhook.certificates import parse_expiry

from tests.chart.test_webhook import handshake

NAME, NAMESPACE, DAYS = "pretune-webhook", "pretune-system", 90
HOST = f"{NAME}.{NAMESPACE}.svc"
DAY = 86400.0


class Api:
    """The Secret, the webhook's configuration, and a clock: of the API server only what is used."""

    def __init__(self, now: float) -> None:
        self.now = now
        hooks = [{"name": "pods.pretune.dev", "clientConfig": {"service": {"name": NAME}}}]
        self.objects: dict[str, Object] = {
            "Secret": {"metadata": {"namespace": NAMESPACE, "name": f"{NAME}-tls", "uid": "s"}},
            "MutatingWebhookConfiguration": {
                "metadata": {"name": NAME, "uid": "c"},
                "webhooks": hooks,
            },
        }
        for obj in self.objects.values():
            obj["metadata"]["resourceVersion"] = "1"
        self.writes: list[str] = []
        self.refuses: set[str] = set()  # kinds whose next write meets another writer's

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        await asyncio.sleep(0)
        found = self.objects.get(kind)
        return copy.deepcopy(found) if found and found["metadata"]["name"] == name else None

    async def patch(
        self, ref: Object, patch: Mapping[str, Any], *, strategic: bool = False, **_: Any
    ) -> Object:
        await asyncio.sleep(0)
        kind, stored = ref["kind"], self.objects[ref["kind"]]
        if kind in self.refuses:
            self.refuses.discard(kind)
            self._touch(stored)
        if ref["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        if kind == "Secret":
            stored["data"] = {**stored.get("data", {}), **patch["data"]}
        else:
            assert strategic
            (change,), (webhook,) = patch["webhooks"], stored["webhooks"]
            assert change["name"] == webhook["name"]
            webhook["clientConfig"].update(change["clientConfig"])
        self._touch(stored)
        self.writes.append(kind)
        return copy.deepcopy(stored)

    @staticmethod
    def _touch(stored: Object) -> None:
        version = int(stored["metadata"]["resourceVersion"])
        stored["metadata"]["resourceVersion"] = str(version + 1)

    @property
    def bundle(self) -> bytes:
        (webhook,) = self.objects["MutatingWebhookConfiguration"]["webhooks"]
        return base64.b64decode(webhook["clientConfig"].get("caBundle", ""))

    @property
    def files(self) -> dict[str, bytes]:
        data = self.objects["Secret"].get("data", {})
        return {name: base64.b64decode(value) for name, value in data.items()}

    def issuer(self) -> CertificateIssuer:
        return CertificateIssuer(cast(Cluster, self), NAMESPACE, NAME, DAYS, lambda: self.now)


NOW = 1_800_000_000.0


@pytest.fixture
def api() -> Api:
    return Api(NOW)


def check(issuer: CertificateIssuer, times: int = 1) -> None:
    for _ in range(times):
        asyncio.run(issuer.check())


def trusts(api: Api, files: Mapping[str, bytes]) -> bool:
    """Whether the authority of these files is in caBundle."""
    return files["ca.crt"].strip() in split_pem(api.bundle)


def test_the_first_certificate_is_issued_in_one_check(api: Api) -> None:
    check(api.issuer())
    assert api.writes == ["MutatingWebhookConfiguration", "Secret"]
    assert trusts(api, api.files)
    assert parse_expiry(api.files["tls.crt"]) == NOW + DAYS * DAY
    check(api.issuer(), 3)
    assert len(api.writes) == 2, "what is current is not written again"


def test_the_api_server_accepts_it_for_the_services_name_only(tmp_path: Path) -> None:
    import time

    made = issue(HOST, time.time(), DAYS)
    handshake(tmp_path, made.certificate, made.key, made.authority, HOST)
    with pytest.raises(ssl.SSLError):
        handshake(tmp_path, made.certificate, made.key, made.authority, f"other.{NAMESPACE}.svc")
    with pytest.raises(ssl.SSLError):
        other = issue(HOST, time.time(), DAYS)
        handshake(tmp_path, made.certificate, made.key, other.authority, HOST)
    authority = x509.load_pem_x509_certificate(made.authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.path_length == 0


def test_the_key_of_the_authority_is_stored_nowhere(api: Api) -> None:
    check(api.issuer())
    key = api.files["tls.key"]
    assert api.files.keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert read_certificate(api.objects["Secret"], HOST, NOW) is not None
    mixed = {**api.objects["Secret"]["data"], "ca.crt": api.objects["Secret"]["data"]["tls.crt"]}
    assert read_certificate({"data": mixed}, HOST, NOW) is None
    assert key.count(b"PRIVATE KEY") == 2, "one key, its begin and its end"


def test_a_renewal_is_trusted_before_it_is_used_and_its_predecessor_for_an_hour_more(
    api: Api,
) -> None:
    issuer = api.issuer()
    check(issuer)
    first = api.files
    api.now += 59 * DAY
    check(issuer)
    assert api.files == first, "two thirds of its life are not over"
    api.now += 2 * DAY
    check(issuer)
    assert api.files == first and len(split_pem(api.bundle)) == 2 and trusts(api, first)
    api.now += CHECK_INTERVAL_SECONDS
    check(issuer)
    second = api.files
    assert second != first and trusts(api, first) and trusts(api, second)
    api.now += OVERLAP_SECONDS - CHECK_INTERVAL_SECONDS - 2
    check(issuer)
    assert trusts(api, first)
    api.now += 3
    check(issuer)
    assert not trusts(api, first) and trusts(api, second)
    assert len(split_pem(api.bundle)) == 1


def test_at_every_moment_of_a_year_what_is_served_is_valid_and_trusted(api: Api) -> None:
    """A pod serves what the Secret held up to two minutes before."""
    issuer, served, changes = api.issuer(), [], 0
    check(issuer)
    while api.now < NOW + 365 * DAY:
        for step in range(15):
            served = [*served[-12:], api.files]
            for files in (served[0], served[-1]):
                assert trusts(api, files), (api.now - NOW) / DAY
                assert parse_expiry(files["tls.crt"]) > api.now
            check(api.issuer() if step == 7 else issuer)  # another leader, for a moment
            api.now += CHECK_INTERVAL_SECONDS
            changes += api.files != served[-1]
        assert len(split_pem(api.bundle)) <= 4
        api.now += 5 * DAY
        served = []
    assert changes in (5, 6)


def test_a_bundle_that_was_taken_away_is_written_again(api: Api) -> None:
    issuer = api.issuer()
    check(issuer)
    (webhook,) = api.objects["MutatingWebhookConfiguration"]["webhooks"]
    del webhook["clientConfig"]["caBundle"]
    check(issuer)
    assert trusts(api, api.files) and api.writes[2:] == ["MutatingWebhookConfiguration"]


@pytest.mark.parametrize(
    "damage",
    [
        {"tls.key": "AAAA"},
        {"tls.crt": "not base64"},
        {"ca.crt": ""},
        {"tls.crt": base64.b64encode(issue("other.svc", NOW, DAYS).certificate).decode()},
    ],
    ids=["another key", "no base64", "no authority", "another host"],
)
def test_a_secret_that_cannot_be_used_is_replaced_at_once(api: Api, damage: Object) -> None:
    check(api.issuer())
    api.objects["Secret"]["data"].update(damage)
    check(api.issuer())
    assert read_certificate(api.objects["Secret"], HOST, api.now) is not None
    assert trusts(api, api.files)


def test_one_that_has_expired_is_replaced_at_once(api: Api) -> None:
    check(api.issuer())
    api.now += 400 * DAY
    check(api.issuer())
    assert parse_expiry(api.files["tls.crt"]) > api.now and trusts(api, api.files)


def test_authorities_of_others_stay_for_an_hour(api: Api) -> None:
    """Those of an earlier release or of cert-manager: its pods serve until they are replaced."""
    earlier = issue("earlier", NOW, 365 * 20).authority
    (webhook,) = api.objects["MutatingWebhookConfiguration"]["webhooks"]
    webhook["clientConfig"]["caBundle"] = base64.b64encode(earlier).decode()
    check(api.issuer())
    assert earlier.strip() in split_pem(api.bundle) and trusts(api, api.files)
    api.now += OVERLAP_SECONDS + 1
    check(api.issuer())
    assert earlier.strip() not in split_pem(api.bundle) and trusts(api, api.files)


def test_two_controllers_that_both_lead_end_with_one_certificate_that_is_trusted(api: Api) -> None:
    async def both() -> None:
        issuers = [api.issuer(), api.issuer()]
        for _ in range(6):
            await asyncio.gather(*(issuer.check() for issuer in issuers))

    asyncio.run(both())
    assert read_certificate(api.objects["Secret"], HOST, NOW) is not None
    assert trusts(api, api.files)


@pytest.mark.parametrize("kind", ["Secret", "MutatingWebhookConfiguration"])
def test_a_write_of_somebody_else_is_met_by_reading_again(api: Api, kind: str) -> None:
    api.refuses.add(kind)
    issuer = api.issuer()
    check(issuer, 2)
    assert read_certificate(api.objects["Secret"], HOST, NOW) is not None
    assert trusts(api, api.files)


@pytest.mark.parametrize("webhooks", [None, [], "absent"])
def test_a_configuration_without_a_webhook_is_no_error(api: Api, webhooks: Any) -> None:
    configuration = api.objects["MutatingWebhookConfiguration"]
    configuration["webhooks"] = webhooks
    if webhooks == "absent":
        del configuration["webhooks"]
    check(api.issuer(), 3)
    assert "tls.crt" in api.files


def test_an_error_of_any_kind_ends_no_check_after_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checks: list[int] = []

    async def check_once() -> None:
        checks.append(1)
        if len(checks) < 3:
            raise KeyError("clientConfig")
        raise asyncio.CancelledError

    monkeypatch.setattr(certificates, "CHECK_INTERVAL_SECONDS", 0.0)
    issuer = api.issuer()
    monkeypatch.setattr(issuer, "check", check_once)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(issuer.run())
    assert len(checks) == 3
    assert caplog.text.count("the webhook's certificate cannot be checked") == 1


def test_objects_that_are_missing_are_named(api: Api) -> None:
    del api.objects["Secret"]
    with pytest.raises(ApiError, match="Secret pretune-webhook-tls is missing"):
        check(api.issuer())
