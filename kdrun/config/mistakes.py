"""Errors for keys that a config has and may not, or must have and has not; and what was meant."""

from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from typing import Any

from kdrun.errors import InputError


def missing_key(key: str, given: Mapping) -> InputError:
    """The error for a key that is not in a config and must be."""
    group = key.rpartition(".")[0]
    owner: Any = given
    for part in group.split(".") if group else ():
        owner = owner.get(part, {}) if isinstance(owner, Mapping) else {}
    if isinstance(owner, Mapping) and isinstance(owner.get("name"), str):
        choice = f"model@{group}" if group.endswith(".model") else group
        return InputError(
            f"{key} is missing, which {owner['name']} has. Leave out ~{key}; and {group}.name cannot be set by hand: "
            f"write {choice}={owner['name']}."
        )
    return InputError(f"{key} was removed; it must stay. Leave out ~{key.split('.')[0]}.")


class UnknownKey(InputError):
    """A key that there is not; `key` is which."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


def unknown_key(key: str, known: Collection[str]) -> UnknownKey:
    """The error for a key that is not there, with the nearest ones that are; a group, too, may be what was meant."""
    near = sorted((k for k in known if k.startswith(f"{key}.")), key=len)[:3] or _nearest(key, known)
    hint = f"Did you mean {', '.join(near)}?" if near else "See kdrun --cfg job for every key."
    if key == "objective.module":
        hint = "It goes with objective=own. Add that."
    return UnknownKey(key, f"{key}: there is no such key. {hint}")


# what other tools and papers call a key or a group whose initials (lr, bs, wd) and letters are not like it
SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t", "tau", "temp", "kd_t"), ("temperature",)),  # the letters of papers
    **dict.fromkeys(("kd_weight", "distill_weight", "lambda", "lam"), ("alpha",)),
    **dict.fromkeys(("batch", "train_batch_size"), ("batch_size",)),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs", "iterations"), ("epochs",)),
    **dict.fromkeys(("early_stopping", "early_stop"), ("patience",)),
    **dict.fromkeys(("rng", "random_state", "manual_seed"), ("seed",)),
    **dict.fromkeys(("optim", "opt", "optimiser", "solver"), ("optimizer",)),
    **dict.fromkeys(("scheduler", "sched", "lr_schedule", "lr_scheduler"), ("schedule",)),
    **dict.fromkeys(("l2", "weight_regularization"), ("weight_decay",)),
    **dict.fromkeys(("warmup",), ("optimizer.warmup_epochs",)),
    **dict.fromkeys(("momentum",), ("optimizer.momentum",)),
    **dict.fromkeys(("nesterov",), ("optimizer.nesterov",)),
    **dict.fromkeys(("grad_clip", "clip", "max_grad_norm"), ("clip_norm",)),
    **dict.fromkeys(("arch", "net", "network", "backbone"), ("model@student.model", "model@teacher.model")),
    **dict.fromkeys(("student_model", "student_arch", "student_net"), ("model@student.model",)),
    **dict.fromkeys(("teacher_model", "teacher_arch", "teacher_net"), ("model@teacher.model",)),
    **dict.fromkeys(("loss", "criterion", "distiller"), ("objective",)),
    **dict.fromkeys(("dataset", "ds"), ("data",)),
    **dict.fromkeys(("data_dir", "data_root", "data_path", "root"), ("data.path",)),
    **dict.fromkeys(("img_size", "input_size", "resolution", "size"), ("data.image_size",)),
    **dict.fromkeys(("preset", "exp", "config", "recipe"), ("experiment",)),
    **dict.fromkeys(("logger", "callbacks"), ("tracker",)),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), ("precision",)),
    **dict.fromkeys(("num_workers", "jobs", "n_jobs"), ("workers",)),
    **dict.fromkeys(("out", "output_dir", "out_dir", "save_dir", "log_dir", "logdir"), ("outputs",)),
    **dict.fromkeys(("command", "mode"), ("stage",)),
    **dict.fromkeys(("nodes", "machines", "hosts", "rank", "world_size"), ("cluster", "task")),
}


def _nearest(key: str, known: Collection[str]) -> list[str]:
    """Keys that may be meant, those in the nearest place first, three at most: that have the same word in another place
    (student.alpha -> alpha), that it is another name for, or the initials of (lr -> optimizer.learning_rate), or that
    are most like it, as a whole or by their last word."""
    word = key.split(".")[-1]
    lasts = {k: k.split(".")[-1] for k in known}
    meant = SYNONYMS.get(word.lower(), ())
    for found in (
        [k for k in known if lasts[k] == word],
        [k for k in known if k in meant or lasts[k] in meant],
        [k for k in known if "_" in lasts[k] and "".join(part[:1] for part in lasts[k].split("_")) == word.lower()],
    ):
        if found:
            return _in_nearest_place(key, found)
    likeness = {k: _likeness(key, k) for k in known}
    best = max(likeness.values(), default=0.0)
    words: dict[str, list[str]] = {}  # keys by their last words, the most like first
    for other in sorted(known, key=lambda k: -likeness[k]):
        if likeness[other] >= max(0.6, best - 0.1):
            words.setdefault(lasts[other], []).append(other)
    return [_in_nearest_place(key, of_word)[0] for of_word in words.values()][:3]


def _in_nearest_place(key: str, found: Collection[str]) -> list[str]:
    """Of keys that are as good, those in the key's own group; else that have all of it at their end (model.depth ->
    student.model.depth); else of the same role; else those that are furthest up."""

    def distance(other: str) -> tuple[int, int]:
        group = key.rpartition(".")[0]
        if other.rpartition(".")[0] == group:
            return 0, 0
        if other.endswith(f".{key}"):
            return 1, other.count(".")
        is_of_role = bool(group) and other.startswith(f"{group.split('.')[0]}.")
        return (2 if is_of_role else 3), other.count(".")

    nearest = min(map(distance, found), default=None)
    among = [other for other in found if distance(other) == nearest]
    return sorted(among, key=lambda other: (len(other), not other.startswith("student"), other))[:3]


def _likeness(key: str, other: str) -> float:
    """How like two keys are, as a whole or by their last words; without the group that both are in, which says
    nothing."""
    parts, others = key.split("."), other.split(".")
    while len(parts) > 1 and len(others) > 1 and parts[0] == others[0]:
        parts, others = parts[1:], others[1:]
    pairs = (".".join(parts), ".".join(others)), (parts[-1], others[-1])
    return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)
