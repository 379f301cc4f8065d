"""The blocks of code in README and docs: found, and tried, each in the way of its language.

A page is tried from top to bottom in one project, as a reader would. In it there is an app `shop`, whose schedules the
pages may name. What a block is says its language:

- `python`: executed. If it begins with a path (`# shop/tasks.py`) it is that file, imported; of `settings.py` the settings
  are judged, of `apps.py` the `ready()` is called, of `test_*.py` pytest runs the tests. A `TestCase` is run.
- `pycon`: a doctest, with the names of the page.
- `sh`: our commands are read by their own parsers, and run where that ends by itself; of others it is known that they exist.
- `console`: `$ command`, and what it prints, where that command is run; `…` stands for anything.
- `sql`: run, and rolled back where that is possible.
- `yaml`, `toml`, `json`, `ini`, `dockerfile`: parsed, and the commands within are read by our parsers.
- `crontab`: imported. `text`: log lines in it name events that there are.

Any other language fails: nothing here could tell whether it is right.
"""

import configparser
import doctest
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlparse
import yaml
from django.apps import AppConfig
from django.core.management import call_command, get_commands, load_command_class
from django.db import connection, connections, transaction
from django.test import TestCase
from markdown_it import MarkdownIt

from pgwerk_django import conf, registry, signals
from tests.processes import ROOT, database_url

# Programs that readers have, and that are not ours to try.
OTHERS = {
    "celery", "createdb", "crontab", "curl", "docker", "gunicorn", "heroku", "journalctl", "kubectl", "pg_dump", "pg_isready",
    "pg_restore", "psql", "systemctl",
}  # fmt: skip
WRAPPERS = {"opentelemetry-instrument"}  # what follows is the command that they start
# Our commands that end by themselves and need nobody to type: these are run, not only read.
RUN = {
    "check", "queues list", "queues pause", "queues resume", "schedules export", "schedules list", "schedules next",
    "schedules pause", "schedules resume", "schedules trigger", "syncschedules",
}  # fmt: skip
PATH = re.compile(r"# ((?:\w+/)*\w+\.py)\n")
# PostgreSQL runs these outside of a transaction only.
ALONE = re.compile(r"VACUUM|REINDEX .*CONCURRENTLY|(CREATE|DROP) INDEX CONCURRENTLY", re.IGNORECASE)
LOG_LINE = re.compile(r"(?:^|\s)(DEBUG|INFO|WARNING|ERROR) (?P<event>\w+)(?P<words>( \w+=\S+.*)?)$", re.MULTILINE)

SHOP = """
from pgwerk_django import schedule
from pgwerk_django.jobs import enqueue

@schedule(cron="0 9 * * *", _timezone="Europe/Paris", _queue="reports")
def daily_report():
    enqueue(send_mail, "ada")
    return "made"

@schedule(interval=300, kwargs={"older_than_days": 7})
def cleanup(older_than_days): ...

def send_mail(to): ...
"""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    return list(find(path.read_text(), str(path.relative_to(ROOT))))


def find(text: str, page: str, first: int = 1) -> Iterator[Block]:
    for token in MarkdownIt("commonmark").parse(text):
        if token.type != "fence":
            continue
        line = first + (token.map or [0])[0] + 1
        language = token.info.strip()
        if not language.startswith("{"):
            yield Block(page, line, language, token.content)
        elif language.split("}")[0] in ("{note", "{tip", "{warning", "{important"):
            yield from find(token.content, page, line)


