"""What docs/how-to/metrics.md says is so."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import load_command_class
from django.test import RequestFactory
from prometheus_client import REGISTRY

from pgwerk_django.measurements import MEASURES, MOST_QUEUES, MOST_TARGETS, OUTCOMES, REASONS
from pgwerk_django.models import MOST_COUNTED

PAGE = (Path(__file__).parent.parent / "docs/how-to/metrics.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = {each.prometheus_name + ("_total" if each.kind == "counter" else ""): each for each in MEASURES}


def block(containing: str) -> str:
    (found,) = [each for each in BLOCKS if containing in each]
    return found


def test_every_block_is_run_by_a_test_here() -> None:
    tried = ('path("metrics", metrics.view)', "def for_prometheus", "REGISTRY.register", '"TELEMETRY": True')
    for each in BLOCKS:
        assert [text for text in tried if text in each], each


def test_the_table_of_measures_is_that_of_the_code() -> None:
    rows = [
        f"| `{name}` | `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels) or '–'} | {each.help} |"
        for name, each in NAMES.items()
    ]
    assert [line for line in PAGE.splitlines() if line.startswith("| `pgwerk_")] == rows


def test_the_queries_ask_for_what_there_is() -> None:
    for name, labels in re.findall(r"\b(pgwerk_\w+)(?:\{(.*?)\})?", PAGE.split("\n## The measures")[0]):
        if name == "pgwerk_django":
            continue
        measure = NAMES[name.removesuffix("_bucket")]
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            assert label in measure.labels
            assert value in (*OUTCOMES, *REASONS, "waiting", "error", "scheduler"), value


def test_what_alerts_group_by_is_a_label() -> None:
    for labels, name in re.findall(r"by \((.*?)\) \((?:increase|rate)?\(?(pgwerk_\w+)", PAGE):
        assert set(labels.split(", ")) - {"le"} <= set(NAMES[name.removesuffix("_bucket")].labels), name


def test_the_numbers() -> None:
    assert f"first {MOST_QUEUES} queues and the first {MOST_TARGETS} targets" in PAGE
    assert f"no more than {MOST_COUNTED:,} are counted" in PAGE


def test_the_options_of_the_commands() -> None:
    for command, option in re.findall(r"manage\.py (\w+) (--[a-z-]+)", PAGE):
        parser = load_command_class("pgwerk_django", command).create_parser("manage.py", command)
        assert option in parser._option_string_actions


@pytest.mark.django_db(transaction=True)
def test_the_view_in_urls() -> None:
    made: dict[str, Any] = {}
    exec(block('path("metrics", metrics.view)'), made)
    assert b"pgwerk_up 1.0" in made["urlpatterns"][0].callback(RequestFactory().get("/metrics")).content


@pytest.mark.django_db(transaction=True)
def test_the_view_that_asks_for_a_token(settings: Any) -> None:
    settings.METRICS_TOKEN = "s3cret"
    made: dict[str, Any] = {}
    exec(block("def for_prometheus"), made)
    view = made["urlpatterns"][0].callback
    assert view(RequestFactory().get("/metrics")).status_code == 403
    assert view(RequestFactory().get("/metrics", headers={"authorization": "Bearer other"})).status_code == 403
    assert b"pgwerk_up" in view(RequestFactory().get("/metrics", headers={"authorization": "Bearer s3cret"})).content


@pytest.mark.django_db(transaction=True)
def test_beside_metrics_of_ones_own() -> None:
    made: dict[str, Any] = {}
    registered: list[Any] = []
    code = block("REGISTRY.register").replace("from prometheus_client import REGISTRY\n", "")
    exec(code, {**made, "REGISTRY": SimpleNamespace(register=registered.append)})
    REGISTRY.register(registered[0])
    try:
        assert REGISTRY.get_sample_value("pgwerk_up") == 1
    finally:
        REGISTRY.unregister(registered[0])


def test_the_settings_for_an_sdk_of_ones_own(start: Any, tmp_path: Path) -> None:
    (tmp_path / "site_settings.py").write_text("from tests.settings import *\n" + block('"TELEMETRY": True'))
    code = "import django; django.setup(); from pgwerk_django import spans; print(type(spans.watch).__module__)"
    root = Path(__file__).parent.parent
    process = start("-c", code, DJANGO_SETTINGS_MODULE="site_settings", PYTHONPATH=f"{tmp_path}:{root}")
    assert process.process.wait(60) == 0, process.text()
    assert process.text() == "pgwerk_django.telemetry\n"
