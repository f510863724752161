"""Teachers: runs and files, and their outputs."""
