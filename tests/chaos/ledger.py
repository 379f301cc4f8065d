"""What jobs and people did, in a file beside the database: one line each, which no fault of the database can remove."""

import json
import os
import time
from pathlib import Path
from typing import Any


def note(what: str, **values: Any) -> None:
    """Append a line, with its instant. One small write to a file opened for appending is whole, or it is not there."""
    # By the monotonic clock: the clock of some hosts is wrong on purpose.
    at = time.monotonic() + float(os.environ["CHAOS_EPOCH"])
    line = json.dumps({"what": what, "at": at, **values}).encode() + b"\n"
    file = os.open(Path(os.environ["CHAOS_FOLDER"]) / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "ledger"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
