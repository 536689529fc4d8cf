"""A container's command and args as words, also where a shell runs a script."""

from __future__ import annotations

import functools
import re
from typing import Iterator, List, Optional, Pattern, Sequence, Tuple

MAX_SCRIPT_CHARACTERS = 16 * 1024

_SHELLS = ("sh", "bash", "dash", "ash", "zsh")
_SHELL_FLAGS = re.compile(r"-[a-z]+$")


def program(word: str) -> str:
    """Return the name of the program that a word runs: its last part."""
    return word.rsplit("/", 1)[-1]


def runs_program(command: Sequence[str], *names: str) -> bool:
    """Return whether the command has one of these programs as a word, in a script too.

    A script is searched and not parsed: the webhook asks for each pod, and a parser takes a
    millisecond.
    """
    pattern = _word_pattern(names)
    return any(
        pattern.search(word) is not None if is_script else program(word) in names
        for word, is_script in _with_scripts(command)
    )


@functools.lru_cache(16)
def _word_pattern(names: Tuple[str, ...]) -> Pattern[str]:
    any_name = "|".join(re.escape(name) for name in names)
    return re.compile(r"(?<![\w.-])(?:%s)(?![\w./-])" % any_name)


def shell_words(command: Sequence[str]) -> List[str]:
    """Return the command's words, with the script of a `sh -c` taken apart.

    What a shell would expand stays as it is written. A script of more than MAX_SCRIPT_CHARACTERS is
    one word: that would take the event loop for too long.
    """
    return list(_shell_words(tuple(command)))


def find_long_script(command: Sequence[str]) -> Optional[int]:
    """Return the index of the word that is a script and is not taken apart, or None."""
    for index, (word, is_script) in enumerate(_with_scripts(command)):
        if is_script and len(word) > MAX_SCRIPT_CHARACTERS:
            return index
    return None


@functools.lru_cache(8)  # asked for again and again about one engine
def _shell_words(command: Tuple[str, ...]) -> Tuple[str, ...]:
    words: List[str] = []
    for word, is_script in _with_scripts(command):
        is_read = is_script and len(word) <= MAX_SCRIPT_CHARACTERS
        words += _script_words(word) if is_read else [word]
    return tuple(words)


def _with_scripts(command: Sequence[str]) -> Iterator[Tuple[str, bool]]:
    """Yield each word, and whether it is the script of a `sh -c`."""
    is_shell = script_follows = False
    for index, word in enumerate(command):
        yield word, script_follows
        if index == 0:
            is_shell = program(word) in _SHELLS
        elif script_follows:
            script_follows = is_shell = False
        elif is_shell and _SHELL_FLAGS.match(word) and "c" in word:
            script_follows = True


def _script_words(script: str) -> List[str]:
    text = script.replace("\\\n", " ")
    try:
        return list(_split_script(text))
    except ValueError:  # an open quote, say in a here-document
        return text.split()


# What a script is made of, each in a group of its own. A word is a row of the last four.
_SCRIPT_PIECE = re.compile(
    r"""[ \t\r\n]+|\#[^\n]*
    |(?P<operator>[();<>|&]+)
    |(?P<plain>[^ \t\r\n\#();<>|&'"\\]+)
    |\\(?P<escaped>.)
    |'(?P<single>[^']*)'
    |"(?P<double>[^"\\]*(?:\\.[^"\\]*)*)"
    """,
    re.VERBOSE | re.DOTALL,
)


def _split_script(text: str) -> Iterator[str]:
    """Yield the words and operators of a script, as shlex with punctuation_chars does.

    Unlike shlex in linear time: each character is read once. Raises ValueError for an open quote.
    """
    word: List[str] = []
    end = 0
    for piece in _SCRIPT_PIECE.finditer(text):
        if piece.start() != end:
            raise ValueError("a quote or an escape is not closed")
        end = piece.end()
        kind, content = piece.lastgroup, piece.group(piece.lastgroup or 0)
        if kind == "double":
            content = re.sub(r'\\(["\\])', r"\1", content)
        if kind in ("plain", "escaped", "single", "double"):
            word.append(content)
            continue
        if word:
            yield "".join(word)
            word = []
        if kind == "operator":
            yield content
    if end != len(text):
        raise ValueError("a quote or an escape is not closed")
    if word:
        yield "".join(word)
