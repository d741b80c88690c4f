"""BiT ResNets, and the ResNet that is the stem of a hybrid."""
