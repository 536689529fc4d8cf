"""Which vLLM and FlashInfer are in the image, by reading their package metadata: nothing of the image is run.

The engine's own interpreter is found as a kernel would find it: from the command's executable, its shebang, and PATH.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Dict, Iterator, List, Optional, Sequence

from pretune.engines.vllm import cli, releases
from pretune.protocol import Versions

_PYTHON = re.compile(r"(python|pypy)(\d+(\.\d+)?)?$")
# What pip and uv write when the interpreter's path is too long for a shebang, or has a space: a shell line that execs it.
_LONG_SHEBANG = re.compile(rb"'''exec'\s+(?:\"([^\"]+)\"|'([^']+)'|(\S+))\s+\"\$0\"")


def image_versions(command: Sequence[str], path: str, pythonpath: str = "") -> Versions:
    """Of the engine's interpreter, else of `vllm` on PATH, else of python3 there; "" for what cannot be told.

    `command` is the engine's command and args (empty: the image's own entrypoint), `path` and `pythonpath` its variables.
    """
    ahead = [one for one in pythonpath.split(os.pathsep) if one]
    found: Dict[str, str] = {}
    for interpreter in _interpreters(command, path):
        here: Dict[str, str] = {}
        for folder in ahead + site_folders(interpreter):
            for package in releases.PACKAGES:
                if package not in here:
                    version = _version(folder, package)
                    if version:
                        here[package] = version
        if "vllm" in here:
            found = here
            break
        found = found or here
    return Versions(vllm=found.get("vllm", ""), flashinfer=found.get("flashinfer-python", ""))


def _interpreters(command: Sequence[str], path: str) -> Iterator[str]:
    """The one that the command itself names: where it has no vLLM, none is known. Else candidates, the best first."""
    words = cli.words_of(command)
    named = [
        word
        for word in words
        if word.rsplit("/", 1)[-1] == "vllm" or _PYTHON.match(word.rsplit("/", 1)[-1])
    ]
    for word in named[:1] + words[:1] + ["vllm", "python3"]:
        program = _which(word, path)
        interpreter = program and _interpreter(program, path)
        if interpreter:
            yield interpreter
            if word in words:
                return


def _which(word: str, path: str) -> Optional[str]:
    """The executable file that a word names; its folders are not resolved."""
    candidates = (
        [word]
        if "/" in word
        else [os.path.join(one or ".", word) for one in path.split(os.pathsep)]
    )
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def _interpreter(program: str, path: str) -> Optional[str]:
    """The Python that runs this program: itself, or that of its shebang."""
    if _PYTHON.match(os.path.basename(program)):
        return program
    try:
        with open(program, "rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    words = head[2:].split(b"\n", 1)[0].decode(errors="replace").split()
    if words and os.path.basename(words[0]) == "env":
        rest = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        named = _which(rest[0], path) if rest else None
    elif words and os.path.basename(words[0]) in ("sh", "bash", "dash"):
        long = _LONG_SHEBANG.search(head)
        target = next((one for one in long.groups() if one), b"") if long else b""
        named = (
            _which(target.decode(errors="replace"), path) if target else _handed_on(program, path)
        )
    else:
        named = _which(words[0], path) if words else None
    return named if named and _PYTHON.match(os.path.basename(named)) else None


def _handed_on(script: str, path: str) -> Optional[str]:
    """The Python of a short entrypoint script that ends in `exec vllm …` or `exec /opt/venv/bin/python …`."""
    try:
        with open(script, "rb") as file:
            text = file.read(16384).decode(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if not line.strip().startswith("exec "):
            continue
        try:
            words = shlex.split(line, comments=True)[1:]
        except ValueError:
            continue
        for word in words[:3]:  # exec env VAR=1 vllm
            name = word.rsplit("/", 1)[-1]
            if name == "vllm" or _PYTHON.match(name):
                program = _which(word, path)
                if program and program != script:
                    return _interpreter(program, path)
    return None


def site_folders(interpreter: str) -> List[str]:
    """The folders where this interpreter's packages lie.

    A virtual environment is known by the pyvenv.cfg beside the interpreter or above it, looked for at each link on the way to the real
    file, since the links lead out of it. Debian's folders are `dist-packages`: /usr/lib/python3, and /usr/local/lib/python3.X.
    """
    steps = _links(interpreter)
    prefixes: List[str] = []
    own = True
    for step in steps:
        prefix = os.path.dirname(os.path.dirname(step))
        config = _first_file(
            os.path.join(prefix, "pyvenv.cfg"), os.path.join(os.path.dirname(step), "pyvenv.cfg")
        )
        if config:
            prefixes = [
                os.path.dirname(config)
                if os.path.dirname(config) != os.path.dirname(step)
                else prefix
            ]
            own = _says_system_packages(config)
            if own:
                prefixes += [
                    os.path.dirname(os.path.dirname(one)) for one in steps[steps.index(step) + 1 :]
                ]
            break
        prefixes.append(prefix)
    release = re.match(r"python(3\.\d+)$", os.path.basename(steps[-1]))
    folders: List[str] = []
    for prefix in prefixes:
        for lib in ("local/lib", "lib", "lib64"):
            for name in _pythons(os.path.join(prefix, lib), release.group(1) if release else ""):
                for kind in ("site-packages", "dist-packages"):
                    folder = os.path.join(prefix, lib, name, kind)
                    if os.path.isdir(folder) and folder not in folders:
                        folders.append(folder)
    return folders


def _links(path: str) -> List[str]:
    """The path, and what each link leads to, to the real file."""
    steps = [os.path.abspath(path)]
    while os.path.islink(steps[-1]) and len(steps) < 40:
        steps.append(
            os.path.normpath(os.path.join(os.path.dirname(steps[-1]), os.readlink(steps[-1])))
        )
    return steps + ([os.path.realpath(path)] if os.path.realpath(path) not in steps else [])


def _first_file(*paths: str) -> Optional[str]:
    return next((path for path in paths if os.path.isfile(path)), None)


def _says_system_packages(config: str) -> bool:
    try:
        with open(config, encoding="utf-8", errors="replace") as file:
            return (
                re.search(r"(?im)^include-system-site-packages\s*=\s*true\s*$", file.read(65536))
                is not None
            )
    except OSError:
        return False


def _pythons(lib: str, release: str) -> List[str]:
    """python3.12, and Debian's python3; all of them when the interpreter's name does not tell its release."""
    try:
        names = os.listdir(lib)
    except OSError:
        return []
    fitting = [
        name
        for name in names
        if re.match(r"python3(\.\d+)?$", name)
        and (not release or name in ("python" + release, "python3"))
    ]
    return sorted(
        fitting, key=lambda name: [-int(part) for part in re.findall(r"\d+", name)[1:]] or [0]
    )


def _version(folder: str, package: str) -> str:
    """The version of a distribution in this folder: of its dist-info, or an older egg-info."""
    stem = package.replace("-", "[-_.]")
    known = re.compile(
        r"%s-[^-]+(\.dist-info|(-py3\.\d+)?\.egg-info)$|%s\.egg-info$" % (stem, stem), re.IGNORECASE
    )
    try:
        names = sorted(name for name in os.listdir(folder) if known.match(name))
    except OSError:
        return ""
    for name in names:
        for file in ("METADATA", "PKG-INFO", ""):
            try:
                with open(
                    os.path.join(folder, name, file) if file else os.path.join(folder, name),
                    encoding="utf-8",
                ) as text:
                    found = re.search(
                        r"^Version:[ \t]*(\S+)", text.read(65536).split("\n\n", 1)[0], re.MULTILINE
                    )
            except (OSError, UnicodeDecodeError):
                continue
            if found:
                return found.group(1)[:64]
    return ""
