"""Training: the learner, its callbacks, checkpoints and loggers, around Lightning's loop."""
