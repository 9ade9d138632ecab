"""Training of networks: crops, augmentation, weight maps, losses, and a plain loop."""
