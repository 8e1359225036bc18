"""Episodes of images: what is drawn, and where Omniglot's come from."""

import io
import zipfile
from typing import Any

import jax
import jax.random as jr
import numpy as np
import pytest
from PIL import Image

import l2o_eqx as l2o
from l2o_eqx.data import DataError, _omniglot, load_omniglot
from l2o_eqx.data._omniglot import characters_of
from l2o_eqx.objectives import Episodes, FewShotDigits, query_accuracy
from l2o_eqx.optimizers import MAML

KEY = jr.key(0)
# Six classes of four examples; a pixel is the number of its example, another one that of its class.
LABELS = np.repeat([3, 1, 4, 5, 9, 2], 4)
NUMBERED = np.stack([np.array([[i, label], [100, 200]]) for i, label in enumerate(LABELS)]).astype(np.uint8)


def test_an_episode_has_classes_and_examples_once_each():
    episodes = Episodes(NUMBERED, LABELS, 3, 1, 2)
    for key in jr.split(KEY, 5):
        (images, ways), (queries, query_ways) = episodes(key)
        np.testing.assert_array_equal(ways, [0, 1, 2])
        np.testing.assert_array_equal(query_ways, [0, 0, 1, 1, 2, 2])
        everything = np.concatenate([images, queries])[:, 0]
        assert len({*everything[:, 0].tolist()}) == 9, "no example twice"
        classes = images[:, 0, 1]
        assert len({*classes.tolist()}) == 3
        # A number stands for the class of its support example.
        np.testing.assert_array_equal(queries[:, 0, 1], classes[query_ways])


def test_a_turned_class_is_another_one():
    """All examples of a way are turned alike; all four turns occur."""
    episodes = Episodes(NUMBERED, LABELS, 4, 1, 1, rotations=True)
    turns = set()
    for key in jr.split(KEY, 8):
        (images, _), (queries, _) = episodes(key)
        for one, other in zip(np.asarray(images), np.asarray(queries), strict=True):
            (turn,) = {
                k
                for k in range(4)
                for x in (one, other)
                if any(np.array_equal(np.rot90(image, k), x) for image in NUMBERED)
            }
            turns.add(turn)
    assert turns == {0, 1, 2, 3}


def test_every_class_is_drawn():
    episodes = Episodes(NUMBERED, LABELS, 2, 1, 1, classes=(1, 5, 9))
    (images, _), _ = jax.vmap(episodes)(jr.split(KEY, 50))
    assert {*np.unique(images[:, :, 0, 1]).tolist()} == {1, 5, 9}


def test_digits_are_held_out_and_judged_by_accuracy():
    """Untrained, one in five is right, more or less; after one step on many examples, more are."""
    family: Any = FewShotDigits(num_support=10, conv_channels=(), hidden_sizes=(8,), data="embedded")
    other: Any = family.variations()["held-out classes"]
    trained, held_out = (np.asarray(f.sample_task(KEY)[0][0]) for f in (family, other))
    assert trained.shape == held_out.shape == (50, 28, 28) and not np.array_equal(trained, held_out)
    assert family.sample_task.others.members.shape[0] == 3
    learner = MAML(family.sample(KEY).init(KEY), 0.5)
    found = [
        l2o.evaluate(learner, f, num_steps=8, num_objectives=8, measure=query_accuracy, key=KEY)
        for f in (family, other)
    ]
    for one in found:
        assert np.mean(one.measured) > 0.4
        assert np.mean(one.losses[:, -1]) < np.mean(one.losses[:, 0])


def archive(names):
    """A zip of drawings of 105 by 105: white paper with a black square, of another place in each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for i, name in enumerate(names):
            paper = np.full((105, 105), True)
            paper[:60, 15 * i : 15 * i + 15] = False
            png = io.BytesIO()
            Image.fromarray(paper).save(png, "PNG")
            target.writestr(name, png.getvalue())
    return file.getvalue()


def test_characters_are_read_from_the_archives():
    drawings = [(c, d) for c in (1, 2) for d in (1, 2)]
    first = archive([f"images_background/Latin/character{c:02}/000{c}_{d:02}.png" for c, d in drawings])
    second = archive(["images_evaluation/Greek/character01/0900_01.png"])
    found = characters_of([first, second])
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 2])
    assert found.images.shape == (5, 28, 28) and found.images.dtype == np.uint8
    # 105 pixels are 28: a pixel is the mean of 3.75 by 3.75; ink is 255. Of 60 rows 16 are whole.
    np.testing.assert_array_equal(found.images[0, :16, :4], 255)
    np.testing.assert_array_equal(found.images[0, 16:], 0)
    np.testing.assert_array_equal(found.images[1, :16, 4:8], 255)
    with pytest.raises(ValueError, match="read-only"):
        found.images[0] = 0


def test_omniglot_out_of_reach_and_damaged_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr("l2o_eqx.data._tfds.reachable", lambda url: False)
    _omniglot._load.cache_clear()
    with pytest.raises(DataError, match="lacks images_background.zip, images_evaluation.zip"):
        load_omniglot(tmp_path)
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(archive([]))
    with pytest.raises(DataError, match="Omniglot|damaged"):
        load_omniglot(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ways": 0}, "num_ways=0"),
        ({"num_ways": 7}, "only 6 classes"),
        ({"num_ways": 2, "num_query": 4}, "there are 4 of the class"),
    ],
)
def test_errors_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        Episodes(NUMBERED, LABELS, **{"num_support": 1, "num_query": 1, **settings})
