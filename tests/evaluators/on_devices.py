"""Metrics of images with any number of labels on the devices there are: `python -m tests.evaluators.on_devices DATA_DIR`.

Prints {strategy: {evaluator: {metric: value}}}.
"""
import dataclasses
import json
import sys

import jax
import numpy as np

from tests import tiny
from vit_jax.run.build import build


def measured(data_dir, strategy):
  """Return what a model with a random head measures on 32 images in batches of 24."""
  parts = build(tiny.config(data_dir, **{
      'data.name': 'tiny_scenes', 'data.train_split': 'train', 'data.train_transform': 'resize', 'data.batch_size': 24,
      'objective.loss': 'sigmoid', 'parallel.strategy': strategy,
      'evaluators': {kind: dict(kind=kind, split='train') for kind in ('classification', 'average_precision')}}))
  state = jax.device_get(parts.create())
  params = dict(state.params, head=dict(state.params['head'], kernel=np.float32(np.random.default_rng(0).normal(size=(16, 3)))))
  params = parts.strategy.place(dataclasses.replace(state, params=params)).params
  return {name: evaluator(params, {}) for name, evaluator in parts.evaluators.items()}


if __name__ == '__main__':
  print(json.dumps({strategy: measured(sys.argv[1], strategy) for strategy in ('pmap', 'mesh')}))
