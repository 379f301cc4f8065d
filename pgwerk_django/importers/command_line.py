"""The lines of a shell, read as far as a management command needs it. No shell is ever run."""

import itertools
import re
import shlex
from pathlib import PurePosixPath
from typing import NamedTuple

from django.conf import settings

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


_RUNNERS = ("poetry", "uv", "pipenv", "pdm", "hatch", "rye")  # of a project's environment, by `run`
_SETTINGS = "DJANGO_SETTINGS_MODULE"
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)


class Line(NamedTuple):
    words: list[str]  # a management command and its arguments
    redirections: list[str]
    dropped: list[str]  # programs in front that a job has no use for
    guard: str  # of `flock -n`: the file that keeps two runs apart


def management_command(text: str) -> Line:
    """What `manage.py` is asked for. Raises `ValueError`, saying why, for a line that does anything else."""
    steps, redirections = _steps(text)
    for step in steps[:-1]:
        if _is_user(step):
            _without_wrappers(step)  # says so
        if step[:1] != ["cd"] and not (step[:1] in (["."], ["source"]) and step[-1].endswith("/activate")):
            raise ValueError(f"it runs {_shown(step)} first: write a function that does both")
    words, dropped, guard = _without_wrappers(steps[-1])
    words = _after_python(words)
    program = PurePosixPath(words[0]).name if words else ""
    if program not in _PROGRAMS:
        raise ValueError(f"it runs a program ({_shown(steps[-1])}): write a function for it")
    words = _without_settings(words)
    if not words[1:] or words[1].startswith("-"):
        raise ValueError("its first word after manage.py must be a management command")
    for word in words[2:]:
        if word.partition("=")[0] in _READ_BEFORE:
            raise ValueError(f"it gives {word.partition('=')[0]}: a job runs with the settings of its worker")
    return Line(words[1:], redirections, dropped, guard)


_PROGRAMS = ("manage.py", "django-admin", "django-admin.py", "-m django")


def _without_wrappers(words: list[str]) -> tuple[list[str], list[str], str]:
    """What is left after assignments and programs in front; what was dropped; the lock file of `flock -n`.

    Raises `ValueError` for a wrapper that a job cannot do without.
    """
    dropped: list[str] = []
    guard = ""
    while words:
        first, program = words[0], PurePosixPath(words[0]).name
        if first == f"{_SETTINGS}={_current_settings()}" or program in ("env", "exec", "nohup"):
            words = words[1:]
        elif first.startswith(f"{_SETTINGS}="):
            raise ValueError(
                f"it sets {_SETTINGS} to another module than here: a job runs with the settings of its worker"
            )
        elif program in _RUNNERS and words[1:2] == ["run"] and words[2:] and not words[2].startswith("-"):
            words = words[2:]
        elif program in ("nice", "ionice"):
            rest = _after_options(words[1:], takes_value=("-n", "-c", "-p", "--adjustment", "--class", "--classdata"))
            dropped.append(" ".join(words[: len(words) - len(rest)]))
            words = rest
        elif program == "flock" and not guard:
            words, guard = _without_flock(words[1:])
        elif program == "timeout":
            raise ValueError("it runs timeout first: declare the schedule in code, with _timeout")
        elif program in ("sudo", "su", "runuser", "doas"):
            raise ValueError(f"it runs {program} first: a job runs as the user of its worker")
        elif _is_user(words):
            raise ValueError(
                f"it runs {first} first, which may be the user column of a system crontab (/etc/cron.d): take that column out,"
                f" as a job runs as the user of its worker"
            )
        else:
            break
    return words, dropped, guard


def _current_settings() -> str:
    return str(getattr(settings, "SETTINGS_MODULE", ""))


def _after_options(words: list[str], *, takes_value: tuple[str, ...]) -> list[str]:
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in takes_value else 1 :]
    return words


def _without_flock(words: list[str]) -> tuple[list[str], str]:
    options = list(itertools.takewhile(lambda word: word.startswith("-"), words))
    rest = words[len(options) :]
    known = {"-n", "-x", "-e", "-nx", "-xn", "-ne", "-en", "--nb", "--nonblock", "--exclusive"}
    if not set(options) <= known or not any("n" in each for each in options if each not in ("--exclusive", "-x", "-e")):
        raise ValueError("it waits for a lock (flock): declare the schedule in code, with the _overlap that it needs")
    if len(rest) < 2:
        raise ValueError("it runs flock without a file and a command")
    file, command = rest[0], rest[1:]
    if command[0] in ("-c", "--command"):
        if len(command) != 2:
            raise ValueError("it runs flock -c with more than one word: write the command out")
        steps, redirections = _steps(command[1])
        if len(steps) > 1 or redirections:
            raise ValueError("it runs flock -c with a command that needs a shell: write a function for it")
        command = steps[0]
    return command, file


def _is_user(words: list[str]) -> bool:
    """Whether the first word looks like a user, and the line runs a management command without it."""
    first, rest = words[0], words[1:]
    if not _USER.fullmatch(first) or _PYTHON.fullmatch(first) or first in (*_PROGRAMS, "cd", "source") or not rest:
        return False
    program = PurePosixPath(rest[0]).name
    return program in (*_PROGRAMS, *_RUNNERS, "cd") or bool(_PYTHON.fullmatch(program) or _ASSIGNMENT.match(rest[0]))


def _without_settings(words: list[str]) -> list[str]:
    """Without `--settings`, where it names the settings of this process."""
    left = words[:1]
    rest = iter(words[1:])
    for word in rest:
        if word == "--settings":
            value = next(rest, "")
            left += [] if value == _current_settings() else [word, value]
        elif word != f"--settings={_current_settings()}":
            left.append(word)
    return left


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
