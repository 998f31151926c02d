"""JSON documents of whatever origin: read within bounds, checked against a schema, refused in one line.

A schema is a dataclass whose annotations give types and ranges (``ranges``); pydantic checks it strictly: no number for
a text, no fraction for a whole number, no unknown field.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from fada_jax import files
from fada_jax.errors import UserError

T = TypeVar("T")
# Of a dataclass: ``__pydantic_config__: ClassVar = STRICT`` refuses fields that it does not have.
STRICT: Any = {"extra": "forbid"}
LIMIT = 2**26

_MUSTS = {
    "greater_than_equal": "be at least {ge:g}",
    "less_than_equal": "be at most {le:g}",
    "greater_than": "be above {gt:g}",
    "less_than": "be below {lt:g}",
    "finite_number": "be a finite number",
    "dataclass_type": "be an object",
    "too_short": "have {min_length} or more items",
}


def parse(text: str | bytes, source: str | Path, *, what: str = "is not JSON") -> Any:
    """JSON of any type: without NaN and infinities, at most 200 levels deep.

    Args:
      text: of the document.
      source: names it in errors.
      what: said of a text that is none.

    Raises:
      UserError: see above.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{source} {what} ({error})") from error


def read(path: str | Path, *, limit: int = LIMIT) -> Any:
    """The JSON in a file; raises as ``files.read_bytes`` and ``parse``."""
    return parse(files.read_bytes(path, limit), path)


def check(values: Any, kind: type[T], source: str | Path, *, advice: str = "") -> T:
    """``values`` of JSON types as ``kind``.

    Args:
      values: of ``parse``.
      kind: dataclass or another type that pydantic knows.
      source: names the document in errors.
      advice: what to do, at the end of the error.

    Raises:
      UserError: naming the document, the field, its value and what is allowed.
    """
    try:
        # As JSON, in which a list serves as a tuple and nothing else serves as anything else.
        return _schema(cast(Any, kind)).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problem = describe(error.errors()[0], values)
        raise UserError(f"{source}: {problem}{advice and ': '}{advice}") from error


@functools.cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def describe(error: Mapping[str, Any], values: Any, prefix: str = "") -> str:
    """One line about an error that pydantic found in ``values``: ``field=value must be ...``."""
    place = [key for key in error["loc"] if not (isinstance(key, str) and key.startswith("function-"))]
    name, known = prefix, True
    for key in place:
        name += f"[{key}]" if isinstance(key, int) else f"{name and '.'}{key_name(key)}"
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):  # Missing, or one of the alternatives of a union.
            known = False
    if error["type"] in ("missing", "missing_argument"):
        return f"{name or 'it'} is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is unknown"
    value = f"{name and '='}{shown(values)}" if known else ""
    return f"{name}{value} {_problem(error)}"


def _problem(error: Mapping[str, Any]) -> str:
    """What a value must be, by the error that pydantic found."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _MUSTS:
        return "must " + _MUSTS[kind].format(**context)
    if kind == "literal_error":
        return "must be one of " + context["expected"].replace("'", "").replace(" or ", ", ")
    if kind == "value_error":
        return str(context["error"])
    if kind.endswith("_type"):
        return f"must be of type {kind.removesuffix('_type')}"
    return f"cannot be: {error['msg'][:1].lower()}{error['msg'][1:]}"


def key_name(key: str) -> str:
    """A key in an error: quoted where it is no plain name."""
    return key if key.isprintable() and 0 < len(key) <= 60 else shown(key, 60)


def shown(value: Any, limit: int = 80) -> str:
    """A value in an error, cut where it is long."""
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
