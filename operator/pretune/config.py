"""What an installation may choose, read from the environment; charts/pretune sets each variable."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
BOOLEANS = ("true", "false")


@dataclass(frozen=True)
class Settings:
    """What decisions need to know of the installation."""

    operator_image: str
    operator_pull_policy: str = "IfNotPresent"
    operator_pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""  # the chart's, which never preempts; "" where it was not installed
    # Values of the node label kubernetes.io/arch that the operator's image runs on; (): any.
    operator_architectures: tuple[str, ...] = ()


class SettingError(ValueError):
    """A variable is missing or invalid; the message names it and what is expected."""


@dataclass(frozen=True)
class ControllerSettings:
    """Settings of the controller. Behind each: its variable."""

    image: str  # PRETUNE_IMAGE: the operator's own, for the Jobs that read and prune a claim
    pull_policy: str = "IfNotPresent"  # PRETUNE_IMAGE_PULL_POLICY, for those Jobs
    # PRETUNE_IMAGE_PULL_SECRETS: names in the caches' namespaces, comma separated
    pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""  # PRETUNE_PRIORITY_CLASS of tuning pods; empty: none
    namespace: str = "default"  # POD_NAMESPACE: where the lease is
    identity: str = ""  # POD_NAME: who holds the lease
    log_level: str = "INFO"  # PRETUNE_LOG_LEVEL
    liveness_port: int = 8080  # PRETUNE_LIVENESS_PORT of GET /healthz; 0: not served
    workers: int = 4  # PRETUNE_WORKERS: caches that are reconciled at a time, half of a namespace
    read_logs: bool = False  # PRETUNE_READ_LOGS: read consumers' logs, which needs the right to
    # PRETUNE_MAX_CONCURRENT_ATTEMPTS: attempts and proofs of all caches at a time; 0: no limit
    max_concurrent_attempts: int = 20
    # PRETUNE_NAMESPACES, comma separated: the only ones that it works in; empty: all
    namespaces: tuple[str, ...] = ()
    # PRETUNE_WEBHOOK: the name of the webhook's configuration and Service, for which the controller
    # issues certificates; empty: it issues none
    webhook: str = ""
    certificate_days: int = 90  # PRETUNE_CERTIFICATE_DAYS: how long such a certificate is valid
    # PRETUNE_IMAGE_ARCHITECTURES: that the image runs on, comma separated; else this process' own
    architectures: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ControllerSettings:
        """Return the settings. Raises SettingError."""
        image = environment.get("PRETUNE_IMAGE", "").strip()
        if not image:
            raise SettingError(
                "PRETUNE_IMAGE is not set:"
                " it names the operator's image, in which Jobs read and prune a claim"
            )
        return cls(
            image=image,
            pull_policy=_read_choice(
                environment, "PRETUNE_IMAGE_PULL_POLICY", PULL_POLICIES, "IfNotPresent"
            ),
            pull_secrets=_read_list(environment, "PRETUNE_IMAGE_PULL_SECRETS"),
            priority_class=environment.get("PRETUNE_PRIORITY_CLASS", "").strip(),
            namespace=environment.get("POD_NAMESPACE") or "default",
            # Outside a pod two processes of one host name may exist.
            identity=environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            namespaces=_read_list(environment, "PRETUNE_NAMESPACES"),
            log_level=_read_choice(environment, "PRETUNE_LOG_LEVEL", LOG_LEVELS, "INFO"),
            liveness_port=_read_number(environment, "PRETUNE_LIVENESS_PORT", 8080, 0, 65535),
            workers=_read_number(environment, "PRETUNE_WORKERS", 4, 2, 64),
            read_logs=_read_choice(environment, "PRETUNE_READ_LOGS", BOOLEANS, "false") == "true",
            max_concurrent_attempts=_read_number(
                environment, "PRETUNE_MAX_CONCURRENT_ATTEMPTS", 20, 0, 100_000
            ),
            webhook=environment.get("PRETUNE_WEBHOOK", "").strip(),
            certificate_days=_read_number(environment, "PRETUNE_CERTIFICATE_DAYS", 90, 30, 365),
            architectures=_read_list(environment, "PRETUNE_IMAGE_ARCHITECTURES")
            or (own_architecture(),),
        )

    @property
    def decisions(self) -> Settings:
        """The part that decisions depend on."""
        return Settings(
            self.image,
            self.pull_policy,
            self.pull_secrets,
            self.priority_class,
            self.architectures,
        )

    @property
    def logging_level(self) -> int:
        """The level as the module logging has it."""
        return _logging_level(self.log_level)


@dataclass(frozen=True)
class WebhookSettings:
    """Settings of the webhook, which is a Deployment of its own. Behind each: its variable."""

    certificates: str  # PRETUNE_CERTIFICATES: the mounted folder with tls.crt and tls.key
    namespace: str = "default"  # POD_NAMESPACE: where the controller's lease is
    port: int = 8443  # PRETUNE_WEBHOOK_PORT of POST /pods, HTTPS
    # PRETUNE_HEALTH_PORT of GET /healthz, /readyz and /metrics, plain HTTP; 0: not served
    health_port: int = 8080
    log_level: str = "INFO"  # PRETUNE_LOG_LEVEL
    # PRETUNE_CLIENT_CA: file with the authority of the API server's client certificate; empty: any
    # client is answered
    client_ca: str = ""
    # PRETUNE_NAMESPACES, comma separated: the only ones whose caches it knows; empty: all
    namespaces: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> WebhookSettings:
        """Return the settings. Raises SettingError."""
        certificates = environment.get("PRETUNE_CERTIFICATES", "").strip()
        if not certificates:
            raise SettingError(
                "PRETUNE_CERTIFICATES is not set:"
                " it names the mounted folder with tls.crt and tls.key"
            )
        return cls(
            certificates=certificates,
            namespace=environment.get("POD_NAMESPACE") or "default",
            namespaces=_read_list(environment, "PRETUNE_NAMESPACES"),
            port=_read_number(environment, "PRETUNE_WEBHOOK_PORT", 8443, 1, 65535),
            health_port=_read_number(environment, "PRETUNE_HEALTH_PORT", 8080, 0, 65535),
            log_level=_read_choice(environment, "PRETUNE_LOG_LEVEL", LOG_LEVELS, "INFO"),
            client_ca=environment.get("PRETUNE_CLIENT_CA", "").strip(),
        )

    @property
    def logging_level(self) -> int:
        """The level as the module logging has it."""
        return _logging_level(self.log_level)


def _logging_level(name: str) -> int:
    return int(logging.getLevelNamesMapping()[name])


def own_architecture() -> str:
    """Return this process' architecture, as nodes have it in the label kubernetes.io/arch."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _read_list(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    texts = environment.get(name, "").split(",")
    return tuple(text.strip() for text in texts if text.strip())


def _read_choice(
    environment: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str
) -> str:
    value = environment.get(name) or default
    if value not in allowed:
        raise SettingError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
    return value


def _read_number(
    environment: Mapping[str, str], name: str, default: int, lowest: int, highest: int
) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
        raise SettingError(
            f"{name} is {text!r}: it must be a whole number from {lowest} to {highest}"
        )
    return int(text)
