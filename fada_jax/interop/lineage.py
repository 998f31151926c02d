"""Files of AdaptSegNet's lineage (CLAN, ADVENT and others): G as a plain state dict, discriminators in files beside it.

G has the names of a Caffe-style ResNet with its heads as ``layer5`` and ``layer6``. Which head is which depends on
``ModelSpec.heads``. The initial model, converted from Caffe, has ``Scale.`` before each name and a head of other
classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fada_jax.errors import UserError
from fada_jax.interop.entries import CLASSIFIER, DISCRIMINATOR, FEATURE_EXTRACTOR, Entry, convolution

# What a file does not tell, layout -> branches of a head that take part (0: all): AdaptSegNet's loop returns early, as
# those of MaxSquare and DACS do; ADVENT, CLAN and others take all.
LAYOUTS = {"adaptsegnet": 2, "advent": 0}

# ``ModelSpec.heads`` -> head in the file -> classifier of ours.
HEADS = {
    "one": {"layer5": CLASSIFIER},
    "levels": {"layer5": "auxiliary_classifier", "layer6": CLASSIFIER},
    "two": {"layer5": CLASSIFIER, "layer6": "second_classifier"},
}
# Networks that tell domains apart, by their names among a stage's states -> section of a file that holds them.
AUXILIARY = f"{DISCRIMINATOR}_auxiliary"
DISCRIMINATORS = {
    "discriminator": DISCRIMINATOR,
    "patch_discriminator": DISCRIMINATOR,
    "auxiliary_patch_discriminator": AUXILIARY,
}
_TOPS = ("layer5", "layer6")
_INITIAL = "Scale."


def _plain(file: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = file.get("state_dict", file)
    return inner if isinstance(inner, Mapping) else {}


def is_lineage(file: Mapping[str, Any]) -> bool:
    """Whether ``file``, which has no sections, is of this lineage: only there layers go on to ``layer5``."""
    names = (str(key).removeprefix("module.") for key in _plain(file))
    return any(name.startswith((*(f"{top}." for top in _TOPS), _INITIAL)) for name in names)


def is_initial(file: Mapping[str, Any]) -> bool:
    """Whether ``file`` is the initial model converted from Caffe, whose head is of no use here."""
    return any(str(key).removeprefix("module.").startswith(_INITIAL) for key in _plain(file))


def heads_in(file: Mapping[str, Any]) -> str:
    """Key of ``HEADS``, told by what the heads of a file read: of two, ``layer6`` is on layer4."""
    tensors = {str(key).removeprefix("module."): value for key, value in _plain(file).items()}
    if not any(name.startswith(f"{_TOPS[1]}.") for name in tensors):
        return "one"
    shapes = [getattr(tensors.get(f"{top}.conv2d_list.0.weight"), "shape", ()) for top in _TOPS]
    return "two" if shapes[0][1:2] == shapes[1][1:2] else "levels"


def section_names(tensors: Mapping[str, Any], *, initial: bool, heads: str = "") -> dict[str, Any]:
    """Tensors under the names ``section.key`` of the released code; what has no place there keeps its own.

    Args:
      tensors: by the file's names.
      initial: see ``is_initial``; then the heads keep their names.
      heads: of the model that takes them; '': read off the file.

    Raises:
      UserError: one name with and without ``Scale.`` before it.
    """
    plain = {key.removeprefix(_INITIAL): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError(f"the file holds one tensor under two names, with and without {_INITIAL!r} before it")
    names = {} if initial else HEADS[heads or heads_in(plain)]

    def name(key: str) -> str:
        top, _, rest = key.partition(".")
        if top in names:
            return f"{names[top]}.{rest}"
        return key if top in (*_TOPS, "fc") else f"{FEATURE_EXTRACTOR}.backbone.{key}"

    return {name(key): value for key, value in plain.items()}


def from_sections(sections: Mapping[str, Mapping[str, np.ndarray]], heads: str) -> dict[str, np.ndarray]:
    """The plain state dict of G from the sections of the released code; inverse of ``section_names``."""
    tops = {section: top for top, section in HEADS[heads].items()}
    backbone = {key.removeprefix("backbone."): value for key, value in sections[FEATURE_EXTRACTOR].items()}
    in_order = sorted(tops, key=lambda section: tops[section])
    return backbone | {f"{tops[name]}.{key}": value for name in in_order for key, value in sections[name].items()}


# Discriminators -------------------------------------------------------------------------------------------------------


def is_patch_discriminator(params: Mapping) -> bool:
    """Whether parameters, or their shapes, are those of a discriminator of patches."""
    return "head" in params and np.shape(params["head"]["kernel"])[:2] == (4, 4)


def patch_discriminator_table(params: Mapping, section: str = DISCRIMINATOR) -> tuple[Entry, ...]:
    """Every tensor of the discriminator of patches that has these parameters, by AdaptSegNet's names."""

    def entries() -> Iterator[Entry]:
        names = {**{f"conv{i + 1}": f"conv{i}" for i in range(4)}, "classifier": "head"}
        for key, name in names.items():
            kernel, _, inputs, outputs = np.shape(params[name]["kernel"])
            yield from convolution(section, key, (name,), outputs, inputs, kernel, True)

    return tuple(entries())


def patch_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by AdaptSegNet's names; ADVENT numbers the same layers within a sequence, where every other is a ReLU."""
    if not all(re.fullmatch(r"[02468]\.(weight|bias)", key) for key in tensors):
        return dict(tensors)
    layer = ("conv1", "conv2", "conv3", "conv4", "classifier")
    return {f"{layer[int(key[0]) // 2]}{key[1:]}": value for key, value in tensors.items()}


@dataclasses.dataclass(frozen=True)
class DiscriminatorFiles:
    """Files that hold a discriminator each, '' where none is named.

    Attributes:
      main: of the one discriminator, or of the one for the main classifier (AdaptSegNet's ``D2``, else its ``D``).
      auxiliary: of the one for the auxiliary classifier (AdaptSegNet's ``D1``).
    """

    main: str = ""
    auxiliary: str = ""

    @property
    def by_section(self) -> dict[str, str]:
        """Named files."""
        both = {DISCRIMINATOR: self.main, AUXILIARY: self.auxiliary}
        return {section: path for section, path in both.items() if path}


NONE = DiscriminatorFiles()
