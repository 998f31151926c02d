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
        if part.images and STAGES[part.stage].images != "source":
            raise UserError(f"{name}.images={part.images!r}: stage={part.stage} does not train on the source's images")
        for key in ("init_from", "teacher_from", "images"):
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
    """Refuses images that are too small for the discriminators of ``method``, or that its networks cannot halve.

    Args:
      method: of the stage.
      sizes: (width, height) of the images that it trains on, by stream.
      what: names the method in the error.

    Raises:
      UserError: naming the stream.
    """
    least, multiple = getattr(method, "least_size", 1), getattr(method, "size_multiple", 1)
    for name in method.streams:
        if min(sizes[name]) < least:
            raise UserError(
                f"config.{name}.size, or its crop, is {sizes[name]}: {what} needs images of at least {least} pixels "
                "each way"
            )
        if any(side % multiple for side in sizes[name]):
            raise UserError(
                f"config.{name}.size, or its crop, is {sizes[name]}: {what} needs multiples of {multiple} pixels each "
                "way"
            )


def check_stage(name: str, stage: str) -> None:
    """Refuses a stage that does not train the method: what adapts is the system's own, and so is what translates.

    Args:
      name: of the method.
      stage: key of ``STAGES``.

    Raises:
      UserError: naming the stage that does.
    """
    own = SYSTEMS[name].stage
    if stage != own and (STAGES[stage].adapts or STAGES[stage].translates or SYSTEMS[name].translates):
        raise UserError(f"config.stage={stage}: method={name} is trained in stage={own}")


def check_translation(options: Mapping[str, Any], init_from: str, eval_every: int) -> None:
    """Refuses what a stage of translators has no use for, and a semantic loss without its model.

    Args:
      options: of the method.
      init_from, eval_every: of the config.

    Raises:
      UserError: naming the key.
    """
    if eval_every:
        raise UserError(f"config.eval_every={eval_every}: translators have no scores, it must be 0")
    semantic = bool(options.get("lambda_semantic", 0.0))
    if semantic and not init_from:
        raise UserError("config.init_from is empty: config.options.lambda_semantic needs the workdir of a source model")
    if init_from and not semantic:
        raise UserError(
            f"config.init_from={init_from}: translators start from random weights, and the semantic loss that would "
            "read it is off (config.options.lambda_semantic=0)"
        )
