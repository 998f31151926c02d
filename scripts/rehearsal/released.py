"""What the released code hands over at every step, typed by hand.

``RELEASED`` was typed from notes on the released code and never from this one; sizes are (width)x(height). The release
has no Cross-City set-up: those rows follow GTA5, with Cityscapes as the source. What it lacks altogether (colour
matching, a control, pictures of training, files for other programs) is marked ``ours``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Tasks -> their name in the table.
GTA5, SYNTHIA, CITIES = "gta5_to_cityscapes", "synthia_to_cityscapes", "cityscapes_to_crosscity"
TASKS = {GTA5: "GTA5", SYNTHIA: "SYNTHIA", CITIES: "Cross-City"}
RESNET, VGG = "resnet101", "vgg16"
BACKBONES = {RESNET: "ResNet-101", VGG: "VGG-16"}
# Data sets of a task -> which domain each is.
DOMAINS = {
    GTA5: {"gta5": "source", "cityscapes": "target"},
    SYNTHIA: {"synthia": "source", "cityscapes": "target"},
    CITIES: {"cityscapes": "source", "crosscity": "target"},
}
RAW = "raw data"
NOTHING = "-"

# A run is a task with a backbone; conversion belongs to all of them.
Run = tuple[str, str]
CONVERSION: Run = (RAW, RAW)


@dataclasses.dataclass(frozen=True)
class Row:
    """One hand-over of the released code.

    Attributes:
      stage: where.
      what: is handed over.
      released: value of every run; or values by task or by backbone, of the runs that have the row at all. Several
        values of one row are sorted and joined by '; '.
      ours: the release has nothing of the kind; the value is what its neighbours suggest.
    """

    stage: str
    what: str
    released: str | Mapping[str, str]
    ours: bool = False

    def value(self, run: Run) -> str | None:
        """The released value of a run; None where the row is not about that run."""
        if (self.stage == RAW) != (run == CONVERSION):
            return None
        if isinstance(self.released, str):
            return self.released
        return self.released.get(run[0], self.released.get(run[1]))


_JITTER = "brightness 0.5, contrast 0.5, saturation 0.5, hue 0.2"
_LABELLED = "labelled source image"
_AS_TRAINED = "2048x1024 -> 1024x512"
_WHOLE = "2048x1024 -> 2048x1024"
_SCORED_AS_TRAINED = "seen at 1024x512, scored at 2048x1024, scales 1.0, not flipped"
_SCORED_MULTI_SCALE = "seen at 2048x1024, scored at 2048x1024, scales 0.7, 1.0, 1.3, each also flipped"
_AS_THE_NETWORK_SEES_THE_SOURCE = {
    GTA5: "1914x1052 -> 1280x720",
    SYNTHIA: "1280x760 -> 1280x760",
    CITIES: "2048x1024 -> 1024x512",
}
_SOURCE_BATCH = {
    GTA5: "image 1280x720, label 1280x720",
    SYNTHIA: "image 1280x760, label 1280x760",
    CITIES: "image 1024x512, label 1024x512",
}
_SOURCE_JITTER = {
    GTA5: f"at 1914x1052: {_JITTER}",
    SYNTHIA: f"at 1280x760: {_JITTER}",
    CITIES: f"at 2048x1024: {_JITTER}",
}


def _without(stage: str, image: str, *changes: str, ours: bool = False) -> list[Row]:
    """What must not happen to an image."""
    return [Row(stage, f"{image}, {change}", NOTHING, ours) for change in changes]


def _on_source(stage: str, *, ours: bool = False) -> list[Row]:
    """Labelled images of the source, which every stage before self-distillation trains on."""
    return [
        Row(stage, f"{_LABELLED}, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, ours),
        Row(stage, "label of the source image, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, ours),
        Row(stage, "to the network, labelled", _SOURCE_BATCH, ours),
        *_without(stage, _LABELLED, "scaled", "cropped", "flipped", ours=ours),
    ]


def _pictures(stage: str, value: str) -> list[Row]:
    """Predictions that TensorBoard shows while a stage is trained."""
    return [Row(stage, "target image for TensorBoard, resized", value, ours=True)]


def _score(row: str, *, ours: bool = False) -> list[Row]:
    """Scores of a model that was trained at 1024x512."""
    return [
        Row(f"scoring {row}", "tested target image, resized", _AS_TRAINED, ours),
        Row(f"scoring {row}", "test", _SCORED_AS_TRAINED, ours),
    ]


def _predicted(command: str, seen: str, *, ours: bool = False) -> list[Row]:
    """A user's image, whose labels are written at its own size."""
    return [
        Row(command, "image of any size", f"2048x1024, seen at {seen}", ours),
        Row(command, "written label", "2048x1024", ours),
    ]


