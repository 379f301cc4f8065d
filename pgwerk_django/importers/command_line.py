"""The lines of a shell, read as far as a management command needs it. No shell is ever run."""

import re
import shlex
from pathlib import PurePosixPath
from typing import NamedTuple

from pgwerk_django.exceptions import shown

_QUOTED = r"""'[^']*'|"(?:\\.|[^"\\])*"|\\."""
_TOKEN = re.compile(
    rf"""\s*(?:
        (?P<redirection> \d*(?:>>|>\||>&|<&|<<|<>|>|<) | &>>? )
      | (?P<operator> &&|\|\||[;|&()] )
      | (?P<word> (?: [^\s'"\\&|;<>()] | {_QUOTED} )+ )
    )""",
    re.VERBOSE | re.DOTALL,
)
_SINGLE_QUOTED = re.compile(r"'[^']*'|\\.", re.DOTALL)
_DOUBLE_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*", re.ASCII)
_READ_BEFORE = ("--settings", "--pythonpath")  # by what starts a command, not by the command


class Line(NamedTuple):
    words: list[str]  # a management command and its arguments
    redirections: list[str]


def management_command(text: str) -> Line:
    """What `manage.py` is asked for. Raises `ValueError`, saying why, for a line that does anything else."""
    steps, redirections = _steps(text)
    for step in steps[:-1]:
        if step[:1] != ["cd"] and not (step[:1] in (["."], ["source"]) and step[-1].endswith("/activate")):
            raise ValueError(f"it runs {_shown(step)} first: write a function that does both")
    words = _after_python(steps[-1])
    program = PurePosixPath(words[0]).name if words else ""
    if program not in ("manage.py", "django-admin", "django-admin.py", "-m django"):
        raise ValueError(f"it runs a program ({_shown(steps[-1])}): write a function for it")
    if not words[1:] or words[1].startswith("-"):
        raise ValueError("its first word after manage.py must be a management command")
    for word in words[2:]:
        if word.partition("=")[0] in _READ_BEFORE:
            raise ValueError(f"it gives {word.partition('=')[0]}: a job runs with the settings of its worker")
    return Line(words[1:], redirections)


def _steps(text: str) -> tuple[list[list[str]], list[str]]:
    """The words of each command that `&&` joins, without what redirects their output."""
    steps: list[list[str]] = [[]]
    redirections: list[str] = []
    redirection = ""
    for kind, symbol in _tokens(text):
        if redirection:
            redirections.append(redirection + symbol)
            redirection = ""
        elif kind == "redirection":
            if "<" in symbol:
                raise ValueError(f"it reads its input from elsewhere ({symbol}): write a function for it")
            redirection = symbol
        elif kind == "operator":
            if symbol != "&&":
                raise ValueError(f"it needs a shell ({symbol}): write a function for it")
            steps.append([])
        else:
            steps[-1].append(_unquoted(symbol))
    return steps, redirections


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, text = [], text.strip()
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError("its quotes do not match")
        token = match.group().strip() if match.lastgroup != "word" else match["word"]
        if token.startswith("#"):  # a comment to the shell
            break
        tokens.append((str(match.lastgroup), token))
        position = match.end()
    return tokens


def _unquoted(word: str) -> str:
    """Refuses what a shell would put something else for."""
    expanded = _SINGLE_QUOTED.sub("", word)
    if re.search(r"[$`]", expanded) or re.search(r"[*?\[]|^~", _DOUBLE_QUOTED.sub("", expanded)):
        raise ValueError(f"it needs a shell, which puts something else for {shown(word)}: write it out")
    return "".join(shlex.split(word)) if word else word


def _after_python(words: list[str]) -> list[str]:
    if not words or not _PYTHON.fullmatch(PurePosixPath(words[0]).name):
        return words
    rest = words[1:]
    while rest and re.fullmatch(r"-[uBEIOsS]+", rest[0]):  # how Python itself runs
        rest = rest[1:]
    return ["-m django", *rest[2:]] if rest[:2] == ["-m", "django"] else rest


def _shown(words: list[str]) -> str:
    """Its name only: what follows may be a secret."""
    if words and _ASSIGNMENT.match(words[0]):
        return f"{words[0].partition('=')[0][:60]}=…"
    if not words:
        return "nothing"
    return words[0] if len(words[0]) < 60 and words[0].isprintable() else shown(words[0])
