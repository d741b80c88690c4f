"""Find what is wrong with a dataset: corrupt files, duplicates, conflicting labels."""