class Page:
    """One page, tried in a folder of its own, which is on `sys.path` and the current one."""

    def __init__(self, folder: Path, set_settings: Callable[[str, Any], None]) -> None:
        self._folder = folder
        self._set = set_settings
        self._module = types.ModuleType("page")
        self._module.__dict__["__file__"] = str(folder / "page.py")
        self._before = set(sys.modules)
        self._aliases = set(connections.databases)
        self._import("shop/tasks.py", SHOP)
        sys.modules["page"] = self._module

    @property
    def names(self) -> dict[str, Any]:
        """What the blocks that are no files have defined."""
        return self._module.__dict__

    def close(self) -> None:
        for name in set(sys.modules) - self._before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self._folder)):
                del sys.modules[name]
        sys.modules.pop("page", None)
        for alias in set(connections.databases) - self._aliases:
            del connections.databases[alias]

    def try_(self, block: Block) -> None:
        trial = getattr(self, f"_{block.language}", None) if block.language.isalpha() else None
        assert trial is not None, f"{block}: no test knows the language {block.language!r}"
        try:
            trial(block)
        except BaseException as error:
            error.add_note(f"{block} ({block.language})")
            raise

    # -- Python

    def _python(self, block: Block) -> None:
        path = PATH.match(block.text)
        if path is None:
            self._execute(block, self.names)
        elif path[1].endswith("settings.py"):
            self._settings(block)
        elif Path(path[1]).name.startswith("test_"):
            (self._folder / path[1]).write_text(block.text)
            self._pytest(path[1])
        else:
            module = self._import(path[1], block.text)
            if path[1].endswith("apps.py"):
                _be_ready(module)
            _run_tests(module.__dict__)

    def _execute(self, block: Block, names: dict[str, Any]) -> None:
        before = dict(names)
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
        _run_tests({name: value for name, value in names.items() if before.get(name) is not value})

    def _import(self, path: str, text: str) -> types.ModuleType:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in file.relative_to(self._folder).parents[:-1]:
            (self._folder / folder / "__init__.py").touch()
        file.write_text(text)
        name = path.removesuffix(".py").replace("/", ".")
        if name == "shop.tasks":
            registry.registry.clear()
            import tests.celery_app  # noqa: F401  the project's app of Celery
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def _settings(self, block: Block) -> None:
        names = {"INSTALLED_APPS": [], "MIDDLEWARE": [], "BASE_DIR": self._folder}
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
        for alias in names.get("DATABASES", {}):
            connections.databases.setdefault(alias, connections.databases["default"])
        if "PGWERK" in names:
            self._set("PGWERK", names["PGWERK"])
            assert conf.problems() == []
            self._set("PGWERK", {"AUTODISCOVER": ()})

    def _pytest(self, path: str) -> None:
        """With a database of its own, as the reader's would be."""
        options = [
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
            "--ds=tests.settings",
            "-c",
            "/dev/null",
            "--rootdir=.",
        ]
        environment = {"PYTHONPATH": f"{self._folder}:{ROOT}", "DATABASE_URL": database_url()}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, path],
            cwd=self._folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def _pycon(self, block: Block) -> None:
        names = self.names
        test = doctest.DocTestParser().get_doctest(block.text, names, str(block), block.page, block.line - 1)
        test.globs = names  # for the blocks that follow, too
        said = io.StringIO()
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.write, clear_globs=False)
        assert result.attempted > 0
        assert result.failed == 0, said.getvalue()

    # -- commands

    def _sh(self, block: Block) -> None:
        for line in block.text.replace("\\\n", " ").splitlines():
            self._shell(line)

    def _shell(self, line: str) -> str | None:
        """Check a line of a shell; what its last command printed, if it was run."""
        said = None
        for words, output in shell_commands(line):
            said = self._command(words)
            if output and said:
                (self._folder / output).write_text(said)
        return said

    def _command(self, words: list[str]) -> str | None:
        ours = management_command(words)
        if ours is None:
            check_other(words)
            return None
        name, *arguments = ours
        read = parse(name, arguments)
        if not self._can_run(name, arguments, read):
            return None
        if name == "schedules" and read.get("verb") == "import":  # an import of nothing fails
            self._set("CELERY_BEAT_SCHEDULE", {"report": {"task": "shop.tasks.report", "schedule": 60}})
        said = io.StringIO()
        call_command(name, *arguments, stdout=said, stderr=io.StringIO())
        return said.getvalue()

    def _can_run(self, name: str, arguments: list[str], read: dict[str, Any]) -> bool:
        words = " ".join([name, *arguments])
        if name == "check":
            return set(read["databases"] or ()) <= {"default"} and not read["deploy"]
        if words.startswith("schedules import"):
            return read["source"] is None or (self._folder / read["source"]).exists()
        if not any(words == each or words.startswith(f"{each} ") for each in RUN):
            return False
        if name == "schedules":
            call_command("syncschedules", "--on-unregistered=keep", stdout=io.StringIO())
        return not read.get("check")  # which fails where there is a difference

    def _console(self, block: Block) -> None:
        for command, expected in console_steps(block.text):
            said = self._shell(command)
            assert said is None or is_as_shown(said, expected), f"{command}\nsays:\n{said}\nand not:\n{expected}"

    # -- SQL

    def _sql(self, block: Block) -> None:
        statements = [
            text for text in sqlparse.split(block.text) if sqlparse.format(text, strip_comments=True).strip(" ;\n")
        ]
        assert statements
        with connection.cursor() as cursor:
            for alone in (text for text in statements if ALONE.search(text)):
                cursor.execute(alone)
            with transaction.atomic():
                for text in statements:
                    if not ALONE.search(text):
                        cursor.execute(text)
                transaction.set_rollback(True)

    # -- files of configuration

    def _yaml(self, block: Block) -> None:
        documents = [each for each in yaml.safe_load_all(block.text) if each is not None]
        assert documents
        for document in documents:
            if all(isinstance(value, str) for value in document.values()):  # a Procfile
                for line in document.values():
                    self._read_only(shlex.split(line))
            for words in commands_in(document):
                self._read_only(words)

    def _toml(self, block: Block) -> None:
        assert tomllib.loads(block.text)

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _ini(self, block: Block) -> None:
        parser = configparser.ConfigParser(strict=False, delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(block.text)
        assert parser.sections()
        for section in parser.sections():
            for key, value in parser[section].items():
                if key.startswith("Exec"):
                    self._read_only(shlex.split(value.lstrip("-+!@:")))

    def _dockerfile(self, block: Block) -> None:
        lines = block.text.replace("\\\n", " ").splitlines()
        steps = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
        assert steps[0][0] == "FROM"
        for instruction, value in steps:
            assert instruction in {
                "FROM",
                "WORKDIR",
                "COPY",
                "RUN",
                "USER",
                "CMD",
                "ENTRYPOINT",
                "ENV",
                "EXPOSE",
                "ARG",
            }
            if instruction in ("CMD", "ENTRYPOINT"):
                self._read_only(json.loads(value))

    def _read_only(self, words: list[str]) -> None:
        ours = management_command(words)
        if ours is None:
            check_other(words)
        else:
            parse(ours[0], ours[1:])

    def _crontab(self, block: Block) -> None:
        (self._folder / "crontab.txt").write_text(block.text)
        call_command(
            "schedules",
            "import",
            str(self._folder / "crontab.txt"),
            "--dry-run",
            stdout=io.StringIO(),
            stderr=io.StringIO(),
        )

    def _text(self, block: Block) -> None:
        for found in LOG_LINE.finditer(block.text):
            check_log_line(found[1], found["event"], re.findall(r"(\w+)=", re.sub(r'"[^"]*"', '""', found["words"])))


def _be_ready(module: types.ModuleType) -> None:
    for config in vars(module).values():
        if isinstance(config, type) and issubclass(config, AppConfig) and config is not AppConfig:
            config(config.name, importlib.import_module(config.name)).ready()


def _run_tests(names: dict[str, Any]) -> None:
    """Those of the default database; what needs others has tests of its own."""
    for case in names.values():
        if not (isinstance(case, type) and issubclass(case, TestCase) and case is not TestCase):
            continue
        if set(case.databases) - {"default"}:
            continue
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.testsRun
        assert result.wasSuccessful(), [*result.errors, *result.failures]


# -- lines of a shell


def shell_commands(line: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command in a line, and the file that its output goes to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    output = ""
    for token in tokens:
        if token in (">", ">>"):
            output = next(tokens)
        elif token in ("&&", "||", "|", ";"):
            yield words, output
            words, output = [], ""
        else:
            words.append(token)
    if words:
        yield words, output


def management_command(words: list[str]) -> list[str] | None:
    """What `manage.py` is asked for; None for another program."""
    rest = words[1:] if re.match(r"[A-Z_]+=", words[0]) or words[0] in WRAPPERS else words
    if rest and re.fullmatch(r"(.*/)?python[\d.]*", rest[0]):
        rest = rest[1:]
    if rest and (rest[0].endswith("manage.py") or rest[0] == "django-admin"):
        return rest[1:]
    return None


def parse(name: str, arguments: list[str]) -> dict[str, Any]:
    """By the command's own parser, which raises for what it does not know."""
    assert name in get_commands(), f"there is no command {name!r}"
    command = load_command_class(get_commands()[name], name)
    return vars(command.create_parser("manage.py", name).parse_args(arguments))


def check_other(words: list[str]) -> None:
    """Of a program that is not ours: that we know what it is, and what of ours it names."""
    program, *arguments = words
    name = Path(program).name
    if name == "pip":
        for requirement in arguments[1:]:
            check_requirement(requirement)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= {*targets}, words
    elif re.fullmatch(r"python[\d.]*", name):
        if arguments[0] == "-m":
            assert find_spec(arguments[1]), f"there is no module {arguments[1]!r}"
        else:
            assert (ROOT / arguments[0]).exists(), f"there is no file {arguments[0]!r}"
    else:
        assert name in OTHERS, f"no test knows the program {name!r}"


def check_requirement(requirement: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
    assert named is None or {*named[1].split(",")} <= {*project["optional-dependencies"]}, requirement
    assert not requirement.replace("_", "-").startswith(project["name"]) or "_" not in requirement, requirement


def commands_in(document: Any) -> Iterator[list[str]]:
    """Lists of words under `command`, `args` and `test`, at any depth: Compose's and Kubernetes' keys."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("command", "args", "test") and isinstance(value, list):
                yield [word for word in value if word not in ("CMD", "CMD-SHELL")]
            elif key == "command" and isinstance(value, str):
                yield shlex.split(value)
            else:
                yield from commands_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from commands_in(value)


def console_steps(text: str) -> list[tuple[str, str]]:
    """Each command, and what it is said to print."""
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line.removeprefix("$ "), ""))
        else:
            command, said = steps[-1]
            steps[-1] = (command, f"{said}{line}\n")
    return steps


def is_as_shown(said: str, expected: str) -> bool:
    pattern = ".*".join(map(re.escape, expected.strip().split("…")))
    return re.fullmatch(pattern, said.strip()) is not None


def check_log_line(level: str, event: str, keys: list[str]) -> None:
    """What is shown as a line of our log names an event that there is, and what that tells."""
    said = {name: signal for signal, (name, _) in signals._LEVELS.items()}
    assert event in said, f"there is no event {event!r}"
    assert signals.logging.getLevelName(signals._LEVELS[said[event]][1]) == level
    source = Path(signals.__file__).read_text()
    (told,) = re.findall(rf"^((?:# .*\n)*{event} = Signal\(\).*)$", source, re.MULTILINE)
    assert set(keys) <= set(re.findall(r"\w+", told)), (event, keys)
