"""Plans kept from earlier sweeps equal new ones, also for a network reduced to other entries of its output."""

import torch
import torchvision

from fastviz.engine.incremental.network import network
from fastviz.engine.incremental.plan import group_windows
from fastviz.engine.incremental.plan_cache import kept_groups
from fastviz.engine.incremental.window_grid import grid


def squeezenet():
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    return network(model, torch.zeros(1, 3, 64, 64)), grid((64, 64), 16, 8, centred=False).boxes


def test_the_plan_of_another_class_is_that_of_a_new_sweep():
    made, boxes = squeezenet()
    cats, dogs = made.only([281]), made.only([151])
    assert cats.steps != dogs.steps
    kept_groups(cats, boxes, 4, None, "cpu")
    found, new = kept_groups(dogs, boxes, 4, None, "cpu"), group_windows(dogs.steps, boxes, 4)
    assert [each.schedule for each in found] == [each.schedule for each in new]
    for one, other in zip(found, new, strict=True):
        assert torch.equal(one.windows, other.windows)
        assert torch.equal(one.members, other.members)


def test_a_plan_is_reused_for_equal_windows_only():
    made, boxes = squeezenet()
    first = kept_groups(made, boxes, 4, None, "cpu")
    assert kept_groups(made, boxes.clone(), 4, None, "cpu") is first
    assert kept_groups(made, boxes, 4, 0.5, "cpu") is not first
    assert kept_groups(made, boxes.flip(0), 4, None, "cpu") is not first
    assert torch.equal(kept_groups(made, boxes, 4, None, "cpu")[0].windows, first[0].windows)


def test_few_plans_are_kept():
    made, boxes = squeezenet()
    for count in range(1, 10):
        kept_groups(made, boxes[:count], 4, None, "cpu")
    assert len(made.plans) == 4
