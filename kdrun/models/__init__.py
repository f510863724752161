"""Nets: a name and its keys become a network from images to logits. Importable without TensorFlow."""

ENTRIES = {  # name -> the module that registers it
    "convnet": ".convnet",
    "densenet": ".densenet",
    "mlp": ".mlp",
    "resnet": ".resnet",
}
