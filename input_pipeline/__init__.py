"""From raw data sets on disk to TFRecords to batches: the only part of fada-jax that uses TensorFlow."""

import os

# TensorFlow greets its user with internals at import; what matters is raised as an error.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
