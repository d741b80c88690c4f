"""Image transforms on uint8 arrays, and the strings that chain them."""
import cv2

cv2.setNumThreads(0)  # The loader works on several images at once; threads within an image would only cost time.
