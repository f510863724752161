"""Datasets: images with labels, split; and batches of them."""

ENTRIES = {  # name -> the module that registers it
    "mnist": ".npz",
    "npz": ".npz",
    "fashion_mnist": ".idx",
    "folder": ".folder",
    "table": ".table",
    "parquet": ".parquet",
    "tfds": ".tfds",
    "cifar10": ".cifar",
    "cifar100": ".cifar",
    "of_run": ".source",
}