RELEASED: tuple[Row, ...] = (
    # What users have on disk.
    Row(RAW, "gta5, stored", "image 1914x1052, label 1914x1052"),
    Row(RAW, "gta5, label file", "8 bits, palette"),
    Row(RAW, "synthia, stored", "image 1280x760, label 1280x760"),
    Row(RAW, "synthia, label file", "16 bits, several channels"),
    Row(RAW, "cityscapes, stored", "image 2048x1024, label 2048x1024"),
    Row(RAW, "cityscapes, label file", "8 bits, grey"),
    Row(RAW, "crosscity, stored", "image 2048x1024, label 2048x1024; image 2048x1024, label none"),
    Row(RAW, "crosscity, label file", "8 bits, grey"),
    # Source stage: no colour jitter.
    *_on_source("source"),
    *_without("source", _LABELLED, "jittered"),
    *_pictures("source", _AS_TRAINED),
    # Adversarial stage: the source is jittered at its own size, the target never.
    Row("adaptation", f"{_LABELLED}, jittered", _SOURCE_JITTER),
    *_on_source("adaptation"),
    Row("adaptation", "target image, resized", _AS_TRAINED),
    Row("adaptation", "to the network, target", "image 1024x512"),
    *_without("adaptation", "target image", "jittered", "scaled", "cropped", "flipped"),
    *_pictures("adaptation", _AS_TRAINED),
    # The control is the adaptation stage without its adversary.
    Row("control", f"{_LABELLED}, jittered", _SOURCE_JITTER, ours=True),
    *_on_source("control", ours=True),
    *_pictures("control", _AS_TRAINED),
    # The teacher sees what it was trained on; its softmax is upsampled to the size of the target's images.
    Row("pseudo labels", "target image for the teacher, resized", _AS_TRAINED),
    Row("pseudo labels", "teacher", "sees 1024x512, labels 2048x1024"),
    # Self-distillation: jitter (ResNet only), scale, crop, flip.
    Row(
        "self_distillation",
        "labelled target image, jittered",
        {RESNET: f"at 2048x1024: {_JITTER}", VGG: NOTHING},
    ),
    Row("self_distillation", "labelled target image, resized", _WHOLE),
    Row("self_distillation", "label of the target image, resized", _WHOLE),
    Row("self_distillation", "labelled target image, scaled", "2048x1024 by 0.5 to 1.5"),
    Row("self_distillation", "labelled target image, cropped", "to 1024x512, label alike"),
    Row("self_distillation", "labelled target image, flipped", "1024x512"),
    Row("self_distillation", "to the network, labelled", "image 1024x512, label 1024x512"),
    *_pictures("self_distillation", _WHOLE),
    # Scores are taken at the label's own size.
    *_score("source_only"),
    *_score("control", ours=True),
    Row("scoring colour_matching", "source image for its colours, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, True),
    Row("scoring colour_matching", "target image for its colours, resized", _AS_TRAINED, ours=True),
    *_score("colour_matching", ours=True),
    *_score("adapted"),
    Row("scoring self_distilled", "tested target image, resized", _WHOLE),
    Row("scoring self_distilled", "test", "seen at 2048x1024, scored at 2048x1024, scales 1.0, not flipped"),
    Row("scoring self_distilled_multi_scale", "tested target image, resized", _WHOLE),
    Row("scoring self_distilled_multi_scale", "test", _SCORED_MULTI_SCALE),
    Row("evaluate --multi_scale", "tested target image, resized", _WHOLE),
    Row("evaluate --multi_scale", "test", _SCORED_MULTI_SCALE),
    Row("panel", "tested target image, resized", _AS_TRAINED, ours=True),
    Row("panel", "image of any size", "2048x1024, seen at 1024x512", ours=True),
    # The network's input in every test. The notes give the factors; that fractions of a pixel are cut off is PyTorch's.
    Row("tests", "input at scale 0.7", "2048x1024 -> 1433x716"),
    Row("tests", "input at scale 1.0", "1024x512 -> 1024x512; 2048x1024 -> 2048x1024"),
    Row("tests", "input at scale 1.3", "2048x1024 -> 2662x1331"),
    # Images of users: results at the image's own size.
    *_predicted("predict from adaptation", "1024x512"),
    *_predicted("predict", "2048x1024"),
    # An artifact resizes inside.
    Row("predict from artifact", "written label", "2048x1024", ours=True),
    *_predicted("predict from .pth", "2048x1024", ours=True),
    *_predicted("predict from .safetensors", "2048x1024", ours=True),
)
