"""Datasets: images with labels, split; and batches of them."""

ENTRIES = {  # name -> the module that registers it
    "mnist": ".npz",
    "npz": ".npz",
    "fashion_mnist": ".idx",
    "of_run": ".source",
}
