"""Names of the classes of a head: given by the user, known for ImageNet-1k, matched with those of a dataset."""
