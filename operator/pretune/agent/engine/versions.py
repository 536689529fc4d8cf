"""Which engine and libraries are in the image, from their package metadata: nothing of it is run.

The engine's own interpreter is found as a kernel would find it: from the command's executable, its
shebang, and PATH.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Dict, Iterator, List, Optional, Sequence

from pretune.agent.context import Context
from pretune.engines.base import Engine
from pretune.engines.command import program, shell_words
from pretune.protocol import Versions

_PYTHON = re.compile(r"(python|pypy)(\d+(\.\d+)?)?$")
# What pip and uv write when the interpreter's path is too long for a shebang, or has a space: a
# shell line that execs it.
_LONG_SHEBANG = re.compile(rb"'''exec'\s+(?:\"([^\"]+)\"|'([^']+)'|(\S+))\s+\"\$0\"")


def image_versions(context: Context) -> Versions:
    """Return what is in the image for the task's engine; "" for what is unknown."""
    task = context.task
    return read_versions(
        context.engine, task.command, context.path, context.pythonpath, task.argsOnly
    )


def read_versions(
    engine: Engine,
    command: Sequence[str],
    path: str,
    pythonpath: str = "",
    args_only: bool = False,
) -> Versions:
    """Return the versions of the engine's distributions in its interpreter.

    Else of the engine's program on PATH, else of python3 there; "" for what is unknown. command:
    the engine's command and args, or only args (args_only), which the image's entrypoint gets;
    path, pythonpath: its variables.
    """
    ahead = [folder for folder in pythonpath.split(os.pathsep) if folder]
    found: Dict[str, str] = {}
    for interpreter in _interpreters(engine, command, path, args_only):
        here: Dict[str, str] = {}
        for folder in ahead + site_folders(interpreter):
            for field, distribution, _ in engine.distributions:
                version = "" if field in here else _version(folder, distribution)
                if version:
                    here[field] = version
        if engine.distributions[0][0] in here:
            found = here
            break
        found = found or here
    return Versions(**found)


def own_version(engine: Engine, versions: Versions) -> str:
    """Return the version of the engine itself, or ""."""
    return str(getattr(versions, engine.distributions[0][0]))


def describe_versions(engine: Engine, versions: Versions) -> str:
    """Return text like "vLLM 0.33.0, FlashInfer unknown"."""
    return ", ".join(
        "%s %s" % (title, getattr(versions, field) or "unknown")
        for field, _, title in engine.distributions
    )


def _interpreters(
    engine: Engine, command: Sequence[str], path: str, args_only: bool
) -> Iterator[str]:
    """Yield the one that the command itself names, else candidates, the best first.

    Where the named one has not the engine, its version is unknown. None where the command names a
    file that is not here: it may be on a volume of the engine, whose version is not the image's.
    """
    words = shell_words(command)
    named = [word for word in words if _names_interpreter(engine, program(word))]
    folders = _folders_before_path(words)
    if not all(os.path.isdir(folder) for folder in folders) or any(
        "/" in word and not os.path.exists(word) for word in _programs(engine, words, args_only)
    ):
        return
    path = os.pathsep.join([*folders, path])
    first = [] if args_only else words[:1]
    for word in named[:1] + first + [*engine.programs, "python3"]:
        executable = _which(word, path)
        interpreter = executable and _interpreter(engine, executable, path)
        if interpreter:
            yield interpreter
            if word in words:
                return


def _programs(engine: Engine, words: Sequence[str], args_only: bool) -> Iterator[str]:
    """Yield the words that are programs: a command's first, and that of an interpreter or engine.

    The first of args alone may be a model (`Qwen/Qwen3-8B`), and so may a path that ends as an
    engine's program does (`serve /models/vllm`): no verb follows it.
    """
    if words and not args_only:
        yield words[0]
        if _names_interpreter(engine, program(words[0])):
            return
    for before, word, after in zip(["", *words], words, [*words[1:], ""]):
        name = program(word)
        is_value = before.startswith("--") and before != "--"
        has_verb = after != "" and not after.startswith("-")
        if not is_value and (_PYTHON.match(name) or (name in engine.programs and has_verb)):
            yield word
            return


def _folders_before_path(words: Sequence[str]) -> List[str]:
    """Return what a script puts before PATH: `. /venv/bin/activate`, `PATH=/venv/bin:$PATH`."""
    folders: List[str] = []
    for word in words[1:]:
        if program(word) == "activate" and "/" in word:
            folders.insert(0, os.path.dirname(word))
        elif word.startswith("PATH="):
            named = word[len("PATH=") :].split(os.pathsep)
            folders[:0] = [folder for folder in named if folder.startswith("/")]
    return folders


def _names_interpreter(engine: Engine, name: str) -> bool:
    return name in engine.programs or _PYTHON.match(name) is not None


def _which(word: str, path: str) -> Optional[str]:
    """Return the executable file that a word names; links in its path are kept."""
    candidates = (
        [word]
        if "/" in word
        else [os.path.join(folder or ".", word) for folder in path.split(os.pathsep)]
    )
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def _interpreter(engine: Engine, executable: str, path: str) -> Optional[str]:
    """Return the Python that runs this program: itself, or that of its shebang."""
    if _PYTHON.match(os.path.basename(executable)):
        return executable
    try:
        with open(executable, "rb") as file:
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
        target = next((group for group in long.groups() if group), b"") if long else b""
        if target:
            named = _which(target.decode(errors="replace"), path)
        else:
            named = _last_exec(engine, executable, path)
    else:
        named = _which(words[0], path) if words else None
    return named if named and _PYTHON.match(os.path.basename(named)) else None


def _last_exec(engine: Engine, script: str, path: str) -> Optional[str]:
    """Return the Python of a short entrypoint script that ends in `exec vllm …`, or in
    `exec /opt/venv/bin/python …`."""
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
            if _names_interpreter(engine, program(word)):
                executable = _which(word, path)
                if executable and executable != script:
                    return _interpreter(engine, executable, path)
    return None


def site_folders(interpreter: str) -> List[str]:
    """Return the folders where this interpreter's packages lie.

    A virtual environment is known by the pyvenv.cfg beside the interpreter or above it, looked
    for at each link on the way to the real file, since the links lead out of it. Debian's folders
    are `dist-packages`: /usr/lib/python3, and /usr/local/lib/python3.X.
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
            own = _has_system_packages(config)
            if own:
                prefixes += [
                    os.path.dirname(os.path.dirname(link))
                    for link in steps[steps.index(step) + 1 :]
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
    """Return the path, and what each link leads to, to the real file."""
    steps = [os.path.abspath(path)]
    while os.path.islink(steps[-1]) and len(steps) < 40:
        steps.append(
            os.path.normpath(os.path.join(os.path.dirname(steps[-1]), os.readlink(steps[-1])))
        )
    return steps + ([os.path.realpath(path)] if os.path.realpath(path) not in steps else [])


def _first_file(*paths: str) -> Optional[str]:
    return next((path for path in paths if os.path.isfile(path)), None)


def _has_system_packages(config: str) -> bool:
    try:
        with open(config, encoding="utf-8", errors="replace") as file:
            return (
                re.search(r"(?im)^include-system-site-packages\s*=\s*true\s*$", file.read(65536))
                is not None
            )
    except OSError:
        return False


def _pythons(lib: str, release: str) -> List[str]:
    """Return python3.12, and Debian's python3; all where the interpreter's name has no release."""
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
    """Return the version of a distribution in this folder, or "".

    It is that of its dist-info, or of an older egg-info.
    """
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
