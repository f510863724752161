"""kdrun: knowledge-distillation experiments on image classifiers, from a Hydra config."""

__version__ = "0.1.0"
