"""What a config may hold."""
