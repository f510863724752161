"""Nets: a name and its keys become a network from images to logits. Importable without TensorFlow."""

ENTRIES = {"convnet": ".convnet", "densenet": ".densenet", "mlp": ".mlp"}  # name -> the module that registers it
