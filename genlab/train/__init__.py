"""Training: the Lightning side of genlab."""
