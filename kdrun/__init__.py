"""kdrun: knowledge-distillation experiments on image classifiers, from a Hydra config."""

__version__ = "0.1.0"


def frame(*places):
    """A pandas DataFrame with a row for each run in `places`: run directories, folders of them, or glob patterns.

    See kdrun.comparison.gathering.frame for its columns. Raises InputError where there is no run at all.
    """
    from kdrun.comparison import gathering  # and with it pandas, for who asks

    return gathering.frame(*places)
