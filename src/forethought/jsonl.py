"""One line of a JSONL file, from somebody else."""

from __future__ import annotations

import json


def decode_line(line: bytes) -> object:
    """The value of a line. ValueError says what is wrong, to follow the line's place."""
    if b"\0" in line:
        raise ValueError("contains a NUL byte; the file is damaged or not JSONL")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("is not usable JSON: a number or nesting too large") from error
