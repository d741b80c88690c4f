"""Each method on frozen features against a slow version in plain NumPy."""
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.evaluators.frozen import few_shot, knn, linear_probe, retrieval
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.linear_head import LinearHead, Standardization
from vit_jax.evaluators.frozen.nearest_mean import nearest_mean


def make(count, width=12, num_classes=4, seed=0, noise=2.0):
  """Return features of classes that overlap: a mean per class, unequal scales and an offset, float32."""
  rng = np.random.default_rng(seed)
  means = np.random.default_rng(99).normal(size=(num_classes, width))
  labels = rng.integers(num_classes, size=count).astype(np.int32)
  labels[:num_classes] = np.arange(num_classes)
  features = (means[labels] + noise * rng.normal(size=(count, width))) * np.linspace(0.1, 3, width) + 5
  return Features(features.astype(np.float32), labels, num_classes)


def big_vision(train, test, shots, seed, l2):
  """Return (scores, accuracy) by the formula of big_vision's fewshot_lsr.py, without its eigendecomposition."""
  rng = np.random.default_rng(seed)
  indices = []
  for label in range(train.num_classes):
    indices += list(rng.permutation(np.where(train.labels == label)[0])[:shots])
  x, labels = train.features[indices].astype(np.float64), train.labels[indices]
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  with_bias = lambda values: np.concatenate([(values - mean) / std, np.full((len(values), 1), 100.0)], axis=1)
  x, y = with_bias(x), np.where(labels[:, None] == np.arange(train.num_classes), 1.0, -1.0)
  w = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1])) @ x.T @ y
  scores = with_bias(test.features.astype(np.float64)) @ w
  return scores, (scores.argmax(axis=1) == test.labels).mean()


@pytest.mark.parametrize('shots', [1, 2, 5, 25])  # fewer and more images than features
@pytest.mark.parametrize('l2', [2.0 ** -3, 2.0 ** 10])
def test_few_shot_is_big_visions(shots, l2):
  train, test = make(300), make(200, seed=1)
  accuracies = few_shot.few_shot(train, test, [shots], [0, 1, 2], l2)[shots]
  for seed, accuracy in enumerate(accuracies):
    scores, expected = big_vision(train, test, shots, seed, l2)
    indices = few_shot.draw(train.labels, 4, shots, seed)
    head = few_shot.RidgePath(train.keep(indices)).head(l2)
    np.testing.assert_allclose(head.scores(test.features), scores, rtol=0, atol=1e-6)
    assert accuracy == pytest.approx(expected, abs=1e-12)
  assert shots == 1 or len(set(accuracies)) > 1  # another seed draws other images


def test_few_shot_with_many_more_features_than_images_and_dead_features():
  train, test = make(30, width=600), make(200, width=600, seed=1)
  for split in (train, test):
    split.features[:, :300] = split.features[:, 300:]  # collinear
    split.features[:, 0] = 7.0  # no spread
  path = few_shot.RidgePath(train)
  for l2 in few_shot.SWEPT_L2:
    assert np.isfinite(path.head(l2).scores(test.features)).all()
  assert path.head(2.0 ** 10).accuracy(test.features, test.labels) > 0.9


def test_the_sweep_chooses_on_the_rest_of_the_training_split():
  train, test = make(400), make(300, seed=1)
  best = []
  for shots in (2, 10):
    mean = {}
    for l2 in [2.0 ** power for power in range(-10, 20)]:
      found = []
      for seed in (0, 1):
        drawn = few_shot.draw(train.labels, 4, shots, seed)
        rest = train.keep(np.array([i for i in range(400) if i not in drawn]))
        found.append(big_vision(train, rest, shots, seed, l2)[1])
      mean[l2] = round(np.mean(found), 9)
    l2 = max(l2 for l2 in mean if mean[l2] == max(mean.values()))
    expected = [big_vision(train, test, shots, seed, l2)[1] for seed in (0, 1)]
    assert few_shot.few_shot(train, test, [shots], [0, 1], 'sweep')[shots] == pytest.approx(expected)
    best.append(l2)
  assert len(set(best)) == 2  # another number of shots, another penalty
  with pytest.raises(UserError, match="l2: 'sweep' chooses by the training images that are not among the shots"):
    few_shot.few_shot(train, test, [400], [0], 'sweep')


