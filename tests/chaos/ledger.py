"""What jobs really did, on a file beside the database: one line for each, which survives whatever becomes of that."""

import json
import os
from pathlib import Path
from typing import Any


def note(what: str, **values: Any) -> None:
    """Append a line. One small write to a file opened for appending is whole or not there, whoever else writes."""
    line = json.dumps({"what": what, **values}).encode() + b"\n"
    file = os.open(Path(os.environ["CHAOS_FOLDER"]) / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "ledger"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
