"""Nets: a name and its keys become a network from images to logits. Importable without TensorFlow."""

ENTRIES = {  # name -> the module that registers it
    "application": ".application",
    "convnet": ".convnet",
    "densenet": ".densenet",
    "mlp": ".mlp",
    "mobilenet_v2": ".mobilenet_v2",
    "resnet": ".resnet",
    "shufflenet_v2": ".shufflenet_v2",
    "vgg": ".vgg",
    "wide_resnet": ".wide_resnet",
}
