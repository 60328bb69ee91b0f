"""Results of single blocks and examples, kept in a file, so that an interrupted experiment goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tintc.errors import InputError


class Records:
    """Results by key; each is a line of a JSON file ``{"key": [...], "value": ...}``, written when it is known.

    path None: they are kept in memory alone. A last line that was cut off by a crash is dropped; results of other
    settings do no harm, as settings are part of the keys.
    """

    def __init__(self, path: Path | None):
        """Read what the file has; raise `InputError` if it is no file of results."""
        self.path = path
        self.known: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line or b"null")
                if record is not None:
                    self.known[json.dumps(record["key"])] = record["value"]
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):
                    break
                raise InputError(
                    f"{path}, line {number}, is no result of an experiment; pass another file to --predictions."
                ) from error
        if lines[-1]:
            path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))

    def get(self, key: list[Any]) -> Any | None:
        """Return the result of this key; None if there is none."""
        return self.known.get(json.dumps(key))

    def put(self, key: list[Any], value: Any) -> None:
        """Keep a result, and write it; raise `InputError` if it cannot be written."""
        self.known[json.dumps(key)] = value
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
        except OSError as error:
            raise InputError(f"Cannot write {self.path}: {error.strerror or error}.") from error
