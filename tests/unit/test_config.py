"""What the environment may say."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretune.config import (
    ControllerSettings,
    SettingError,
    Settings,
    WebhookSettings,
    own_architecture,
)


def test_only_the_image_has_to_be_set() -> None:
    settings = ControllerSettings.from_environment({"PRETUNE_IMAGE": "registry/pretune:1"})
    assert settings.decisions == Settings(
        "registry/pretune:1", operator_architectures=(own_architecture(),)
    )
    assert (settings.namespace, settings.liveness_port, settings.workers) == ("default", 8080, 4)
    assert settings.read_logs is False
    assert settings.identity


def test_every_variable_of_the_chart_is_read() -> None:
    settings = ControllerSettings.from_environment(
        {
            "PRETUNE_IMAGE": "registry/pretune:1",
            "PRETUNE_IMAGE_PULL_POLICY": "Always",
            "PRETUNE_IMAGE_PULL_SECRETS": "one, two,",
            "PRETUNE_PRIORITY_CLASS": "low",
            "PRETUNE_LOG_LEVEL": "DEBUG",
            "PRETUNE_LIVENESS_PORT": "0",
            "PRETUNE_WORKERS": "8",
            "PRETUNE_READ_LOGS": "true",
            "PRETUNE_IMAGE_ARCHITECTURES": "amd64, arm64",
            "POD_NAMESPACE": "pretune-system",
            "POD_NAME": "pretune-0",
        }
    )
    assert settings == ControllerSettings(
        "registry/pretune:1",
        "Always",
        ("one", "two"),
        "low",
        "pretune-system",
        "pretune-0",
        "DEBUG",
        0,
        8,
        True,
        architectures=("amd64", "arm64"),
    )
    assert settings.decisions == Settings(
        "registry/pretune:1", "Always", ("one", "two"), "low", ("amd64", "arm64")
    )


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("PRETUNE_IMAGE", " ", "is not set"),
        ("PRETUNE_IMAGE_PULL_POLICY", "Sometimes", "Always, IfNotPresent, Never"),
        ("PRETUNE_READ_LOGS", "yes", "true, false"),
        ("PRETUNE_LOG_LEVEL", "info", "DEBUG, INFO, WARNING, ERROR"),
        ("PRETUNE_LIVENESS_PORT", "http", "from 0 to 65535"),
        ("PRETUNE_LIVENESS_PORT", "65536", "from 0 to 65535"),
        ("PRETUNE_WORKERS", "1", "from 2 to 64"),
        ("PRETUNE_WORKERS", "-1", "from 2 to 64"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_variable_and_what_is_expected(
    name: str, value: str, expects: str
) -> None:
    with pytest.raises(SettingError) as refused:
        ControllerSettings.from_environment({"PRETUNE_IMAGE": "x", name: value})
    assert str(refused.value).startswith(name) and expects in str(refused.value)


def test_of_the_webhook_only_the_certificates_have_to_be_set() -> None:
    assert WebhookSettings.from_environment({"PRETUNE_CERTIFICATES": "/tls"}) == WebhookSettings(
        "/tls", "default", 8443, 8080, "INFO"
    )


def test_every_variable_of_the_chart_is_read_by_the_webhook() -> None:
    settings = WebhookSettings.from_environment(
        {
            "PRETUNE_CERTIFICATES": "/tls",
            "POD_NAMESPACE": "pretune-system",
            "PRETUNE_WEBHOOK_PORT": "9443",
            "PRETUNE_HEALTH_PORT": "0",
            "PRETUNE_LOG_LEVEL": "WARNING",
            "PRETUNE_CLIENT_CA": "/ca/ca.crt",
        }
    )
    assert (
        settings == WebhookSettings("/tls", "pretune-system", 9443, 0, "WARNING", "/ca/ca.crt")
        and settings.logging_level == logging.WARNING
    )


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("PRETUNE_CERTIFICATES", " ", "is not set"),
        ("PRETUNE_WEBHOOK_PORT", "0", "from 1 to 65535"),
        ("PRETUNE_HEALTH_PORT", "-1", "from 0 to 65535"),
        ("PRETUNE_LOG_LEVEL", "TRACE", "DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_the_webhook_refuses_a_value_that_cannot_be(name: str, value: str, expects: str) -> None:
    with pytest.raises(SettingError) as refused:
        WebhookSettings.from_environment({"PRETUNE_CERTIFICATES": "/tls", name: value})
    assert str(refused.value).startswith(name) and expects in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "PRETUNE_IMAGE is not set"),
        (["webhook"], "PRETUNE_CERTIFICATES is not set"),
        (["webhok"], "unknown arguments 'webhok': none runs the controller"),
        (["webhook", "now"], "unknown arguments 'webhook now'"),
    ],
)
def test_a_bad_setting_ends_the_process_with_that_sentence_only(
    arguments: list[str], words: str
) -> None:
    unset = {"PRETUNE_IMAGE": "", "PRETUNE_CERTIFICATES": ""}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "operator"), **unset}
    ended = subprocess.run(
        [sys.executable, "-m", "pretune", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(words) and ended.stderr.count("\n") == 1
