"""Optimizers, each elementwise, applied to all of a model's weights at once."""

ENTRIES = dict.fromkeys(("adabelief", "adam", "sgd"), ".elementwise")  # name -> the module that registers it
