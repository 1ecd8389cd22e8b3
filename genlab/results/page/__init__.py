"""The page of `genlab report`: what is on it, its template, its style and its script."""
