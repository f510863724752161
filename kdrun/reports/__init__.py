"""Tables and figures of runs, for people."""
