"""The server that the demo and these very tests run on: one owner, one address, nothing left behind."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import environ
import psutil
import psycopg
import pytest

from example_project.embedded import EmbeddedError, EmbeddedPostgres, _binaries

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
FAST = {"fsync": "off"}


@pytest.fixture
def folder():
    # Not tmp_path: every start of pytest closes its parent to other users, and root's server runs as one.
    path = Path(tempfile.mkdtemp(prefix="pgwerk-embedded-"))
    yield path
    shutil.rmtree(path)


def ask(url, sql="SELECT 1"):
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchone()[0]


def keep_an_answer(url):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def processes_of(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def run_owner(folder, ending, *flags, **env):
    """Another process that starts a server on `folder`, makes a table, and ends in its own way."""
    script = f"""
import os, signal, psycopg
from example_project.embedded import EmbeddedPostgres
server = EmbeddedPostgres({str(folder)!r}, options={FAST!r})
server.start()
with psycopg.connect(server.url) as connection:
    connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
{ending}
"""
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    return subprocess.run(
        [sys.executable, *flags, "-c", script], cwd=ROOT, env=environment | env, capture_output=True, text=True
    )


def test_it_serves_while_it_is_open_and_leaves_no_process(folder):
    with EmbeddedPostgres(folder, options={**FAST, "max_connections": 37}) as server:
        assert ask(server.url, "SHOW max_connections") == "37"
        assert processes_of(folder)
    assert not processes_of(folder)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        ask(server.url)


def test_its_address_is_one_that_django_environ_reads(folder):
    with EmbeddedPostgres(folder, options=FAST) as server:
        db = environ.Env.db_url_config(server.url)
        assert db["ENGINE"] == "django.db.backends.postgresql"
        with psycopg.connect(
            host=db["HOST"], port=db["PORT"], user=db["USER"], password=db["PASSWORD"], dbname=db["NAME"]
        ):
            pass


def test_it_lets_nobody_in_without_the_password(folder):
    with (
        EmbeddedPostgres(folder, options=FAST) as server,
        pytest.raises(psycopg.OperationalError, match="password"),
    ):
        ask(f"postgres://postgres:guess@127.0.0.1:{server.port}/postgres")


def test_data_stays_from_one_start_to_the_next(folder):
    with EmbeddedPostgres(folder, options=FAST) as server:
        keep_an_answer(server.url)
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_the_address_and_the_data(folder, mode):
    with EmbeddedPostgres(folder, options=FAST) as server:
        before = server.url
        keep_an_answer(before)
        server.restart(mode)
        assert server.url == before
        assert ask(before, "SELECT answer FROM kept") == 42


def test_a_restart_in_two_halves_is_an_outage(folder):
    with EmbeddedPostgres(folder, options=FAST) as server:
        server.halt("immediate")
        with pytest.raises(psycopg.OperationalError):
            ask(server.url)
        server.resume()
        assert ask(server.url) == 1


def test_a_second_owner_is_told_who_the_first_is(folder):
    with EmbeddedPostgres(folder, options=FAST) as server:
        with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
            EmbeddedPostgres(folder).start()
        assert ask(server.url) == 1


def test_the_server_of_a_killed_owner_is_stopped_and_its_data_found(folder):
    assert run_owner(folder, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -9
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_a_server_that_outlived_owner_and_guard_is_stopped(folder):
    run_owner(folder, "server._guard.kill(); os.kill(os.getpid(), signal.SIGKILL)")
    assert processes_of(folder)
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42
    assert not processes_of(folder)


def test_a_forked_child_does_not_stop_the_server_of_its_parent(folder):
    ending = """
if os.fork() == 0:
    server.stop()
    os._exit(0)
os.wait()
with psycopg.connect(server.url):
    print("still there")
server.stop()
"""
    done = run_owner(folder, ending)
    assert done.stdout == "still there\n", done.stderr


def test_a_pid_left_by_a_crash_and_now_of_another_program_is_no_hindrance(folder):
    with EmbeddedPostgres(folder, options=FAST):
        left = (folder / "data" / "postmaster.pid").read_text().splitlines()
    (folder / "data" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *left[1:], ""]))
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url) == 1


def test_an_interrupted_first_start_is_begun_again(folder):
    (folder / "data.new").mkdir()
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url) == 1


def test_it_gives_no_warning_without_a_runtime_directory(folder):
    done = run_owner(folder, "server.stop()", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_does_not_read_the_variables_meant_for_another_server(folder):
    done = run_owner(folder, "server.stop()", PGDATA="/nowhere", PGPORT="1", LC_ALL="xx_XX")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deep_folder_with_spaces_and_quotes_will_do(folder):
    with EmbeddedPostgres(folder / ("d" * 120) / "it's here, isn't it", options=FAST) as server:
        assert ask(server.url) == 1


def test_a_setting_that_postgresql_refuses_is_told_in_one_line(folder):
    with pytest.raises(EmbeddedError, match=r"did not start: .*max_connections") as caught:
        EmbeddedPostgres(folder, options={"max_connections": "many"}).start()
    assert "\n" not in str(caught.value)
    assert not processes_of(folder)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(folder):
    (folder / "file").touch()
    with pytest.raises(EmbeddedError, match="cannot use"):
        EmbeddedPostgres(folder / "file" / "below").start()


def test_another_folder_of_binaries_is_used_and_must_have_them(folder, monkeypatch):
    monkeypatch.delenv("PGWERK_POSTGRES_BIN", raising=False)
    older = _binaries().parent.parent / "pginstall" / "bin"  # the wheel has two major versions
    monkeypatch.setenv("PGWERK_POSTGRES_BIN", str(older))
    with EmbeddedPostgres(folder, options=FAST) as server:
        assert ask(server.url, "SHOW server_version_num") != ask(os.environ["DATABASE_URL"], "SHOW server_version_num")
    monkeypatch.setenv("PGWERK_POSTGRES_BIN", str(folder))
    with pytest.raises(
        EmbeddedError, match="PGWERK_POSTGRES_BIN must name a folder that has PostgreSQL's initdb, got "
    ):
        EmbeddedPostgres(folder).start()


def test_a_missing_package_is_told_with_the_way_to_get_it(folder, monkeypatch):
    monkeypatch.delenv("PGWERK_POSTGRES_BIN", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'pgwerk-django\[embedded\]'"):
        EmbeddedPostgres(folder).start()
