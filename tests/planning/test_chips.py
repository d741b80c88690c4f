"""Chips and TPU topologies."""
import importlib.util
import math

import pytest

from vit_jax.base.errors import UserError
from vit_jax.planning import chips, topology


@pytest.mark.parametrize('name, chip, shape', [
    ('v5e:2x4', 'v5e', (2, 4)), ('v4:2x2x1', 'v4', (2, 2, 1)), ('v6e:32x32', 'v6e', (32, 32)),
    ('v5litepod-256', 'v5e', (16, 16)), ('v5e-8', 'v5e', (2, 4)), ('v6e-4', 'v6e', (2, 2)),
    # Cloud counts the TensorCores of these, two per chip.
    ('v4-8', 'v4', (2, 2, 1)), ('v5p-128', 'v5p', (4, 4, 4))])
def test_topologies_are_parsed(name, chip, shape):
  found, numbers = topology.parse(name)
  assert (found.name, numbers) == (chip, shape)


@pytest.mark.parametrize('name, message', [
    ('v5e', "expected one such as 'v5e:16x16'.* got 'v5e'"), ('v5e:16', "expected one such as .* got 'v5e:16'"),
    ('v9:2x2', "unknown 'v9'; choose from"), ('v5e:1x1', 'expected 2 numbers and 4 to 1024 chips'), ('v5e:64x64', '.* 4 to 1024 chips'),
    ('v4:2x4', 'expected 3 numbers .* v4:2x2x1'), ('v5litepod-7', 'unknown size of a v5e slice, 7; choose from .4, 8')])
def test_bad_topologies_are_errors_with_the_choices(name, message):
  with pytest.raises(UserError, match='--topology: ' + message):
    topology.parse(name)


def test_a_missing_compiler_is_an_error_with_the_command_that_installs_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"--topology: v5e:2x4 needs the TPU compiler.*pip install -e '.\[tpu\]'"):
    topology.tpu_slice('v5e:2x4')


# Multiply-add units of a chip: matrix units × rows × columns; two operations each per cycle.
@pytest.mark.parametrize('chip, units', [
    ('v4', 8 * 128**2), ('v5e', 4 * 128**2), ('v5p', 8 * 128**2), ('v6e', 4 * 256**2)])
def test_clock_and_peak_agree(chip, units):
  assert chips.CHIPS[chip].clock * 2 * units == pytest.approx(chips.CHIPS[chip].peak, rel=2e-3)


def test_usual_slices_have_their_number_of_chips():
  assert all(math.prod(shape) == count for shapes in topology.SHAPES.values() for count, shape in shapes.items())


@pytest.mark.parametrize('kind, value', [
    ('NVIDIA H100 80GB HBM3', 989.5e12), ('NVIDIA H100 PCIe', 756e12), ('NVIDIA H200', 989.5e12),
    ('NVIDIA A100-SXM4-40GB', 312e12), ('NVIDIA A10', 125e12), ('NVIDIA A10G', None), ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12), ('TPU v3', 61.5e12), ('TPU v4', 275e12), ('TPU v5 lite', 197e12), ('TPU v5', 459e12),
    ('TPU v5p', 459e12), ('TPU v6 lite', 918e12), ('cpu', None)])
def test_peaks(kind, value):
  assert chips.peak(kind) == value


@pytest.mark.parametrize('name', chips.CHIPS)
def test_every_chip_is_recognized_by_its_name(name):
  assert chips.peak(f'TPU {name}') == chips.CHIPS[name].peak
