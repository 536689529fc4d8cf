"""A container's command and args as words, also where a shell runs a script."""

from __future__ import annotations

import re
import shlex
from typing import List, Sequence

_SHELLS = ("sh", "bash", "dash", "ash", "zsh")


def program(word: str) -> str:
    """Return the name of the program that a word runs: its last part."""
    return word.rsplit("/", 1)[-1]


def shell_words(command: Sequence[str]) -> List[str]:
    """Return the command's words, with the script of a `sh -c` taken apart.

    What a shell would expand stays as it is written.
    """
    words: List[str] = []
    is_shell = script_follows = False
    for index, word in enumerate(command):
        if index == 0:
            is_shell = program(word) in _SHELLS
        elif script_follows:
            words += _script_words(word)
            script_follows = is_shell = False
            continue
        elif is_shell and re.match(r"-[a-z]*c[a-z]*$", word):
            script_follows = True
        words.append(word)
    return words


def _script_words(script: str) -> List[str]:
    text = script.replace("\\\n", " ")
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        return list(lexer)
    except ValueError:  # an open quote, say in a here-document
        return text.split()
