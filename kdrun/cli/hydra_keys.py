"""Hydra's own keys that a command line may set. The others call functions, run commands or write elsewhere.

A config file of the user's own may use them: such a file, and the folder that --config-dir names, is code.
"""

import re

from hydra.core.override_parser.types import Override

from kdrun.errors import InputError

# what hydra/launcher and hydra/sweeper may choose beside Hydra's own, and the extra that brings it
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "optuna": "optuna"}
_CHOICES = ("basic", "ray", "ray_aws", *EXTRAS)
_ALLOWED = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher", "hydra.sweeper")
_OURS = ("hydra.sweep.subdir", "hydra.output_subdir")
_RUN = {"setup", "python", "srun_args", "additional_parameters", "runtime_env", "setup_commands", "storage"}
_PLAIN = re.compile(r"[\w.,:+=()\[\]{}'\" -]*")  # neither a path, nor an interpolation, nor a shell's command


def check(override: Override) -> None:
    """Raises InputError for an override of Hydra's own that is not a command line's to give."""
    line, key = word_of(override), override.key_or_group
    if re.search(r"\b_target_\b", line):
        raise InputError(f"{line}: _target_ names a function to be called, which is not for a command line. {_INSTEAD}")
    if key.partition("/")[0].partition(".")[0] != "hydra":
        return
    if key.startswith(_OURS):
        raise InputError(f"{line}: kdrun names these folders itself. Leave it out.")
    if key.startswith(("hydra/launcher", "hydra/sweeper")):
        given = override.get_value_element_as_str()
        if key in ("hydra/launcher", "hydra/sweeper") and given not in _CHOICES:
            raise InputError(f"{line}: there is no such {key}. Allowed: {', '.join(sorted({'basic', *EXTRAS}))}.")
        return
    if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in _ALLOWED):
        raise InputError(
            f"{line}: of Hydra's own keys a command line sets {', '.join(_ALLOWED[:2])}, {_ALLOWED[2]}.* and "
            f"{_ALLOWED[3]}.* alone, since others call functions or write elsewhere. {_INSTEAD}"
        )
    words = set(re.findall(r"\w+", line))
    if not key.endswith(".dir") and (words & _RUN or not _PLAIN.fullmatch(line)):
        raise InputError(f"{line}: paths, commands and code are not for a command line here. {_INSTEAD}")


def word_of(override: Override) -> str:
    """The word of a command line that an override was read from."""
    assert override.input_line is not None  # of what Hydra's parser has read
    return override.input_line


_INSTEAD = "Put it into a config file of your own, and give --config-dir."