def test_a_class_with_few_images_gives_all_it_has_and_is_named(caplog):
  train, test = make(40), make(50, seed=1)
  accuracy, = few_shot.few_shot(train, test, [1000], [0])[1000]
  assert accuracy == few_shot.RidgePath(train).head(2.0 ** 10).accuracy(test.features, test.labels)
  assert '4 classes have fewer than 1000 training images' in caplog.text


def slow_knn(train, test, k, temperature=0.07):
  """Return the predictions, one image at a time."""
  length = lambda vector: np.sqrt((vector.astype(np.float64) ** 2).sum())
  predictions = []
  for query in test.features:
    similarities = np.array([row.astype(np.float64) @ query / length(row) / length(query) for row in train.features])
    votes = np.zeros(train.num_classes)
    for index in np.argsort(-similarities, kind='stable')[:k]:
      votes[train.labels[index]] += np.exp(similarities[index] / temperature)
    predictions.append(votes.argmax())
  return np.array(predictions)


@pytest.mark.parametrize('block', [1 << 25, 60 * 7])  # at once; 7 test images at a time, the last 4 padded
def test_knn(block, monkeypatch):
  monkeypatch.setattr(knn, '_BLOCK', block)
  train, test = make(60, width=100, noise=4.0), make(53, width=100, seed=1, noise=4.0)
  centered = [Features(split.features - 5, split.labels, 4) for split in (train, test)]
  found = knn.knn(*centered, [1, 5, 20, 60])
  for k, accuracy in found.items():
    assert accuracy == pytest.approx((slow_knn(*centered, k) == test.labels).mean(), abs=1e-12)
  assert len(set(found.values())) > 2
  cold, warm = (knn.knn(*centered, [60], temperature)[60] for temperature in (0.001, 1000.0))
  assert cold == found[1] != warm  # the nearest decides; every image has one vote


def test_knn_equally_near_images_come_in_stored_order():
  rows = np.array([[1, 0], [2, 0], [3, 0], [0, 1]], np.float32)
  train, test = Features(rows, np.array([1, 0, 0, 2]), 3), Features(rows[:1], np.array([1]), 3)
  assert knn.knn(train, test, [1, 3]) == {1: 1.0, 3: 0.0}


def test_numbers_of_neighbors_fit_the_training_split():
  assert knn.neighbors(None, 5000) == (10, 20, 100, 200) and knn.neighbors(None, 99) == (10, 20)
  assert knn.neighbors(None, 7) == (7,)
  with pytest.raises(UserError, match=r'knn.k: expected at most 7, the number of training images, got 20'):
    knn.neighbors((5, 20), 7)


def slow_retrieval(images, ks):
  """Return {metric: value} by walking down each ranking; ties are not resolved."""
  rows = images.features.astype(np.float64)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  precisions, recalls = [], []
  for query, label in enumerate(images.labels):
    ranking = [index for index in np.argsort(-(rows @ rows[query])) if index != query]
    right = [images.labels[index] == label for index in ranking]
    if any(right):
      precisions.append(np.mean([np.mean(right[:rank + 1]) for rank, hit in enumerate(right) if hit]))
      recalls.append([any(right[:k]) for k in ks])
  return {'mAP': np.mean(precisions),
          **{f'recall_at_{k}': recall for k, recall in zip(ks, np.mean(recalls, axis=0), strict=True)}}


@pytest.mark.parametrize('block', [1 << 25, 800])
def test_retrieval(block, monkeypatch):
  monkeypatch.setattr(retrieval, '_BLOCK', block)
  images = make(120)
  images = Features(images.features - 5, np.where(np.arange(120) == 3, 4, images.labels), 5)  # class 4 has one image
  found = retrieval.retrieval(images, (1, 2, 5))
  assert found == pytest.approx(slow_retrieval(images, (1, 2, 5)), abs=1e-6)
  assert 0.3 < found['mAP'] < found['recall_at_1'] < found['recall_at_2'] < found['recall_at_5'] < 1


