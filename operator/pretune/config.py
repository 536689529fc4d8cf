"""What an installation may choose, read from the environment; charts/pretune sets each of these."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SWITCH = ("true", "false")


@dataclass(frozen=True)
class Settings:
    """What the decisions need to know of the installation."""

    operator_image: str
    operator_pull_policy: str = "IfNotPresent"
    operator_pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""  # the chart's, which never preempts; "" where it was not installed


class SettingError(ValueError):
    """A variable is missing or cannot be; the message names it and says what is expected."""


@dataclass(frozen=True)
class Installation:
    """Of the controller."""

    image: str  # PRETUNE_IMAGE: the operator's own, for the Jobs that read and prune a claim
    pull_policy: str = "IfNotPresent"  # PRETUNE_IMAGE_PULL_POLICY, for those Jobs
    pull_secrets: tuple[
        str, ...
    ] = ()  # PRETUNE_IMAGE_PULL_SECRETS: names in the caches' namespaces, comma separated
    priority_class: str = ""  # PRETUNE_PRIORITY_CLASS of tuning pods; empty: none
    namespace: str = "default"  # POD_NAMESPACE: where the lease is
    identity: str = ""  # POD_NAME: who holds the lease
    log_level: str = "INFO"  # PRETUNE_LOG_LEVEL
    liveness_port: int = 8080  # PRETUNE_LIVENESS_PORT of GET /healthz; 0: not served
    workers: int = 4  # PRETUNE_WORKERS: caches that are reconciled at a time
    read_logs: bool = (
        False  # PRETUNE_READ_LOGS: whether consumers' logs are read, which needs the right to
    )

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Installation:
        """Raises SettingError."""
        image = environment.get("PRETUNE_IMAGE", "").strip()
        if not image:
            raise SettingError(
                "PRETUNE_IMAGE is not set: it names the operator's image, in which Jobs read and prune a claim"
            )
        return cls(
            image=image,
            pull_policy=_one_of(
                environment, "PRETUNE_IMAGE_PULL_POLICY", PULL_POLICIES, "IfNotPresent"
            ),
            pull_secrets=tuple(
                name.strip()
                for name in environment.get("PRETUNE_IMAGE_PULL_SECRETS", "").split(",")
                if name.strip()
            ),
            priority_class=environment.get("PRETUNE_PRIORITY_CLASS", "").strip(),
            namespace=environment.get("POD_NAMESPACE") or "default",
            # Outside a pod nothing says that two processes of one name are not both there.
            identity=environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            log_level=_one_of(environment, "PRETUNE_LOG_LEVEL", LOG_LEVELS, "INFO"),
            liveness_port=_number(environment, "PRETUNE_LIVENESS_PORT", 8080, 0, 65535),
            workers=_number(environment, "PRETUNE_WORKERS", 4, 1, 64),
            read_logs=_one_of(environment, "PRETUNE_READ_LOGS", SWITCH, "false") == "true",
        )

    @property
    def decisions(self) -> Settings:
        """The part that decisions depend on."""
        return Settings(self.image, self.pull_policy, self.pull_secrets, self.priority_class)

    @property
    def level(self) -> int:
        return _level(self.log_level)


@dataclass(frozen=True)
class Webhook:
    """Of the webhook, which is a Deployment of its own."""

    certificates: str  # PRETUNE_CERTIFICATES: the mounted folder with tls.crt and tls.key
    namespace: str = "default"  # POD_NAMESPACE: where the controller's lease is
    port: int = 8443  # PRETUNE_WEBHOOK_PORT of POST /pods, HTTPS
    health_port: int = (
        8080  # PRETUNE_HEALTH_PORT of GET /healthz, /readyz and /metrics, plain HTTP; 0: not served
    )
    log_level: str = "INFO"  # PRETUNE_LOG_LEVEL

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Webhook:
        """Raises SettingError."""
        certificates = environment.get("PRETUNE_CERTIFICATES", "").strip()
        if not certificates:
            raise SettingError(
                "PRETUNE_CERTIFICATES is not set: it names the mounted folder with tls.crt and tls.key"
            )
        return cls(
            certificates=certificates,
            namespace=environment.get("POD_NAMESPACE") or "default",
            port=_number(environment, "PRETUNE_WEBHOOK_PORT", 8443, 1, 65535),
            health_port=_number(environment, "PRETUNE_HEALTH_PORT", 8080, 0, 65535),
            log_level=_one_of(environment, "PRETUNE_LOG_LEVEL", LOG_LEVELS, "INFO"),
        )

    @property
    def level(self) -> int:
        return _level(self.log_level)


def _level(name: str) -> int:
    return int(logging.getLevelNamesMapping()[name])


def _one_of(
    environment: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str
) -> str:
    value = environment.get(name) or default
    if value not in allowed:
        raise SettingError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
    return value


def _number(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingError(f"{name} is {text!r}: it must be a whole number from {least} to {most}")
    return int(text)
