"""One library of `experiments.benchmarks.throughput`, in its own process: build a model, then run steps on command.

    python -m experiments.benchmarks.contender '{"library": "timm", "model": "B/16", "mode": "train", "batch": 64,
        "dtype": "bfloat16", "image_size": 224, "changes": {}}'

Prints a JSON object that describes what was built, then, for every number of steps on stdin, one with the time they
took.
"""
from collections.abc import Callable, Iterable, Mapping
import json
import resource
import sys
import time
from typing import Any, Protocol, TextIO

import numpy as np

NUM_CLASSES = 1000


class Contender(Protocol):
  """A library's model and step, on one device.

  Attributes:
    NEEDS: packages.
    about: device, platform, versions; for vit_jax also multiply_adds per image.
  """
  NEEDS: tuple[str, ...]
  about: dict[str, Any]

  def run(self, steps: int) -> float:
    """Run steps; return the mean loss or logit of the last one, once it is done."""
    ...

  def peak_memory(self) -> int:
    """Return the peak memory of the device in bytes; of the process if the device does not count it."""
    ...


class VitJax:
  """vit_jax: the training step of the ImageNet recipe without what the other libraries lack, or inference.

  Args:
    model: variant such as 'B/16'.
    mode: 'train' or 'inference'.
    batch: images per step, on one device.
    dtype: of activations and products; parameters and optimizer are float32.
    image_size: pixels of a side.
    changes: to the recipe, {'SECTION.KEY': value}.
  """

  NEEDS: tuple[str, ...] = ('jax',)

  def __init__(self, *, model: str, mode: str, batch: int, dtype: str, image_size: int, changes: Mapping[str, Any]):
    import jax

    from vit_jax.base import platform
    platform.keep_freed_memory()  # faster on a CPU; programs are not cached, since compile time is measured
    platform.prefer_cublas()
    self._jax, device = jax, jax.devices()[0]
    program = _program(recipe(model, batch, dtype, image_size, changes), [device])
    if mode == 'train':
      self._state = program.strategy.create(program.create)
      self._data = program.strategy.put(random_batch(batch, image_size))
      self._step = program.strategy.compile(program.step, donate=True)
    else:
      self._state = jax.jit(lambda: program.create().params)()
      self._data, self._step = jax.device_put(random_batch(batch, image_size)['image']), _forward(program)
    self.about = dict(device=device.device_kind, platform=device.platform, versions=platform.versions(),
                      multiply_adds=program.model.multiply_adds())

  def run(self, steps: int) -> float:
    """Run steps; see `Contender.run`."""
    result: Any = None
    for _ in range(steps):
      self._state, result = self._step(self._state, self._data)
    result = self._jax.block_until_ready(result)
    if isinstance(result, dict):
      total, count = result['loss']
      return float(total / count)
    return float(result.mean())

  def peak_memory(self) -> int:
    """Return the peak memory in bytes; see `Contender.peak_memory`."""
    return (self._jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', _peak_of_process())


def recipe(model: str, batch: int, dtype: str, image_size: int, changes: Mapping[str, Any]) -> Any:
  """Return the ImageNet recipe for one device, without dropout and hidden layer and with a softmax loss, as in timm."""
  from vit_jax.configs import vit
  config = vit.get_config('b16,imagenet')
  config.data.update(batch_size=batch, image_size=image_size)
  config.model.update(variant=model, dtype=dtype, dropout=0.0, representation_size=None, head_bias=0.0)
  config.objective = dict(loss='softmax')
  config.train.micro_batch = None  # the recipe's is for TPUs
  for key, value in changes.items():
    section, name = key.split('.')
    config[section] = {**config.get(section, {}), name: value}
  return config


def random_batch(size: int, image_size: int) -> dict[str, np.ndarray]:
  """Return a training batch of random images, with the keys and types that the loader gives."""
  rng = np.random.default_rng(0)
  return dict(image=rng.integers(0, 256, (size, image_size, image_size, 3), np.uint8),
              label=rng.integers(0, NUM_CLASSES, size, np.int32), id=np.arange(size, dtype=np.int32),
              rng=np.arange(size, dtype=np.uint32))


def _program(config: Any, devices: list[Any]) -> Any:
  from vit_jax.data.sources.info import KNOWN_DATASETS
  from vit_jax.run import build
  from vit_jax.run import config as config_lib
  checked = config_lib.read(config)
  return build.build_program(checked, build.make_strategy(checked, devices), KNOWN_DATASETS['imagenet2012'])


def _forward(program: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
  import jax
  normalize = program.config.normalization
  logits = jax.jit(lambda params, images: program.merge(params)(normalize(images)))
  return lambda params, images: (params, logits(params, images))


class Timm:
  """timm's model of the same shape, run the fastest way that PyTorch offers its users.

  torch.compile on a GPU, eager on a CPU; scaled_dot_product_attention; training with bfloat16 autocast, fused AdamW and
  the clipping of our recipe; inference with weights of that type. Arguments as for VitJax.
  """

  NEEDS: tuple[str, ...] = ('torch', 'timm')

  def __init__(self, *, model: str, mode: str, batch: int, dtype: str, image_size: int, changes: Mapping[str, Any]):
    import timm
    import torch
    del changes  # they are for vit_jax
    self._torch, self._device = torch, 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as in jax
    size, patch = model.split('/')
    self._model = timm.create_model(f'vit_{SIZES[size]}_patch{patch}_224', num_classes=NUM_CLASSES, img_size=image_size)
    self._model.to(self._device).train(mode == 'train')
    self._dtype = getattr(torch, dtype)
    self._apply = torch.compile(self._model) if self._device == 'cuda' else self._model
    data = random_batch(batch, image_size)
    self._images = torch.from_numpy(data['image']).permute(0, 3, 1, 2).contiguous().to(self._device)
    self._labels = torch.from_numpy(data['label']).long().to(self._device)
    self._step = self._train if mode == 'train' else self._infer
    if mode == 'train':
      self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    else:
      self._model.to(self._dtype)
    kind = torch.cuda.get_device_name() if self._device == 'cuda' else 'cpu'
    self.about = dict(device=kind, platform='gpu' if self._device == 'cuda' else 'cpu',
                      versions=dict(timm=timm.__version__, torch=torch.__version__))

  def run(self, steps: int) -> float:
    """Run steps; see `Contender.run`."""
    result: Any = None
    for _ in range(steps):
      result = self._step()
    return float(result)  # waits for the device

  def _pixels(self, dtype: Any) -> Any:
    return self._images.to(dtype).div_(127.5).sub_(1.0)

  def _train(self) -> Any:
    torch = self._torch
    with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
      logits = self._apply(self._pixels(torch.float32))
    loss = torch.nn.functional.cross_entropy(logits.float(), self._labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  def _infer(self) -> Any:
    with self._torch.inference_mode():
      return self._apply(self._pixels(self._dtype)).mean()

  def peak_memory(self) -> int:
    """Return the peak memory in bytes; see `Contender.peak_memory`."""
    return self._torch.cuda.max_memory_allocated() if self._device == 'cuda' else _peak_of_process()


def _peak_of_process() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB


def serve(library: str, commands: Iterable[str], answers: TextIO, **arguments: Any) -> None:
  """Build a contender and run it as the lines of `commands` say.

  Args:
    library: a name in CONTENDERS.
    commands: lines, each a number of steps.
    answers: receives the JSON lines: first `about`, `first_step_seconds` (including compilation) and `value`; then for
      each command `seconds`, `cpu_seconds` of all threads, `value` and `peak_memory`.
    **arguments: of the contender.
  """
  contender: Contender = CONTENDERS[library](**arguments)

  def timed(steps: int) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    value = contender.run(steps)
    return dict(value=value, seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)

  first = timed(1)
  answer = lambda values: print(json.dumps(values), file=answers, flush=True)
  answer(dict(contender.about, first_step_seconds=first['seconds'], value=first['value']))
  for line in commands:
    answer(dict(timed(int(line)), peak_memory=contender.peak_memory()))


CONTENDERS: dict[str, type[Timm] | type[VitJax]] = {'timm': Timm, 'vit_jax': VitJax}

SIZES = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge', 'g': 'giant', 'G': 'gigantic'}

if __name__ == '__main__':
  answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
  serve(**json.loads(sys.argv[1]), commands=sys.stdin, answers=answers)
