"""What a method asks of its options and of the network, under the names of the config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fada_jax import documents
from fada_jax.errors import UserError
from fada_jax.methods import SYSTEMS, Method, options_of
from fada_jax.methods.stages import STAGES, STUDENT, Part


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that the method ``name`` does not have, and values of another type.

    Raises:
      UserError: naming the option.
    """
    allowed = options_of(name)
    for option in options.keys() - allowed.keys():
        known = ", ".join(allowed) or "none"
        raise UserError(f"config.options.{option} is no option of method={name!r}: {known}")
    try:
        TypeAdapter(SYSTEMS[name].method).validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        raise UserError(documents.describe(error.errors()[0], options, "config.options")) from error


def check_recipe(recipe: Sequence[Part]) -> None:
    """Refuses a recipe that cannot be followed.

    Raises:
      UserError: naming the part.
    """
    before: list[str] = []
    for i, part in enumerate(recipe):
        name = f"config.recipe[{i}]"
        for key, allowed in (("stage", STAGES), ("method", ("", *SYSTEMS))):
            if (value := getattr(part, key)) not in allowed:
                raise UserError(f"{name}.{key}={value!r} must be one of {', '.join(filter(None, allowed))}")
        if part.folder in before:
            raise UserError(f"{name}.folder={part.folder!r} is that of an earlier part: each has one of its own")
        for key in ("init_from", "teacher_from"):
            if (value := getattr(part, key)) and value not in (*before, STUDENT):
                known = ", ".join(before) or "none before it"
                raise UserError(f"{name}.{key}={value!r} must be the folder of an earlier part: {known}")
        before.append(part.folder)


def check_heads(method: Method, heads: str, what: str) -> None:
    """Refuses classifiers that nothing trains, and the lack of those that ``method`` trains.

    Args:
      method: of the stage.
      heads: ``model.heads``.
      what: names what trains in the error.

    Raises:
      UserError: naming what is allowed.
    """
    allowed = getattr(method, "heads", ("one",))
    if heads not in allowed:
        raise UserError(f"config.model.heads={heads!r}: {what} trains {' or '.join(map(repr, allowed))}")


def check_sizes(method: Method, sizes: Mapping[str, tuple[int, int]], what: str) -> None:
    """Refuses images that are too small for the discriminators of ``method``.

    Args:
      method: of the stage.
      sizes: (width, height) of the images that it trains on, by stream.
      what: names the method in the error.

    Raises:
      UserError: naming the stream.
    """
    least = getattr(method, "least_size", 1)
    for name in method.streams:
        if min(sizes[name]) < least:
            raise UserError(
                f"config.{name}.size, or its crop, is {sizes[name]}: {what} needs images of at least {least} pixels "
                "each way"
            )
