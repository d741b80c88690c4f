"""Chips in numbers: the TPUs that can be planned for, and the peaks that utilization is measured against."""
import dataclasses
import re

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one TPU chip can do.

  Attributes:
    name: as topologies name it.
    device_kind: pattern of the name that jax gives it.
    peak: bfloat16 operations per second.
    clock: cycles per second of the compiler's estimates.
    memory: bytes of HBM that the compiler gives to a program.
    link: bytes per second that the chip can send to all its neighbors together.
    dimensions: of the torus it is part of.
    cores: TensorCores, by which Cloud counts some slices.
    options: what jax's topologies need to know in addition to the name.
  """
  name: str
  device_kind: str
  peak: float
  clock: float
  memory: int
  link: float
  dimensions: int
  cores: int = 1
  options: tuple[tuple[str, str], ...] = ()


# peak: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. link: the bidirectional figure there, halved. memory: what libtpu
# 0.0.42 reports as available when it runs out.
# clock: v4, Jouppi et al., arXiv 2304.01433, table 4; v5e, "How to Scale Your Model" (jax-ml.github.io/scaling-book),
# chapter 2; v5p and v6e from the peak, as 8 × 128² and 4 × 256² multiply-adds per cycle. With these the compiler's
# estimates are plausible on all four: a product of 8192² bfloat16 matrices takes 0.90, 0.88, 0.90, 0.70 of the peak
# (v4, v5e, v5p, v6e), reading and writing 1 GiB 0.77, 0.81, 0.72, 0.81 of the bandwidth of HBM.
CHIPS = {chip.name: chip for chip in (
    # The two cores of a v4 chip work as one device ("megacore"); the default here would be two.
    Chip('v4', 'TPU v4', peak=275e12, clock=1.05e9, memory=int(30.75 * _GIB), link=300e9, dimensions=3, cores=2,
         options=(('chip_config_name', 'megacore'),)),
    Chip('v5e', 'TPU v5 ?(lite|e)', peak=197e12, clock=1.5e9, memory=int(15.75 * _GIB), link=200e9, dimensions=2),
    Chip('v5p', 'TPU v5p?', peak=459e12, clock=1.75e9, memory=int(95.74 * _GIB), link=600e9, dimensions=3, cores=2),
    Chip('v6e', 'TPU v6 ?(lite|e)', peak=918e12, clock=1.75e9, memory=int(31.25 * _GIB), link=400e9, dimensions=2),
)}

# Chips that cannot be planned for: (pattern of jax's device_kind, bfloat16 operations per second).
# TPU v3: cloud.google.com/tpu/docs/v3; a device of v3 is half a chip.
# NVIDIA: the data sheets of each product; tensor cores, dense, accumulating in float32. Sheets that print figures "with
# sparsity" (H100, H200, L4, L40S) are halved; GeForce from the whitepapers of GA102 and AD102.
OTHER_PEAKS = (
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


def peak(device_kind: str) -> float | None:
  """Return the bfloat16 operations per second, without sparsity, of a chip such as 'NVIDIA H100 80GB HBM3', or None.

  >>> peak('TPU v5 lite') == peak('TPU v5e') == CHIPS['v5e'].peak
  True
  >>> peak('cpu')
  """
  peaks = [(chip.device_kind, chip.peak) for chip in CHIPS.values()]
  # The first pattern that fits counts: 'TPU v5 lite' also matches that of v5p.
  return next((value for pattern, value in (*peaks, *OTHER_PEAKS) if re.search(rf'\b({pattern})\b', device_kind)), None)
