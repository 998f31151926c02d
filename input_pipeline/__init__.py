"""Raw datasets -> TFRecords -> batches. The only package here that imports TensorFlow."""
