"""Values of builtin types as JSON and back, without pickle: what may cross a sandbox's border.

None, bool, float, str and lists are written as JSON has them, and so are integers of up to 64 bits.
The rest is an object with one key that names the type: `{"tuple": [...]}`. Decoding builds these
types only, so nothing that comes out of a sandbox carries behaviour.
"""

from __future__ import annotations

TYPE_CHECKING = False  # see harness.py
if TYPE_CHECKING:
    from typing import Any

MAX_PLAIN_INT = 2**63  # decimal text of longer integers takes quadratic time


class UnsupportedType(Exception):
    """A value, or what claims to be an encoded one, that is of no supported type."""


def encode(value: object) -> Any:
    """`value` as JSON data. Subclasses travel as their builtin base; order of sets is not kept."""
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return int(value) if -MAX_PLAIN_INT < value < MAX_PLAIN_INT else {"int": hex(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    raise UnsupportedType(f"{type(value).__name__} is no builtin value")


def decode(data: Any) -> Any:
    """The value that `encode` wrote. Raises UnsupportedType for anything else."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise UnsupportedType("an encoded value has one key, its type")
    ((kind, content),) = data.items()
    try:
        return _decode_kind(kind, content)
    except (TypeError, ValueError) as error:  # unhashable members, odd hex, wrong lengths
        raise UnsupportedType(f"no {kind} can be read from what was sent") from error


def _decode_kind(kind: str, content: Any) -> Any:
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        real, imaginary = content
        return complex(real, imaginary)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "tuple":
        return tuple(map(decode, content))
    if kind in ("set", "frozenset"):
        return (set if kind == "set" else frozenset)(map(decode, content))
    raise UnsupportedType(f"{kind!r} is no type that is sent")
