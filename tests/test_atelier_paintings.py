"""The drawings that the shipped model learns from."""

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from sepme.atelier import paintings
from sepme.atelier._vae import drawings, subject
from sepme.atelier.objects import DRAWERS, MARGIN, NOTHING, SIZE, draw_scenes
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES, paint, paint_batch
from sepme.atelier.settings import HELD_OUT_SEED
from sepme.atelier.styles import PAINTERS, PHOTO
from sepme.errors import SepmeError


def test_ten_objects_ten_styles_and_a_second_word_for_each():
    assert len(OBJECTS) == len(STYLES) == 10
    assert set(ALIASES) == {*OBJECTS, *STYLES}
    assert len({*ALIASES, *ALIASES.values(), PHOTO, NOTHING}) == 42


@pytest.mark.parametrize("style", PAINTERS)
def test_a_picture_depends_on_object_style_and_seed_alone(style):
    objects = ["fish", "cup", NOTHING]
    batch = paint_batch(objects, [style] * 3, [5, 6, 7])
    assert batch.shape == (3, SIZE, SIZE, 3)
    assert batch.dtype == np.uint8
    for picture, object, seed in zip(batch, objects, [5, 6, 7], strict=True):
        assert np.array_equal(picture, paint(object, style, seed))
    assert not np.array_equal(batch[0], paint("fish", style, 8))


def scenes(object, seeds):
    return draw_scenes(object, paintings._uniform(seeds))


def test_objects_stay_inside_the_margin_and_stand_out():
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 60)
    for object in OBJECTS:
        scene = scenes(object, seeds)
        inner = np.zeros((SIZE, SIZE), bool)
        inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
        assert scene.mask[:, ~inner].max() == 0
        assert scene.mask.mean((1, 2)).min() > 0.05
    assert scenes(NOTHING, [HELD_OUT_SEED]).mask.max() == 0


def test_the_scene_is_the_same_for_every_object_outside_of_it():
    fish, star = (scenes(object, [11]) for object in ("fish", "star"))
    outside = (fish.mask == 0) & (star.mask == 0)
    assert np.array_equal(fish.colour[outside], star.colour[outside])
    assert np.array_equal(fish.ground, star.ground)


def test_nothing_but_the_object_tells_the_object():
    """With a box cut out that is larger than any object, a classifier is left with guessing."""
    count, chance = 1210, 1 / len(DRAWERS)
    objects = [subject(seed)[0] for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count)]
    pictures = drawings(HELD_OUT_SEED, count)
    box = slice(MARGIN, -MARGIN)
    cut = np.ones((SIZE, SIZE), bool)
    cut[box, box] = False
    half = count // 2
    forest = ExtraTreesClassifier(40, max_features=0.05, random_state=0)
    forest.fit(pictures[:half, cut].reshape(half, -1), objects[:half])
    accuracy = forest.score(pictures[half:, cut].reshape(half, -1), objects[half:])
    assert accuracy <= chance + 0.10
    whole = pictures[:, ::4, ::4].reshape(count, -1)  # the control: with the object it is no guess
    forest.fit(whole[:half], objects[:half])
    assert forest.score(whole[half:], objects[half:]) > chance + 0.25


@pytest.mark.parametrize(
    ("objects", "styles", "seeds", "says"),
    [
        (["dragon"], ["ink"], [0], "dragon"),
        (["fish"], ["baroque"], [0], "baroque"),
        (["fish", "cup"], ["ink"], [0], "as many"),
        (["fish"], ["ink"], [-1], "seed"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(objects, styles, seeds, says):
    with pytest.raises(SepmeError, match=says):
        paint_batch(objects, styles, seeds)
