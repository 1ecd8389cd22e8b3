"""Layers that networks share: masked and shifted convolutions, attention, values, contexts."""