def test_retrieval_of_equal_features_finds_nothing():
  images = Features(np.ones((8, 3), np.float32), np.arange(8) // 4, 2)
  assert retrieval.retrieval(images, (1, 4, 5)) == {'mAP': pytest.approx(3 / 7), 'recall_at_1': 0.0, 'recall_at_4': 0.0,
                                                    'recall_at_5': 1.0}  # only four can be wrong
  with pytest.raises(UserError, match='expected a class with two images, got 3 images of as many classes'):
    retrieval.retrieval(Features(np.ones((3, 2), np.float32), np.arange(3), 3))


def test_nearest_mean():
  train, test = make(80), make(70, seed=1)
  train = Features(train.features - 5, np.where(train.labels == 2, 1, train.labels), 4)  # none of class 2
  scaled = train.features / np.sqrt((train.features.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
  predictions = []
  for query in test.features - 5:
    cosines = {}
    for label in (0, 1, 3):
      mean = np.mean([row for row, other in zip(scaled, train.labels, strict=True) if other == label], axis=0)
      cosines[label] = mean @ query / np.sqrt(mean @ mean)
    predictions.append(max(cosines, key=cosines.get))
  found = nearest_mean(train, Features(test.features - 5, test.labels, 4))
  assert found == pytest.approx((np.array(predictions) == test.labels).mean(), abs=1e-12) and found > 0.4


def gradient(head, train, l2):
  """Return the gradient of mean cross-entropy + λ/2 |W|² in the standardized kernel, and in the bias."""
  x = Standardization.of(train.features)(train.features)
  scores = head.scores(train.features)
  chances = np.exp(scores - scores.max(axis=1, keepdims=True))
  chances /= chances.sum(axis=1, keepdims=True)
  error = (chances - np.eye(train.num_classes)[train.labels]) / len(x)
  kernel = head.kernel * Standardization.of(train.features).scale[:, None]
  return x.T @ error + l2 * kernel, error.sum(axis=0)


@pytest.mark.parametrize('num_classes', [2, 4])
def test_linear_probe_is_the_minimum(num_classes):
  train = make(300, num_classes=num_classes)
  for l2, head in zip((1.0, 1e-2), linear_probe.fit_path(train, (1.0, 1e-2)), strict=True):
    for part in gradient(head, train, l2):
      np.testing.assert_allclose(part, 0, atol=2e-3)
    assert np.abs(gradient(LinearHead(1.3 * head.kernel, head.bias), train, l2)[0]).max() > 5e-3


def test_linear_probe_chooses_on_the_held_out_part_and_learns_from_all():
  train, test = make(120, width=60, noise=3.0), make(500, width=60, noise=3.0, seed=1)
  probe = linear_probe.linear_probe(train)
  tried = list(probe.held_out)
  assert tried == list(linear_probe.L2[:len(tried)]) and len(set(probe.held_out.values())) > 1
  assert len(tried) < 7 and tried[-3] == probe.l2  # two in a row were no better
  assert probe.l2 == next(l2 for l2, accuracy in probe.held_out.items() if accuracy == max(probe.held_out.values()))
  np.testing.assert_allclose(gradient(probe.head, train, probe.l2)[0], 0, atol=2e-3)  # of all training images
  assert probe.head.accuracy(test.features, test.labels) > 0.6
  same = linear_probe.linear_probe(train)
  assert all(np.array_equal(a, b) for a, b in zip(probe.head, same.head, strict=True))
  held = linear_probe._hold_out(np.array([0] * 10 + [1] * 2 + [2]), 0.2, 0)
  assert held[:10].sum() == 2 and not held[10:].any()  # 0.4 images round to none, and one is always trained on


def test_linear_probe_never_predicts_a_class_without_training_images():
  train, test = make(90, num_classes=5), make(90, num_classes=5, seed=1)
  train = train.keep(train.labels != 3)
  predictions = linear_probe.linear_probe(train).head.scores(test.features).argmax(axis=1)
  assert set(predictions) == {0, 1, 2, 4}


def test_one_class_is_an_error():
  train = Features(np.ones((9, 2), np.float32), np.full(9, 3, np.int32), 5)
  for method in (lambda: few_shot.few_shot(train, train, [1], [0]), lambda: knn.knn(train, train, [1]),
                 lambda: nearest_mean(train, train), lambda: linear_probe.linear_probe(train)):
    with pytest.raises(UserError, match='expected images of at least two classes, got 9 of class 3 only'):
      method()
