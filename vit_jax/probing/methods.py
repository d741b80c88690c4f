"""The methods of a probe by name, and their results as a table."""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from vit_jax.evaluators.frozen import few_shot, knn, linear_probe, nearest_mean, retrieval
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.few_shot import FewShotConfig
from vit_jax.evaluators.frozen.knn import KnnConfig
from vit_jax.evaluators.frozen.linear_probe import Probe


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    method: in words.
    setting: what distinguishes it from other rows of the method.
    metric: what `value` is.
    value: 0..1.
    spread: sample standard deviation over seeds; None for methods without chance.
  """
  method: str
  setting: str
  metric: str
  value: float
  spread: float | None = None


@dataclasses.dataclass
class Results:
  """What a probe found.

  Attributes:
    rows: of the table.
    probe: the linear probe, if it was among the methods.
  """
  rows: list[Row]
  probe: Probe | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of the methods.

  Attributes:
    few_shot: shots, seeds, penalty.
    knn: numbers of neighbors.
  """
  few_shot: FewShotConfig = FewShotConfig()
  knn: KnnConfig = KnnConfig()


def measure(methods: Sequence[str], train: Features, test: Features, options: Options) -> Results:
  """Return the results of some of METHODS, in the order given.

  Raises:
    UserError: images that a method cannot learn from, or more neighbors than images.
  """
  results = Results([])
  for method in methods:
    METHODS[method](results, train, test, options)
  return results


def _few_shot(results: Results, train: Features, test: Features, options: Options) -> None:
  config = options.few_shot
  penalty = 'l2 chosen' if isinstance(config.l2, str) else f'l2 {config.l2:g}'
  for shots, found in few_shot.few_shot(train, test, config.shots, range(config.seeds), config.l2).items():
    spread = float(np.std(found, ddof=1)) if len(found) > 1 else None
    results.rows.append(Row('few-shot', f'{shots} per class, {penalty}', 'accuracy', float(np.mean(found)), spread))


def _knn(results: Results, train: Features, test: Features, options: Options) -> None:
  k = knn.neighbors(options.knn.k, len(train.labels))
  for number, accuracy in knn.knn(train, test, k, options.knn.temperature).items():
    results.rows.append(Row('k-NN', f'k {number}', 'accuracy', accuracy))


def _nearest_mean(results: Results, train: Features, test: Features, options: Options) -> None:
  del options
  results.rows.append(Row('nearest class mean', '', 'accuracy', nearest_mean.nearest_mean(train, test)))


def _linear_probe(results: Results, train: Features, test: Features, options: Options) -> None:
  del options
  results.probe = linear_probe.linear_probe(train)
  results.rows.append(Row('linear probe', f'l2 {results.probe.l2:g}, chosen', 'accuracy',
                          results.probe.head.accuracy(test.features, test.labels)))


def _retrieval(results: Results, train: Features, test: Features, options: Options) -> None:
  del train, options
  for name, value in retrieval.retrieval(test).items():
    results.rows.append(Row('retrieval', '', name.replace('_', ' '), value))


METHODS: Mapping[str, Callable[[Results, Features, Features, Options], None]] = {
    'few_shot': _few_shot,
    'knn': _knn,
    'nearest_mean': _nearest_mean,
    'linear_probe': _linear_probe,
    'retrieval': _retrieval,
}


def table(rows: Sequence[Row]) -> str:
  """Return the rows as aligned columns, in percent."""
  cells = [('method', 'setting', 'metric', 'percent')]
  for row in rows:
    value = f'{100 * row.value:6.2f}' + ('' if row.spread is None else f' ± {100 * row.spread:.2f}')
    cells.append((row.method, row.setting, row.metric, value))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                   for line in cells)
