"""Random views of images, made on the devices."""
