"""Layers in the formulation of a chosen platform, to count on a CPU what an accelerator's program takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from fada_jax.models import convolution, layers


@contextlib.contextmanager
def written_for(platform: str) -> Iterator[None]:
    """While open, layers are traced as ``platform`` ('cpu', 'cuda', 'tpu') runs them, whatever runs here."""

    def choose(*arguments: Any, default: Callable[..., Any], **own: Callable[..., Any]) -> Any:
        return own.get(platform, default)(*arguments)

    with mock.patch.object(convolution, "by_platform", choose), mock.patch.object(layers, "by_platform", choose):
        yield
