"""From raw data sets on disk to TFRecords to batches: the only part of fada-jax that uses TensorFlow.

``layouts``, ``encoding``, ``decoding``, ``augmentation``, ``sampling`` and ``stream`` work without TensorFlow.
"""

import contextlib
import functools
import os
from types import ModuleType

# TensorFlow greets its user with internals at import; errors are raised anyway.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# oneDNN's greeting ignores that level, and nothing here computes with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@functools.cache
def load_tensorflow() -> ModuleType:
    """TensorFlow on the CPU; the first call imports it, which takes seconds and 300 MB."""
    import tensorflow as tf

    # JAX owns the accelerators. Where TensorFlow has begun to compute, its importer has decided already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf
