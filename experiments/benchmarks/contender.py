"""One side of `experiments.benchmarks.throughput`, in a process of its own: builds a model, then runs steps when it is told to.

    python -m experiments.benchmarks.contender '{"who": "timm", "model": "B/16", "mode": "train", "batch": 64, "dtype": "bfloat16",
        "image_size": 224, "changes": {}}'

Prints a JSON object that says what was built, then for every number of steps on stdin one with the time they took.
"""
import json
import resource
import sys
import time

import numpy as np

NUM_CLASSES = 1000


class VitJax:
  """Ours: the training step of the ImageNet recipe, but for what the peers do not have, or inference.

  Args:
    model: variant such as 'B/16'.
    mode: 'train' or 'inference'.
    batch: images a step, on one device.
    dtype: of activations and products; parameters and optimizer are float32.
    image_size: pixels of a side.
    changes: to the recipe, {'SECTION.KEY': value}.
  """

  NEEDS = ('jax',)

  def __init__(self, *, model, mode, batch, dtype, image_size, changes):
    import jax
    from vit_jax.base import platform
    platform.keep_memory()  # quicker on a CPU; programs are not kept, what compiling costs is measured
    self._jax, device = jax, jax.devices()[0]
    program = _program(recipe(model, batch, dtype, image_size, changes), [device])
    if mode == 'train':
      self._state = program.strategy.create(program.create)
      self._data = program.strategy.put(batch_of(batch, image_size))
      self._step = program.strategy.compile(program.step, donate=True)
    else:
      self._state = jax.jit(lambda: program.create().params)()
      self._data, self._step = jax.device_put(batch_of(batch, image_size)['image']), _forward(program)
    self.about = dict(device=device.device_kind, platform=device.platform, versions=platform.versions(),
                      multiply_adds=_multiply_adds(program))

  def run(self, steps):
    """Runs steps; returns when the last is done, with the mean loss or logit that it computed."""
    for _ in range(steps):
      self._state, result = self._step(self._state, self._data)
    result = self._jax.block_until_ready(result)
    return float(result.compute()['loss'] if hasattr(result, 'compute') else result.mean())

  def peak_memory(self):
    """Bytes of the device, the most at once; of the process where devices do not count."""
    return (self._jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', _peak_of_process())


def recipe(model, batch, dtype, image_size, changes):
  """The ImageNet recipe for one device, without dropout and hidden layer and with the usual loss, as the peers are."""
  from vit_jax.configs import vit
  config = vit.get_config('b16,imagenet')
  config.data.update(batch_size=batch, image_size=image_size)
  config.model.update(variant=model, dtype=dtype, dropout=0.0, representation_size=None, head_bias=0.0)
  config.objective = dict(loss='softmax')
  config.train.micro_batch = None  # which is made for TPUs
  for key, value in changes.items():
    section, name = key.split('.')
    config[section] = {**config.get(section, {}), name: value}
  return config


def batch_of(size, image_size):
  """A training batch of random images, as a loader makes them."""
  rng = np.random.default_rng(0)
  return dict(image=rng.integers(0, 256, (size, image_size, image_size, 3), np.uint8),
              label=rng.integers(0, NUM_CLASSES, size, np.int32), id=np.arange(size, dtype=np.int32),
              rng=np.arange(size, dtype=np.uint32))


def _program(config, devices):
  from vit_jax.run import config as config_lib
  from vit_jax.run import build as parts
  from vit_jax.data.sources.info import KNOWN_DATASETS
  resolved = config_lib.resolve(config)
  return parts.build_program(resolved, parts.make_strategy(resolved, devices), KNOWN_DATASETS['imagenet2012'])


def _forward(program):
  from flax import nnx
  import jax
  logits = jax.jit(lambda params, images: nnx.merge(program.graphdef, params)(program.normalize(images)))
  return lambda params, images: (params, logits(params, images))


def _multiply_adds(program):
  import jax
  from vit_jax.models.vit import pair
  from vit_jax.planning import flops
  size = pair(program.config.to_dict()['data']['image_size'])
  return flops.multiply_adds(jax.eval_shape(program.create).params, size)


class Timm:
  """timm's model of the same shape, in the quickest way that PyTorch has for a user of it.

  torch.compile on a GPU, eager on a CPU; scaled_dot_product_attention; training with bfloat16 autocast, fused AdamW and
  the clipping of our recipe; inference with weights of that type. Arguments as for VitJax.
  """

  NEEDS = ('torch', 'timm')

  def __init__(self, *, model, mode, batch, dtype, image_size, changes):
    import timm
    import torch
    del changes  # ours
    self._torch, self._device = torch, 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as jax has it
    size, patch = model.split('/')
    self._model = timm.create_model(f'vit_{SIZES[size]}_patch{patch}_224', num_classes=NUM_CLASSES, img_size=image_size)
    self._model.to(self._device).train(mode == 'train')
    self._dtype = getattr(torch, dtype)
    self._apply = torch.compile(self._model) if self._device == 'cuda' else self._model
    data = batch_of(batch, image_size)
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

  def run(self, steps):
    """As VitJax.run."""
    for _ in range(steps):
      result = self._step()
    return float(result)  # waits

  def _pixels(self, dtype):
    return self._images.to(dtype).div_(127.5).sub_(1.0)

  def _train(self):
    torch = self._torch
    with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
      logits = self._apply(self._pixels(torch.float32))
    loss = torch.nn.functional.cross_entropy(logits.float(), self._labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  def _infer(self):
    with self._torch.inference_mode():
      return self._apply(self._pixels(self._dtype)).mean()

  def peak_memory(self):
    """As VitJax.peak_memory."""
    return self._torch.cuda.max_memory_allocated() if self._device == 'cuda' else _peak_of_process()


def _peak_of_process():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB


def serve(who, commands, answers, **arguments):
  """Builds a contender and runs it as the lines of `commands` say.

  Args:
    who: a name of CONTENDERS.
    commands: lines, each a number of steps.
    answers: takes the JSON lines: first `about`, `first_step_seconds` (compilation included), `value`; then for each
      command `seconds`, `cpu_seconds` of all threads, `value` and `peak_memory`.
    **arguments: of the contender.
  """
  contender = CONTENDERS[who](**arguments)

  def timed(steps):
    start, cpu = time.perf_counter(), time.process_time()
    value = contender.run(steps)
    return dict(value=value, seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)

  first = timed(1)
  answer = lambda values: print(json.dumps(values), file=answers, flush=True)
  answer(dict(contender.about, first_step_seconds=first['seconds'], value=first['value']))
  for line in commands:
    answer(dict(timed(int(line)), peak_memory=contender.peak_memory()))


CONTENDERS = {'timm': Timm, 'vit_jax': VitJax}

SIZES = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge', 'g': 'giant', 'G': 'gigantic'}

if __name__ == '__main__':
  answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
  serve(**json.loads(sys.argv[1]), commands=sys.stdin, answers=answers)
