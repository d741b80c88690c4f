"""Image transforms on uint8 arrays, and the strings that chain them."""
