#!/usr/bin/env python3
"""Puts the stand-in into a folder: a small virtual environment for each release that it plays, so that the release is told by the
interpreter's own package metadata, as it is in a real image.

usage: install.py FOLDER    makes FOLDER/lib, FOLDER/<release>/bin/{python3,vllm}, FOLDER/unknown/… and FOLDER/default
"""

import compileall
import os
import shutil
import sys
from pathlib import Path
from typing import Dict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from stand_in.releases import NEWEST, RELEASES, UNKNOWN, Release  # noqa: E402, its path comes first

_VLLM_COMMAND = """#!{python}
import sys
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""
_MODULES = {  # what `vllm`'s console script and `python3 -m …` name in a real image
    "vllm/__init__.py": '"""Stand-in, see stand_in."""\n',
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/cli/__init__.py": "",
    "vllm/entrypoints/cli/main.py": "from stand_in.cli import main as main\n",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": "import sys\nfrom stand_in.cli import serve\nserve(sys.argv[1:])\n",
}


def install(folder: Path) -> None:
    """Makes the prefixes under `folder`, replacing what is there. The interpreter is the one that runs this."""
    shutil.rmtree(str(folder), ignore_errors=True)
    (folder / "lib").mkdir(parents=True)
    shutil.copytree(
        str(HERE / "stand_in"),
        str(folder / "lib" / "stand_in"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for release in RELEASES.values():
        _prefix(folder, release.vllm, _packages(release))
    _prefix(folder, UNKNOWN, {})
    (folder / "default").symlink_to(NEWEST)
    compileall.compile_dir(str(folder / "lib"), quiet=1)


def _packages(release: Release) -> Dict[str, str]:
    return {"vllm": release.vllm, "flashinfer-python": release.flashinfer, "torch": release.torch}


def _prefix(folder: Path, name: str, packages: Dict[str, str]) -> None:
    prefix = folder / name
    base = Path(os.path.realpath(sys.executable))
    site = prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
    )
    (prefix / "bin" / "python3").symlink_to(base)
    (prefix / "bin" / "python").symlink_to("python3")
    command = prefix / "bin" / "vllm"
    command.write_text(_VLLM_COMMAND.format(python=prefix / "bin" / "python3"))
    command.chmod(0o755)
    (site / "stand_in.pth").write_text(f"{folder / 'lib'}\n")
    for path, content in _MODULES.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
    for package, version in packages.items():
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nSummary: stand-in, metadata only\n"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    install(Path(sys.argv[1]).absolute())
