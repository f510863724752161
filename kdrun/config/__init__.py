"""Keys of a config and their rules."""
