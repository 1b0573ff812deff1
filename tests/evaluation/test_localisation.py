"""Pointing game, energy inside and intersection over union: answers by hand, chance and truth, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from fastviz.evaluation import by_class, energy_inside, intersection_over_union, pointing_game


def test_pointing_by_hand():
    """The maximum is at (2, 5); an object with its nearest pixel at (5, 1) is 5 pixels away."""
    heat = torch.zeros(1, 8, 8)
    heat[0, 2, 5] = 1
    box = torch.tensor([[5, 0, 8, 2]])
    for tolerance, hit in ((4.9, False), (5, True), (0, False)):
        found = pointing_game(heat, box, tolerance=tolerance)
        assert found.hits.tolist() == [hit]
    assert found.points.tolist() == [[2, 5]]
    assert pointing_game(heat, torch.tensor([[2, 5, 3, 6]]), tolerance=0).accuracy == 1
    # of equal maxima the first; several boxes per image; an image without objects counts nowhere
    flat = torch.zeros(3, 8, 8)
    several = [
        torch.tensor([[0, 0, 1, 1], [7, 7, 8, 8]]),
        torch.zeros(0, 4, dtype=torch.long),
        torch.tensor([[7, 7, 8, 8]]),
    ]
    found = pointing_game(flat, several, tolerance=0)
    assert found.hits.tolist() == [True, False, False]
    assert found.counted.tolist() == [True, False, True]
    assert found.accuracy == 0.5
    assert math.isnan(pointing_game(flat[:0], []).accuracy)


def test_masks_boxes_and_coarse_maps_agree():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(coarse[:, None], (20, 30), mode="bilinear")[:, 0]
    boxes = torch.tensor([[3, 4, 12, 20]]).expand(6, 4)
    masks = torch.zeros(6, 20, 30, dtype=torch.bool)
    masks[:, 3:12, 4:20] = True
    for measure in (energy_inside, intersection_over_union, lambda *a, **o: pointing_game(*a, **o).hits):
        expected = measure(fine, masks)
        torch.testing.assert_close(measure(coarse, boxes, size=(20, 30)), expected)
        torch.testing.assert_close(measure(coarse, masks), expected)


def test_energy_and_intersection_by_hand():
    heat = torch.tensor([[[4.0, 2.0], [-6.0, 2.0]]])
    left = torch.tensor([[0, 0, 2, 1]])
    assert energy_inside(heat, left).tolist() == [0.5]
    assert energy_inside(heat, left, negative="absolute").tolist() == pytest.approx([10 / 14])
    # above 20 % of 4: three pixels, one of which is among the object's two
    assert intersection_over_union(heat, left).tolist() == [0.25]
    assert intersection_over_union(heat, left, threshold=0.6).tolist() == [0.5]
    assert intersection_over_union(heat, left, threshold=0.67, of="quantile").tolist() == [0.5]
    # as many pixels as the object has: 4 and the first 2; one of three
    assert intersection_over_union(heat, left, of="object").tolist() == pytest.approx([1 / 3])
    assert energy_inside(torch.zeros(1, 2, 2), left).isnan().all()
    assert intersection_over_union(torch.zeros(1, 2, 2), left).tolist() == [0.0]


def test_truth_is_best_and_chance_is_the_area():
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(200, 24, 24, dtype=torch.bool)
    masks[:, 4:16, 6:18] = True
    truth, random = masks.float(), torch.rand(200, 24, 24, generator=generator)
    share = 144 / 576
    assert energy_inside(truth, masks).mean() == 1
    assert float(energy_inside(random, masks).mean()) == pytest.approx(share, abs=0.01)
    assert intersection_over_union(truth, masks).mean() == 1
    assert pointing_game(truth, masks, tolerance=0).accuracy == 1
    assert pointing_game(random, masks, tolerance=0).accuracy == pytest.approx(share, abs=0.1)


def test_by_class_leaves_out_what_is_not_defined():
    values = torch.tensor([1.0, torch.nan, 0.5, torch.nan])
    assert by_class(values, torch.tensor([3, 3, 1, 0])) == {1: 0.5, 3: 1.0}


@pytest.mark.parametrize(
    ("objects", "options", "words"),
    [
        (torch.zeros(3, 4, dtype=torch.long), {}, "one entry for each of 2 images, got 3"),
        (torch.zeros(2, 9, 9, dtype=torch.bool), {"size": (8, 8)}, r"shape \[2, 8, 8\] as masks"),
        (torch.tensor([[0, 0, 4, 4], [5, 5, 3, 8]]), {}, r"inside 8x8 pixels, got \(5, 5, 3, 8\)"),
        (torch.tensor([[0, 0, 4, 4], [9, 9, 12, 12]]), {}, "inside 8x8 pixels"),
        (torch.zeros(2, 3), {}, "4 numbers per box, got 3"),
        (torch.ones(2, 8, 8), {}, "boxes .N, 4. or masks of bool"),
    ],
)
def test_what_is_refused(objects, options, words):
    with pytest.raises(ValueError, match=words):
        energy_inside(torch.rand(2, 8, 8), objects, **options)
    with pytest.raises(ValueError, match="tolerance should be finite and above 0"):
        pointing_game(torch.rand(2, 8, 8), torch.tensor([[0, 0, 4, 4]] * 2), tolerance=-1)
    with pytest.raises(ValueError, match="threshold should be from 0 to 1"):
        intersection_over_union(torch.rand(2, 8, 8), torch.tensor([[0, 0, 4, 4]] * 2), threshold=2)
