"""`make demo`, as a newcomer meets it: real processes, a real port, a real Ctrl-C."""

import http.cookiejar
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 90  # seconds, for a machine that is busy with other things


def wait_for(condition, what):
    """Wait until `condition()` is true, and give back what it said."""
    deadline = time.monotonic() + DEADLINE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE} s for {what}"
        threading.Event().wait(0.05)
    return answer


class Running:
    """A process of ours with what it has printed so far; ended with the test, whatever happens."""

    def __init__(self, command, **env):
        # An empty DATABASE_URL, not a missing one: a developer's .env must not decide where this test writes.
        environment = {**os.environ, "DATABASE_URL": "", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
        self.printed = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=self.printed,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def output(self):
        # By position, for the process's own offset in the file is this one too.
        return os.pread(self.printed.fileno(), 10_000_000, 0).decode()

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def send(self, number):
        self.process.send_signal(number)

    def exit_code(self):
        return self.process.wait(DEADLINE)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.printed.close()


@pytest.fixture
def run(folder):  # after `folder`, so that the processes end before it goes
    started = []

    def start(command, **env):
        started.append(Running(command, **env))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def folder():
    # Not tmp_path: every start of pytest closes its parent to other users, and root's server runs as one.
    path = Path(tempfile.mkdtemp(prefix="pgwerk-demo-"))
    yield path
    wait_for(lambda: not processes_of(path), "all processes to end")
    shutil.rmtree(path)


@pytest.fixture
def port():
    return free_port()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_of(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def url_of(folder):
    port = (folder / "data" / "postmaster.pid").read_text().splitlines()[3]
    return f"postgres://postgres:{(folder / 'password').read_text()}@127.0.0.1:{port}/postgres"


def ask(folder, sql):
    with psycopg.connect(url_of(folder), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def log_in(port, user, password):
    """The page that a browser shows after the login form was sent."""
    cookies = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    address = f"http://127.0.0.1:{port}/admin/login/?next=/admin/"
    browser.open(address).close()
    token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
    form = {"username": user, "password": password, "csrfmiddlewaretoken": token}
    with browser.open(address, urllib.parse.urlencode(form).encode()) as page:
        return page.read().decode()


def start_demo(run, folder, port, **env):
    demo = run(["-m", "example_project.demo", "--port", str(port), "--data", str(folder)], **env)
    wait_for(lambda: "password admin" in demo.output or demo.process.poll() is not None, "the address to be printed")
    assert demo.process.poll() is None, demo.output
    return demo


def stop_demo(demo, number):
    processes = demo.children()
    demo.send(number)
    assert demo.exit_code() == 0, demo.output
    assert not [process for process in processes if process.is_running()], demo.output


def test_jobs_run_ctrl_c_stops_everything_and_a_second_start_keeps_the_data(run, folder, port):
    demo = start_demo(run, folder, port)
    assert f"http://127.0.0.1:{port}/admin/" in demo.output
    assert "Site administration" in log_in(port, "admin", "admin")
    successful = "SELECT count(*) FROM _pgwerk_jobs WHERE status = 'SUCCESSFUL' AND kind = 'scheduled'"
    assert wait_for(lambda: ask(folder, successful), "a job to succeed")
    assert ask(folder, "SELECT paused_by FROM _pgwerk_schedules WHERE name = 'newsletter'") == "demo"
    assert ask(folder, "SELECT origin FROM _pgwerk_schedules WHERE name = 'restock.acme'") == "api"
    ask(folder, "UPDATE _pgwerk_schedules SET paused = false, paused_by = '' WHERE name = 'newsletter'")
    ask(folder, "UPDATE shop_product SET price = 1234 WHERE name = 'Teapot'")
    for name in ("web", "scheduler", "worker"):
        assert f"{name:<9} | " in demo.output
    stop_demo(demo, signal.SIGINT)
    assert not processes_of(folder)

    demo = start_demo(run, folder, port)
    assert ask(folder, successful) > 0
    assert ask(folder, "SELECT price FROM shop_product WHERE name = 'Teapot'") == 1234
    assert ask(folder, "SELECT paused FROM _pgwerk_schedules WHERE name = 'newsletter'") is False
    assert ask(folder, "SELECT count(*) FROM auth_user") == 1
    stop_demo(demo, signal.SIGTERM)


def test_a_signal_before_anything_runs_leaves_nothing(run, folder, port):
    demo = run(["-m", "example_project.demo", "--port", str(port), "--data", str(folder)])
    wait_for(lambda: "starting PostgreSQL" in demo.output, "the start")
    demo.send(signal.SIGINT)
    assert demo.exit_code() == 0, demo.output
    assert "Traceback" not in demo.output


# What can be wrong: one line each


def complaint(run, folder, port, **env):
    demo = run(["-m", "example_project.demo", "--port", str(port), "--data", str(folder)], **env)
    assert demo.exit_code() == 1, demo.output
    said = [line for line in demo.output.splitlines() if not line.startswith("demo      | ")]
    assert len(said) == 1, demo.output
    return said[0]


def test_a_busy_port_is_told_before_anything_starts(run, folder):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert f"port {port} cannot be used" in complaint(run, folder, port)
    assert not list(folder.iterdir())


def test_data_of_an_older_first_migration_is_told_with_the_folder_to_delete(run, folder, port):
    (folder / "data").mkdir()
    (folder / "0001.sha256").write_text("of another file")
    assert complaint(run, folder, port).endswith(f"delete the folder {folder} and start again")


def test_a_data_folder_that_cannot_be_made_is_told(run, folder, port):
    (folder / "file").touch()
    assert "cannot use" in complaint(run, folder / "file" / "below", port)


def test_a_data_folder_in_use_is_told_with_its_owner(run, folder, port):
    first = run(["-m", "example_project.demo", "--port", str(port), "--data", str(folder)])
    wait_for(lambda: "migrating" in first.output, "the server")
    assert f"in use by process {first.process.pid}" in complaint(run, folder, free_port())
    first.send(signal.SIGTERM)
    assert first.exit_code() == 0, first.output


AMID_A_COMMIT = """
import os, signal, sys
from example_project import demo

def prepare_database():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise RuntimeError("the connection is in use")

demo.prepare_database = prepare_database
sys.exit(demo.main())
"""


def test_an_interrupt_that_becomes_another_error_is_one_still(run, folder, port):
    stopped = run(["-c", AMID_A_COMMIT, "--port", str(port), "--data", str(folder)])
    assert stopped.exit_code() == 0, stopped.output
    assert "Traceback" not in stopped.output


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgres://localhost:1/shop", "cannot be used: connection failed"),
        ("postgres://localhost:port/shop", "cannot be read"),
        ("sqlite:///shop", "must be the address of a PostgreSQL"),
    ],
)
def test_a_database_url_that_leads_nowhere_is_told(run, folder, port, url, why):
    assert why in complaint(run, folder, port, DATABASE_URL=url)


# How the processes are held together, with stand-ins for them

OBEDIENT = """
import signal, sys, threading
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *args: over.set())
print("up")
while not over.wait(0.05): pass
print("bye")
"""
DEAF = OBEDIENT.replace("over.set()", "print('not now')")
SHORT_LIVED = """
import os, sys, threading
while not os.path.exists(sys.argv[1]): threading.Event().wait(0.05)
raise SystemExit(3)
"""


def supervise(run, *bodies, argument=""):
    commands = {name: [sys.executable, "-c", body, argument] for name, body in zip("abc", bodies, strict=False)}
    running = run(["-c", f"import sys; from example_project import demo; sys.exit(demo.supervise({commands!r}, 1))"])
    up = sum("up" in body for body in bodies)
    wait_for(lambda: running.output.count("| up") == up, "the processes")
    return running


def test_each_process_is_asked_once_and_waited_for(run):
    running = supervise(run, OBEDIENT, OBEDIENT)
    running.send(signal.SIGINT)
    running.send(signal.SIGTERM)  # at the same moment it is the same request
    assert running.exit_code() == 0
    assert running.output.count("| bye") == 2


def test_when_one_dies_it_is_named_and_the_others_are_stopped(run, tmp_path):
    running = supervise(run, OBEDIENT, SHORT_LIVED, argument=str(tmp_path / "end"))
    (tmp_path / "end").touch()
    assert running.exit_code() == 1
    assert "the b ended by itself (exit code 3)" in running.output
    assert "| bye" in running.output


def test_a_later_ctrl_c_kills_what_does_not_stop(run):
    running = supervise(run, DEAF)
    running.send(signal.SIGINT)
    wait_for(lambda: "not now" in running.output, "the refusal")
    refused = time.monotonic()
    wait_for(lambda: time.monotonic() > refused + 1.2, "the time after which it is another request")
    running.send(signal.SIGINT)  # once: a third might meet it on its way out
    assert running.exit_code() == 1
    assert "the a ended badly: SIGKILL" in running.output


def test_nothing_outlives_a_demo_that_was_killed(run):
    running = supervise(run, OBEDIENT, OBEDIENT)
    children = running.children()
    running.send(signal.SIGKILL)
    running.exit_code()
    wait_for(lambda: not any(child.is_running() for child in children), "the processes to end")
