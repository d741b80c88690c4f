"""What a chip can do at most, by the name jax gives it: what utilisation is measured against."""
import re


def peak(device_kind):
  """bfloat16 operations a second, without sparsity, of a chip such as 'NVIDIA H100 80GB HBM3', or None."""
  return next((value for pattern, value in PEAKS if re.search(rf'\b({pattern})\b', device_kind)), None)


# (pattern of jax's device_kind, operations a second), the first that fits counts.
# TPU: cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e; a device of v3 is half a chip.
# NVIDIA: the data sheets of each product; tensor cores, dense, accumulating in float32. Sheets that print figures "with
# sparsity" (H100, H200, L4, L40S) are halved; GeForce from the whitepapers of GA102 and AD102.
PEAKS = (
    ('TPU v6 ?(lite|e)', 918e12),
    ('TPU v5 ?(lite|e)', 197e12),
    ('TPU v5p?', 459e12),
    ('TPU v4', 275e12),
    ('TPU v3', 61.5e12),
    ('B200', 2250e12),
    ('H100 PCIe', 756e12),
    ('H[12]00 NVL', 835.5e12),
    ('G?H200|H100', 989.5e12),
    ('A100', 312e12),
    ('L40S', 362e12),
    ('L4', 121e12),
    ('A10', 125e12),
    ('RTX 4090', 165.2e12),
    ('RTX 3090', 71e12),
)
