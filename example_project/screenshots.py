"""`make screenshots`: each page of the admin in headless Chromium, light and dark, wide and narrow, for the README.

The shop is made up and written into a database of its own; the pages are the real ones.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from example_project.embedded import EmbeddedPostgres

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screenshots"
WIDE, NARROW = (1440, 900), (390, 844)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--all", action="store_true", help="narrow windows too, which the README does not show")
    parser.add_argument("only", nargs="*", help="names of pages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgwerk-screenshots-") as folder, EmbeddedPostgres(folder) as server:
        os.environ["DATABASE_URL"] = server.url
        os.environ["DJANGO_SETTINGS_MODULE"] = "example_project.settings"
        return take(options.folder, sizes=(WIDE, NARROW) if options.all else (WIDE,), only=options.only)


def take(folder: Path, *, sizes: tuple[tuple[int, int], ...], only: list[str]) -> int:
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.db import connections
    from django.test import Client
    from django.test.testcases import LiveServerThread

    from example_project import chromium, showcase

    if chromium.MISSING:
        print(f"screenshots: {chromium.MISSING}", file=sys.stderr)
        return 1
    call_command("migrate", verbosity=0)
    showcase.fill()
    client = Client()
    client.force_login(User.objects.create_superuser("anna"))
    server = LiveServerThread("127.0.0.1", StaticFilesHandler, connections_override={})
    server.daemon = True
    server.start()
    server.is_ready.wait()
    root = f"http://127.0.0.1:{server.port}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with chromium.chromium() as driver:
            driver.get(f"{root}/admin/login/")
            driver.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})
            for name, (url, act) in pages().items():
                for size in sizes:
                    for scheme in ("light", "dark"):
                        if only and name not in only:
                            continue
                        showcase.processes()
                        chromium.resize(driver, *size)
                        chromium.prefer(driver, scheme)
                        driver.get(root + url)
                        act(driver)
                        narrow = "-narrow" if size == NARROW else ""
                        shoot(driver, folder / f"{name}{narrow}-{scheme}.png", size)
    finally:
        server.terminate()
        connections.close_all()
    return 0


def nothing(driver: Any) -> None:
    pass


def fill_in(driver: Any) -> None:
    """A schedule about to be added, with what there is to think of first."""
    from selenium.webdriver.support.wait import WebDriverWait

    typed = {
        "name": "catalogue.cleanup",
        "function": "example_project.shop.tasks.ship_orders",
        "args": '["Colissimo"]',
        "kwargs": '{"at_most": 5}',
        "cron": "30 2 1 * mon",
        "timezone": "Europe/Paris",
    }
    for name, text in typed.items():
        field = driver.find_element("name", name)
        field.clear()
        field.send_keys(text)
    WebDriverWait(driver, 10).until(lambda _: "match either" in driver.find_element("id", "pgwerk-preview").text)
    driver.execute_script("document.activeElement.blur()")


def pages() -> dict[str, tuple[str, Callable[[Any], None]]]:
    from pgwerk_django.models import Job, Schedule

    def page(name: str) -> str:
        return f"/admin/pgwerk_django/schedule/{Schedule.objects.get(name=name).pk}/change/"

    failed = Job.objects.filter(schedule_name="catalogue.prices").latest("due_at")
    return {
        "overview": ("/admin/pgwerk_django/overview/", nothing),
        "schedules": ("/admin/pgwerk_django/schedule/", nothing),
        "schedule": (page("catalogue.prices"), nothing),
        "edit": ("/admin/pgwerk_django/schedule/add/", fill_in),
        "jobs": ("/admin/pgwerk_django/job/", nothing),
        "job": (f"/admin/pgwerk_django/job/{failed.pk}/change/", nothing),
    }


def shoot(driver: Any, path: Path, size: tuple[int, int]) -> None:
    """The whole page, however long, up to two windows."""
    from PIL import Image

    from example_project import chromium

    height = driver.execute_script("return document.documentElement.scrollHeight")
    inner = driver.execute_script(
        "const main = document.querySelector('#main, .main'); return main ? main.scrollHeight + main.offsetTop : 0"
    )
    chromium.resize(driver, size[0], min(max(height, inner, size[1]), 2 * size[1]))
    driver.execute_script(
        "document.querySelectorAll('html, body, #main, .main').forEach((each) => { each.scrollTop = 0; })"
    )
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    # A third of the size; and each colour that means something is kept, however few its pixels.
    few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(path.name)


if __name__ == "__main__":
    sys.exit(main())
