"""The documentation is so: the site builds without a warning, what it names exists, and every block of code is run."""

import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pgwerk_django" in (tmp_path / "index.html").read_text()
