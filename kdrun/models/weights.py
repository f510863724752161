"""A network's weights in a file: written all or nothing, read from one that somebody else may have written.

No TensorFlow before it is there already.
"""

import io
from pathlib import Path

from kdrun.errors import InputError
from kdrun.storage import files


def save_weights(model, path: Path) -> None:
    """Write a model's weights, all or nothing, as `model.save_weights` would: `model.load_weights` reads them.

    Made in memory first, then written as bytes: HDF5 takes the process with it where the disk is full when it closes a
    file.
    """
    from tf_keras.src.saving import saving_lib

    memory = io.BytesIO()
    store = saving_lib.H5IOStore(memory, mode="w")
    # what model.save_weights calls, which takes nothing but the name of a file
    save = saving_lib._save_state  # noqa: SLF001 - the same for any store, under no other name
    save(model, weights_store=store, assets_store=None, inner_path="", visited_trackables=set())
    store.close()
    files.write_bytes(path, memory.getbuffer())


def load_weights(model, path: Path) -> None:
    """Give a network the weights in a .weights.h5 file. Raises InputError where they are not of this network."""
    try:
        check_numbers(path)
        model.load_weights(path)
    except Exception as error:  # whatever HDF5, h5py and tf_keras raise for what is not theirs
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged, or of another network ({said[:200]}). Give another run, or train it anew."
        ) from error


def check_numbers(path: Path) -> None:
    """Nothing but floats that are in the file itself, and not more than it can hold. Raises ValueError or OSError."""
    import h5py

    with files.open_regular(path) as opened, h5py.File(opened, "r") as file:
        left, seen, room = [file], set(), path.stat().st_size
        while left:
            group = left.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name!r} is a link to somewhere else")
                item = group[name]
                if (address := h5py.h5o.get_info(item.id).addr) in seen:
                    continue
                seen.add(address)
                if isinstance(item, h5py.Group):
                    left.append(item)
                    continue
                if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or item.is_virtual:
                    raise ValueError(f"{name!r} holds no numbers")
                room -= item.nbytes
                if item.external or room < 0:
                    raise ValueError(f"{name!r} claims {item.nbytes} bytes, which are not in the file")
