"""Faults of all kinds, injected into real runs at random moments, and whether the runs survive them."""
