"""Whether a checkpoint is what was saved: digests of arrays, hashes of files, reading back what was just written."""
