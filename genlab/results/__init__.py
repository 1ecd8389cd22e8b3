"""What runs have left in their folders, read again: tables over seeds and settings, curves, a page."""
