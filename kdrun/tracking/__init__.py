"""Trackers: terminal, files and services that follow a training run."""

ENTRIES = {  # name -> the module that registers it
    "terminal": ".terminal",
    "jsonl": ".jsonl",
    "tensorboard": ".tensorboard",
    "mlflow": ".mlflow",
    "wandb": ".wandb",
    "trackio": ".trackio",
}
