"""A finished run's network as a file for other runtimes: made, held against the run, measured. See stages/export.py."""
