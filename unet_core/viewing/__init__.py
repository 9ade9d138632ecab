"""Results on the screen, lazily: what is shown is read, and nothing else."""
