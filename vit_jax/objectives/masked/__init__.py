"""Self-supervision by hidden patches: what is hidden, what is predicted of it, and from what."""
