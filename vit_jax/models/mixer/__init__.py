"""The MLP-Mixer: patches, and two kinds of MLP that mix them."""
