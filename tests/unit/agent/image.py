"""Images as folders: interpreters that are never run, and the metadata of installed packages."""

from __future__ import annotations

from pathlib import Path

CURRENT_FLASHINFER = "0.7.2.post1"


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def install_package(site: Path, name: str, version: str) -> None:
    """Write a package's metadata to a site-packages folder."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nSummary: x\n\nVersion: 9\n"
    )


def install_python(
    prefix: Path,
    release: str = "3.12",
    *,
    vllm: str = "",
    flashinfer: str = "",
    site: str = "site-packages",
) -> Path:
    """Write an interpreter with these packages, "" for none; returns its path."""
    binary = prefix / f"bin/python{release}"
    binary.parent.mkdir(parents=True, exist_ok=True)
    binary.write_bytes(b"\x7fELF")
    binary.chmod(0o755)
    (prefix / "bin/python3").symlink_to(binary.name)
    folder = prefix / f"lib/python{release}" / site
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in (("vllm", vllm), ("flashinfer_python", flashinfer)):
        if version:
            install_package(folder, name, version)
    return prefix / "bin/python3"


def build_image(root: Path, vllm: str, flashinfer: str = CURRENT_FLASHINFER) -> list[str]:
    """Write an image with a virtual environment; returns the engine's command."""
    python = install_python(root / "venv", vllm=vllm, flashinfer=flashinfer)
    (root / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    script = write_script(root / "venv/bin/vllm", f"#!{python}\nimport vllm\n")
    return [str(script), "serve", "m"]
