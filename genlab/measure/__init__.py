"""What a model is worth: bits per dimension, the judgement of a split, linear probes, quality of samples."""
