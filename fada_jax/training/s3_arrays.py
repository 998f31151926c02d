"""Arrays of checkpoints on S3: orbax tells tensorstore of ``gs://`` by the path, and of ``s3://`` it does not.

Where it asks tensorstore for a store of keys, the same description with the other driver is given.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils

from fada_jax.errors import UserError


@functools.cache
def teach_orbax() -> None:
    """Has orbax store arrays below ``s3://``, once in a process.

    Raises:
      UserError: this version of orbax does it another way.
    """
    described = getattr(tensorstore_utils, "build_kvstore_tspec", None)
    if described is None:
        raise UserError("checkpoints on s3:// need another version of orbax-checkpoint: 0.12.8 is known to do")

    @functools.wraps(described)
    def on_s3_too(directory: str, *arguments: Any, **options: Any) -> Any:
        scheme, _, rest = os.fspath(directory).partition("://")
        if scheme != "s3":
            return described(directory, *arguments, **options)
        return _on_s3(described(f"gs://{rest}", *arguments, **options))

    tensorstore_utils.build_kvstore_tspec = on_s3_too


def _on_s3(spec: Any) -> Any:
    """A description of a store with tensorstore's driver of S3 for that of Google Cloud Storage."""
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return {"driver": "s3", "bucket": spec["bucket"], "path": spec["path"], **_settings()}
    return {key: _on_s3(value) for key, value in spec.items()}


def _settings() -> dict[str, Any]:
    """Where S3 is and who asks, from the variables that every client of S3 reads."""
    environment = os.environ
    settings: dict[str, Any] = {}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint:
        settings["endpoint"] = endpoint
    if region or endpoint:
        settings["aws_region"] = region or "us-east-1"
    if environment.get("AWS_ACCESS_KEY_ID"):
        settings["aws_credentials"] = {"type": "environment"}
    return settings
