"""A network's weights in a file: written all or nothing, read from one that somebody else may have written.

No TensorFlow before it is there already.
"""

import io
from collections.abc import Mapping
from pathlib import Path

from kdrun.errors import InputError, text
from kdrun.storage import files


def save_weights(model, path: Path) -> None:
    """Write a model's weights, all or nothing, as `model.save_weights` would: `model.load_weights` reads them.

    Made in memory first, then written as bytes: HDF5 takes the process with it where the disk is full when it closes a
    file.
    """
    files.write_bytes(path, _in_memory(model).getbuffer())


def _in_memory(model) -> io.BytesIO:
    """A file of a model's weights."""
    from tf_keras.src.saving import saving_lib

    memory = io.BytesIO()
    store = saving_lib.H5IOStore(memory, mode="w")
    # what model.save_weights calls, which takes nothing but the name of a file
    save = saving_lib._save_state  # noqa: SLF001 - the same for any store, under no other name
    save(model, weights_store=store, assets_store=None, inner_path="", visited_trackables=set())
    store.close()
    return memory


def load_weights(model, path: Path) -> None:
    """Give a network the weights in a .weights.h5 file. Raises InputError where they are not of this network."""
    try:
        check_numbers(path)
        model.load_weights(path)
    except Exception as error:  # whatever HDF5, h5py and tf_keras raise for what is not theirs
        raise InputError(
            f"{path} is damaged, or of another network ({text(error)}). Give another run, or train it anew."
        ) from error


def load_matching(model, path: Path) -> int | None:
    """Give a network the weights in a .weights.h5 file of the same net; where that tells other classes apart, all but
    the classifier's, which stay.

    Returns how many classes the file's classifier tells apart, where that is not taken, else None. Raises InputError
    where the file is of another net, with what differs.
    """
    import h5py
    from tf_keras.src.saving import saving_lib

    check(path)
    memory = _in_memory(model)
    with h5py.File(memory, "r+") as ours, h5py.File(path, "r") as theirs:
        kept = _classifier(path, _arrays(ours), _arrays(theirs), model.output.shape[-1])
        for name, array in _arrays(ours).items():
            if name not in kept:
                array[...] = theirs[name][()]
        classes = theirs[kept[0]].shape[-1] if kept else None
    store = saving_lib.H5IOStore(memory, mode="r")
    load = saving_lib._load_state  # noqa: SLF001 - as model.load_weights does, of a file that need not be on disk
    load(model, weights_store=store, assets_store=None, inner_path="", visited_trackables=set())
    store.close()
    return classes


def check(path: Path) -> None:
    """Raises InputError for what is no file of weights, or a damaged one."""
    try:
        check_numbers(path)
    except Exception as error:  # whatever HDF5 and h5py raise for what is not theirs
        raise InputError(f"{path} is damaged, or no .weights.h5 file ({text(error)}). Give another one.") from error


def _arrays(file) -> dict:
    """All arrays in an HDF5 file by name."""
    items: list = []
    file.visititems(lambda name, item: items.append((name, item)))
    return {name: item for name, item in items if hasattr(item, "dtype")}


def _classifier(path: Path, ours: Mapping, theirs: Mapping, num_classes: int) -> list[str]:
    """The arrays of a net's classifier, where a file's tells other classes apart; else none. Raises InputError where
    other arrays differ in shape: only of the last layer can the outputs be others and no inputs with them."""
    if odd := sorted(ours.keys() ^ theirs.keys()):
        whose = "lacks" if odd[0] in ours else "has beside it"
        raise InputError(
            f"{path} is of another net: it has {len(theirs)} arrays of weights, this one has {len(ours)}; it {whose} "
            f"{odd[0]}. Give the weights of the same net."
        )
    differ = [name for name in ours if ours[name].shape != theirs[name].shape]
    layers = {name.rpartition("/")[0] for name in differ}
    for name in differ:
        (*before, last), (*there, _) = ours[name].shape or (0,), theirs[name].shape or (0,)
        if len(layers) > 1 or before != there or last != num_classes:
            raise InputError(
                f"{path} is of another net: {name} is {list(theirs[name].shape)} there, {list(ours[name].shape)} here. "
                "Give the weights of the same net."
            )
    return differ


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
