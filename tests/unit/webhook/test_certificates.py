"""A certificate that is replaced while the server runs, as a real TLS client sees it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from pretune.webhook import certificates
from pretune.webhook.certificates import CertificateError, CertificateWatcher, parse_expiry

DAY = 86400


def make(folder: Path, name: str, days: int = 30) -> Path:
    """Write a self-signed pair into a folder of this name."""
    pair = folder / name
    pair.mkdir(exist_ok=True)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", str(days)]
    command += ["-keyout", str(pair / "tls.key"), "-out", str(pair / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)
    return pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("first", "second"):
        make(folder, name)
    return folder


@pytest.fixture
def mount(tmp_path: Path, pairs: Path) -> Path:
    """A folder as the kubelet mounts a Secret: tls.crt is a link to ..data/tls.crt, and ..data a link
    that is replaced."""
    swap(tmp_path, pairs / "first")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


def swap(mount: Path, to: Path) -> None:
    (mount / "..data_tmp").symlink_to(to)
    os.replace(mount / "..data_tmp", mount / "..data")


def copy_pair(folder: Path, pair: Path) -> Path:
    """Write the pair as plain files."""
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_bytes((pair / name).read_bytes())
    return folder


def served_name(context: ssl.SSLContext) -> str:
    """Return the common name of the certificate that a client gets."""

    async def connect() -> str:
        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0, ssl=context)
        async with server:
            return await asyncio.to_thread(common_name, server.sockets[0].getsockname()[1])

    return asyncio.run(connect())


def common_name(port: int, trust: Path | None = None) -> str:
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        client.wrap_socket(plain) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der
    command = ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "multiline"]
    text = subprocess.run(command, input=der, capture_output=True, check=True).stdout.decode()
    return text.rpartition("= ")[2].strip()


def test_a_client_gets_the_new_pair_once_the_mount_was_swapped(mount: Path, pairs: Path) -> None:
    watcher = CertificateWatcher(mount)
    context = watcher.context
    assert served_name(context) == "first"
    swap(mount, pairs / "second")
    watcher.reload_if_changed()
    assert served_name(context) == "second" and watcher.context is context


def test_the_files_are_checked_again_and_again_and_open_connections_go_on(
    mount: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "CHECK_INTERVAL_SECONDS", 0.05)

    async def story() -> tuple[str, str]:
        watcher, connected = CertificateWatcher(mount), asyncio.Event()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            writer.write(await reader.readline())
            writer.close()

        watching = asyncio.create_task(watcher.watch_files())
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=watcher.context)
        port = server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cafile=str(pairs / "first" / "tls.crt"))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname="first"
        )
        await connected.wait()
        swap(mount, pairs / "second")
        for _ in range(100):
            await asyncio.sleep(0.05)
            if (name := await asyncio.to_thread(common_name, port)) == "second":
                break
        writer.write(b"still here\n")  # a connection that was open before
        line = (await reader.readline()).decode().strip()
        writer.close()
        watching.cancel()
        server.close()
        return name, line

    assert asyncio.run(story()) == ("second", "still here")


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("the key was not written yet", lambda at, to: (at / "tls.crt").write_bytes((to / "tls.crt").read_bytes())),
        ("the certificate was not written yet", lambda at, to: (at / "tls.key").write_bytes((to / "tls.key").read_bytes())),
        ("the certificate is cut off", lambda at, to: (at / "tls.crt").write_bytes((to / "tls.crt").read_bytes()[:300])),
        ("the key is cut off", lambda at, to: (at / "tls.key").write_bytes((to / "tls.key").read_bytes()[:100])),
        ("a file is empty", lambda at, to: (at / "tls.crt").write_bytes(b"")),
        ("a file is gone", lambda at, to: (at / "tls.key").unlink()),
        ("it is no certificate", lambda at, to: (at / "tls.crt").write_text("<html>")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pair_that_is_not_usable_leaves_the_old_one_and_is_logged_once(
    case: str, change: object, tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = CertificateWatcher(copy_pair(tmp_path, pairs / "first"))
    change(tmp_path, pairs / "second")  # type: ignore[operator]
    for _ in range(3):
        watcher.reload_if_changed()
    assert [
        str(tmp_path) in message and "stays in use" in message for message in caplog.messages
    ] == [True]
    assert served_name(watcher.context) == "first"
    copy_pair(tmp_path, pairs / "second")
    watcher.reload_if_changed()
    assert served_name(watcher.context) == "second"


def test_another_fault_is_logged_again_and_so_is_the_same_one_after_a_good_pair(
    tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = CertificateWatcher(copy_pair(tmp_path, pairs / "first"))
    for content in (b"", b"x", b""):
        (tmp_path / "tls.crt").write_bytes(content)
        watcher.reload_if_changed()
    copy_pair(tmp_path, pairs / "first")
    watcher.reload_if_changed()
    (tmp_path / "tls.crt").write_bytes(b"")
    watcher.reload_if_changed()
    assert len(caplog.messages) == 4


def test_without_a_usable_pair_at_the_start_there_is_an_error(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(
        CertificateError, match=r"tls.crt and tls.key cannot be used: No such file or directory"
    ):
        CertificateWatcher(tmp_path)
    copy_pair(tmp_path, pairs / "first")
    (tmp_path / "tls.key").write_bytes((pairs / "second" / "tls.key").read_bytes())
    with pytest.raises(CertificateError, match=r"KEY_VALUES_MISMATCH|key values mismatch"):
        CertificateWatcher(tmp_path)


def test_a_key_with_a_password_is_refused_and_not_asked_for_at_the_terminal(
    tmp_path: Path, pairs: Path
) -> None:
    copy_pair(tmp_path, pairs / "first")
    command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-out", str(tmp_path / "tls.key")]
    subprocess.run(
        [*command, "-in", str(pairs / "first" / "tls.key")], check=True, capture_output=True
    )
    with pytest.raises(CertificateError, match="the key has a password"):
        CertificateWatcher(tmp_path)


@pytest.mark.parametrize(
    "days", [1, 365, 20_000]
)  # the last expires after 2049, when the time has another format
def test_the_expiry_of_a_certificate_is_read(days: int, tmp_path: Path) -> None:
    pair = make(tmp_path, "any", days)
    assert abs(parse_expiry((pair / "tls.crt").read_bytes()) - time.time() - days * DAY) < 60


def test_the_expiry_of_a_chain_is_that_of_its_first_certificate(
    tmp_path: Path, pairs: Path
) -> None:
    short, long = (
        make(tmp_path, name, days) / "tls.crt" for name, days in (("leaf", 3), ("ca", 900))
    )
    chain = b"some text\n" + short.read_bytes() + long.read_bytes()
    assert parse_expiry(chain) == parse_expiry(short.read_bytes())


def test_a_certificate_that_expires_soon_is_warned_about(
    tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert 29 * DAY < CertificateWatcher(pairs / "first").seconds_left < 31 * DAY
    assert not caplog.messages
    assert CertificateWatcher(make(tmp_path, "ending", 6)).seconds_left < 7 * DAY
    assert "check that it is renewed" in caplog.messages[0]


def test_with_an_authority_for_clients_only_those_with_its_certificate_are_answered(
    pairs: Path,
) -> None:
    authority = pairs / "second" / "tls.crt"  # self-signed: its own authority
    context = CertificateWatcher(pairs / "first", authority).context

    def ask(port: int, pair: Path | None) -> bytes:
        trust = ssl.create_default_context(cafile=str(pairs / "first" / "tls.crt"))
        if pair is not None:
            trust.load_cert_chain(pair / "tls.crt", pair / "tls.key")
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            trust.wrap_socket(plain, server_hostname="first") as connection,
        ):
            return connection.recv(10)

    async def story() -> list[bytes]:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"yes")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        async with server:
            port, answers = server.sockets[0].getsockname()[1], list[bytes]()
            for pair in (pairs / "second", pairs / "first", None):
                try:
                    answers.append(await asyncio.to_thread(ask, port, pair))
                except OSError:  # ssl.SSLError is one
                    answers.append(b"")
            return answers

    assert asyncio.run(story()) == [b"yes", b"", b""]


def test_an_authority_that_cannot_be_read_is_named(pairs: Path) -> None:
    with pytest.raises(CertificateError, match=r"/nowhere/ca.crt: no certificate can be read"):
        CertificateWatcher(pairs / "first", "/nowhere/ca.crt")
