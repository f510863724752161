"""Who is told of a training run."""
