"""A SavedModel: for TensorFlow, TensorFlow Serving and what else reads its folders. It takes images of any size."""

from pathlib import Path

import tensorflow as tf

from kdrun.export.whole import Whole


def write(whole: Whole, folder: Path) -> None:
    """Write it, for any number of images at once."""
    module = whole.module()
    module.serve = whole.graph(None, any_size=True)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    # it is of no use but to tell one writing from another, and so is never twice the same
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    assets = folder / "assets"
    if assets.is_dir() and not any(assets.iterdir()):
        assets.rmdir()
