"""Object storage: buckets of Google Cloud Storage (``gs://``) and of S3 (``s3://``) beside the local file system.

``objects`` asks the store, ``paths`` makes what it holds look like files, ``caches`` keeps local copies, and ``leases``
says whose a place is.
"""
