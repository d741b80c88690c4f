"""Random-access datasets on disk: TFDS, folders, arrays, the built-in digits."""
