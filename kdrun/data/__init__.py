"""Datasets and batches; no TensorFlow in here."""
