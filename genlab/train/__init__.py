"""Training with Lightning's loop: the learner, its callbacks, checkpoints and loggers."""
