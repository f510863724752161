"""Run directories: made, described by their run.json, found again."""

from kdrun import frame

__all__ = ["frame"]  # its name before it was kdrun's own
