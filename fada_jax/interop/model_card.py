"""The README of an exported model."""

from __future__ import annotations

from fada_jax import __version__
from fada_jax.training import checkpoints


def model_card(model: checkpoints.Model) -> str:
    """A README for the artifact: what it is, how to run it, what it was trained on, and its limits.

    Args:
      model: with a class set.
    """
    config, class_set, spec = model.config, model.classes, model.spec
    size = "x".join(map(str, config["eval"]["size"]))
    rows = "\n".join(f"| {i} | {name} |" for i, name in enumerate(class_set.names))
    return f"""# {config["task"]}: {spec.backbone}, {class_set.num_classes} classes ({class_set.name})

Semantic segmentation by FADA (Classes Matter: A Fine-grained Adversarial Approach to Cross-domain Semantic
Segmentation, ECCV 2020), trained with fada-jax {__version__}.

## Run it

Needs `pip install jax flatbuffers` (JAX reads exported functions with flatbuffers) and nothing else.

```python
import jax, numpy as np
weights = dict(np.load("weights.npz"))
probabilities = jax.export.deserialize(bytearray(open("probabilities.stablehlo", "rb").read())).call
p = probabilities(weights, images)  # uint8 RGB [N, H, W, 3] -> float32 [N, H, W, {class_set.num_classes}]
```

Images may have any size: resizing to {size}, normalisation, and upsampling of the result to the image's size are
inside. Every new combination of N, H and W compiles once. `multi_scale.stablehlo` averages over the scales
{config["multi_scale"]}, each also flipped; `features.stablehlo` gives the features. With fada-jax installed,
`fada_jax.load("this folder")` does all that.

## Classes

| label | class |
| ---: | --- |
{rows}

## Training

{_training(model)}

## Limits

It knows these classes only and gives one of them to every pixel. It was adapted to images like the target's without
their labels: measure it on labelled images of your own before you rely on it; probabilities are not calibrated. The
licences of the data it was trained on may restrict what it may be used for.
"""


def _training(model: checkpoints.Model) -> str:
    config, spec = model.config, model.spec
    if "source" not in config:
        return "Unknown: the weights come from a PyTorch file that does not say how they were trained."
    source, target = (f"{config[k]['dataset']}/{config[k]['split']}" for k in ("source", "target"))
    return f"""| | |
| --- | --- |
| stage, method | {config["stage"]}, {config["method"]} |
| source (labelled) | {source} |
| target (no labels) | {target if config["stage"] != "source" else "none"} |
| step, seed | {model.step}, {config["seed"]} |
| starts from | {config["init_from"] or "random initialisation"} |
| network | {spec.backbone}, norm {spec.norm}, output stride {spec.output_stride}, {spec.dtype} |"""
