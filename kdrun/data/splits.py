"""Drawing of splits: an order of images of which every beginning has each class in its share."""

import hashlib

import numpy as np


def drawn_order(labels: np.ndarray, digests: np.ndarray, seed: int) -> np.ndarray:
    """An order of images, int64 [n], drawn by `seed`: of every beginning of it each class has its share s, to within
    (1 + s (classes - 2)) / 2 images; equal images stand together.

    `labels` are int [n], `digests` the sha256 of each image's pixels, uint8 [n, 32]. The order is that of the images'
    contents, hashed with the seed: it does not depend on the order that they are given in.
    """
    keys = _keyed(digests, seed)
    by_content = np.lexsort((labels, keys))
    _, first, group = np.unique(keys[by_content], return_index=True, return_inverse=True)
    of_group = labels[by_content][first]  # equal images with two labels go where the smaller one does
    rank = np.empty(len(first))
    for label in np.unique(of_group):
        members = np.flatnonzero(of_group == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return by_content[np.lexsort((group, of_group[group], rank[group]))]


def cut(digests: np.ndarray, count: int) -> int:
    """Where to cut images in a drawn order after `count` of them: later, where equal ones would be on both sides."""
    while 0 < count < len(digests) and np.array_equal(digests[count - 1], digests[count]):
        count += 1
    return count


def digests_of(images: np.ndarray) -> np.ndarray:
    """The sha256 of each image's pixels, uint8 [n, 32]."""
    images = np.ascontiguousarray(images)
    sums = b"".join(hashlib.sha256(image).digest() for image in images)
    return np.frombuffer(sums, np.uint8).reshape(-1, 32)


def _keyed(digests: np.ndarray, seed: int) -> np.ndarray:
    """A random number for each content, bytes [n]: the same for equal images."""
    salt = seed.to_bytes(8, "little")
    return np.array([hashlib.sha256(salt + digest.tobytes()).digest()[:16] for digest in digests], "S16")
