"""Learning: backbones, the training loop, the classifier that comes of it."""
