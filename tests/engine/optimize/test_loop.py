"""The loop and its optimisers: equal to plain versions, each image as if alone; what happens when things go wrong."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz import channel, targets
from fastviz.engine.optimize import LBFGS, Adam, Ascent, target_objective
from fastviz.engine.optimize.canvas import Fourier, Pixels
from fastviz.engine.optimize.priors import L2, Blur, ClipContribution, Prior
from fastviz.engine.optimize.transforms import Jitter, Rotate, Scale
from tests.engine.optimize.common import FRAME, Bowl, f64, network, noise, run

# ------------------------------------------------------------------------------------------- each image as if alone

SHAKEN = {"transforms": [Jitter(1), Scale(), Rotate()], "priors": [L2(0.01), Blur(2), ClipContribution(0.2)]}


@pytest.mark.parametrize("canvas", [Pixels(), Fourier()], ids=["pixels", "fourier"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(Ascent(0.05), SHAKEN), (Adam(0.05), SHAKEN), (LBFGS(history=3), {"priors": [L2(0.01)]})],
    ids=["ascent", "adam", "lbfgs"],
)
def test_alone_equals_in_a_batch(optimizer, options, canvas):
    model = network()
    start = canvas.parameters(noise(4), FRAME)
    settings = {"model": model, "canvas": canvas, "optimizer": optimizer, "steps": 12, "goal": 0.45, **options}
    together = run(target_objective(model, torch.tensor([0, 1, 2, 3])), start, seeds=[5, 6, 7, 8], **settings)
    for k in range(4):
        alone = run(target_objective(model, torch.tensor([k])), start[k : k + 1], seeds=[5 + k], **settings)
        torch.testing.assert_close(together.parameters[k], alone.parameters[0])
        torch.testing.assert_close(together.history[: len(alone.history), k], alone.history[:, 0], equal_nan=True)
        assert together.reasons[k] == alone.reasons[0]
        assert together.steps[k] == alone.steps[0]


def test_chunks_do_not_change_anything():
    model = network()
    settings = {"model": model, "canvas": Fourier(), "optimizer": Adam(0.1), "seeds": [1, 2, 3, 4, 5], **SHAKEN}
    start = Fourier().parameters(noise(5), FRAME)
    whole, pieces = (
        run(target_objective(model, torch.tensor([0, 1, 2, 3, 0])), start, batch_size=size, **settings)
        for size in (None, 2)
    )
    torch.testing.assert_close(whole.parameters, pieces.parameters)


def test_seeds_decide_the_random_numbers():
    model, start = network(), noise(1).expand(3, 3, 6, 6)
    made = run(target_objective(model, [0, 0, 0]), start, model=model, seeds=[1, 1, 2], transforms=[Jitter(2)])
    torch.testing.assert_close(made.parameters[0], made.parameters[1])
    assert not torch.allclose(made.parameters[0], made.parameters[2])


# ---------------------------------------------------------------------------------------------- stopping, what returns


def test_each_image_stops_at_its_goal_and_is_left_out_then():
    bowl = Bowl(3)
    start = torch.stack([bowl.centre[0] + 0.1, bowl.centre[1] + 1.0, bowl.centre[2]])
    made = run(bowl, start, optimizer=Adam(0.05), steps=200, goal=-1.0)
    assert made.reasons == ("goal",) * 3
    assert made.steps[2] == 0 < made.steps[0] < made.steps[1] < 200
    assert bool((made.measures >= -1).all())
    assert bowl.batches[0] == [0, 1, 2]
    assert bowl.batches[-2] == [1]  # the last one evaluates the result
    # The image is the first that reached it: the history ends there.
    for k in range(3):
        history = made.history[:, k]
        assert bool((history[: made.steps[k]] < -1).all())
        assert history[made.steps[k]] >= -1
        assert bool(history[made.steps[k] + 1 :].isnan().all())


def test_goal_at_the_last_step():
    bowl = Bowl(1)
    whole = run(bowl, noise(1), optimizer=Adam(0.05), steps=40)
    made = run(bowl, noise(1), optimizer=Adam(0.05), steps=40, goal=float(whole.measures))
    assert made.reasons == ("goal",)
    assert made.steps.tolist() == [40]


def test_goals_under_transforms_hold_without_them():
    model = network()
    made = run(
        target_objective(model, torch.tensor([0, 1])), noise(2), model=model, optimizer=Adam(0.1), steps=200, goal=0.5,
        transforms=[Jitter(1), Rotate(20)],
    )  # fmt: skip
    assert made.reasons == ("goal", "goal")
    probabilities = model(made.images).softmax(1)[[0, 1], [0, 1]]
    torch.testing.assert_close(made.measures, probabilities.detach())
    assert bool((probabilities >= 0.5).all())


def test_the_best_is_returned():
    """Steps that are too long go past the best image, which comes back nevertheless."""
    x = torch.zeros(1, 3, 6, 6, dtype=f64)

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return -(images - 0.1).square().sum((1, 2, 3))

    made = run(objective, x, optimizer=Ascent(0.08), steps=4)  # 0, 0.08, 0.16, 0.08, 0.16
    torch.testing.assert_close(made.parameters, x + 0.08)
    # Where priors change images a higher total is no better image: the last one comes.
    last = run(objective, x, optimizer=Ascent(0.08), steps=4, priors=[Blur(100)])
    torch.testing.assert_close(last.parameters, x + 0.16)


def test_no_steps_returns_the_start():
    made = run(Bowl(2), noise(2), steps=0)
    torch.testing.assert_close(made.parameters, noise(2))
    assert made.history.shape == (0, 2)
    assert made.reasons == ("steps", "steps")


def test_no_images():
    made = run(Bowl(0), noise(0))
    assert made.images.shape == (0, 3, 6, 6)
    assert made.reasons == ()


def test_priors_apply_as_written():
    """Two steps of ascent with a penalty and with changes, by hand."""
    bowl, x = Bowl(1), noise(1)
    made = run(bowl, x, optimizer=Ascent(0.01, "none"), steps=2, priors=[L2(0.3), Blur(2, 0.5)])
    expected = x
    for step in (1, 2):
        expected = expected + 0.01 * (-2 * bowl.weight * (expected - bowl.centre) - 0.6 * expected)
        expected = Blur(2, 0.5).changed(expected, None, torch.zeros(1), step)
    torch.testing.assert_close(made.parameters, expected)
    torch.testing.assert_close(made.totals, made.values - L2(0.3).penalty(made.images, torch.zeros(1)))


class OwnPlace(Prior):
    """Notes which images it saw."""

    changes_images = True

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def changed(self, images, gradients, rows, step):
        self.rows.append(rows.tolist())
        return images


def test_priors_know_which_images_they_see():
    bowl, prior = Bowl(2), OwnPlace()
    start = torch.stack([bowl.centre[0], noise(1)[0]])
    run(bowl, start, goal=-0.5, steps=2, priors=[prior])
    assert prior.rows == [[1], [1]]


def test_previews_come_every_few_steps():
    seen = []
    made = run(Bowl(2), noise(2), steps=7, preview=lambda step, images: seen.append((step, images)), preview_every=3)
    assert [step for step, _ in seen] == [3, 6]
    expected = run(Bowl(2), noise(2), steps=6)
    torch.testing.assert_close(seen[1][1], expected.images)
    assert made.images.shape == seen[0][1].shape


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_objectives_that_are_not_finite_stop_their_image(bad):
    bowl = Bowl(2)
    calls = [0]

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        calls[0] += 1
        values = bowl(images, rows)
        return values + torch.where(rows == 0, bad, 0.0) if calls[0] == 4 else values

    with pytest.warns(RuntimeWarning, match=rf"image 0 stopped.*the objective became {bad} at step 3"):
        made = run(objective, noise(2), steps=6)
    assert made.reasons == (f"the objective became {bad} at step 3", "steps")
    torch.testing.assert_close(made.parameters[:1], run(bowl, noise(2), steps=2).parameters[:1])
    torch.testing.assert_close(made.parameters[1:], run(bowl, noise(2), steps=6).parameters[1:])
    assert bool(made.history[3:, 0].isnan().all())
    assert made.steps.tolist() == [3, 6]


def test_gradients_that_are_not_finite_stop_their_image():
    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return images.sum((1, 2, 3)).square().sqrt()  # 0 times infinity at 0

    with pytest.warns(RuntimeWarning, match="the gradient was no longer finite at step 0"):
        made = run(objective, torch.zeros(1, 3, 6, 6, dtype=f64))
    assert torch.equal(made.parameters, torch.zeros(1, 3, 6, 6, dtype=f64))


def test_parameters_that_explode_stop_with_the_last_good_image():
    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return images.square().sum((1, 2, 3))

    with pytest.warns(RuntimeWarning, match=r"the parameters grew beyond 1e\+06 at step"):
        made = run(objective, noise(1), optimizer=Ascent(5, "none"), steps=100)
    assert 0 < float(made.parameters.abs().max()) <= 1e6
    assert made.steps < 100


def test_nan_after_the_last_step():
    calls = [0]

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        calls[0] += 1
        return images.sum((1, 2, 3)) * (math.nan if calls[0] == 4 else 1.0)

    made = run(objective, noise(1), steps=3)
    assert bool(made.parameters.isfinite().all())
    torch.testing.assert_close(made.parameters, run(lambda i, r: i.sum((1, 2, 3)), noise(1), steps=2).parameters)


def test_a_unit_that_is_off_is_switched_on():
    """The gradient behind a rectifier that is off is zero: the step follows what stands before it."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=True), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[0.4, 0.3, 0.2], [1.0, -1.0, 1.0]], dtype=f64).view(2, 3, 1, 1)
        model[0].bias[:] = 0.1
        model[2].weight[:] = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=f64).view(2, 2, 1, 1)
        model[2].bias[:] = torch.tensor([-0.5, 9.0])
    made = run(
        target_objective(model, [targets.channel("3", 0), targets.channel("3", 1)]), torch.zeros(2, 3, 6, 6, dtype=f64),
        model=model, steps=10,
    )  # fmt: skip
    assert made.history[0, 0] == 0
    assert float(made.values[0]) > 1
    # The first step goes along the gradient of the values before the last rectifier; the other rectifiers act.
    x = torch.zeros(1, 3, 6, 6, dtype=f64, requires_grad=True)
    (g,) = torch.autograd.grad(model[:3](x)[:, 0].sum(), x)
    first = run(
        target_objective(model, targets.channel("3", 0)), torch.zeros(1, 3, 6, 6, dtype=f64), model=model, steps=1,
        priors=[Blur(100)],
    )  # fmt: skip
    torch.testing.assert_close(first.parameters, 0.05 * g / g.square().mean().sqrt())


def test_objectives_without_gradient_move_at_random():
    made = run(lambda images, rows: (images * 0).sum((1, 2, 3)), noise(2), seeds=[1, 2], steps=3, priors=[Blur(100)])
    moved = made.parameters - noise(2)
    assert bool((moved.abs().amax((1, 2, 3)) > 0).all())
    assert not torch.allclose(moved[0], moved[1])


def test_an_objective_that_ignores_the_image_is_refused():
    with pytest.raises(ValueError, match="should depend on what is optimised, but has no gradient"):
        run(lambda images, rows: torch.zeros(len(rows)), noise(1))


def test_ctrl_c_returns_the_best_so_far():
    bowl = Bowl(2)
    calls = [0]

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return bowl(images, rows)

    made = run(objective, noise(2), steps=50)
    assert made.interrupted
    assert made.reasons == ("interrupted", "interrupted")
    torch.testing.assert_close(made.parameters, run(bowl, noise(2), steps=4).parameters)
    assert made.history.shape == (4, 2)


def test_out_of_memory_says_what_would_fit():
    def objective(images: Tensor, rows: Tensor) -> Tensor:
        if len(images) > 3:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error
        return images.sum((1, 2, 3))

    words = r"9 images of 6x6 pixels at once do not fit on cpu, 2 would: batch_size=2"
    with pytest.raises(MemoryError, match=words):
        run(objective, noise(9))
    assert run(objective, noise(9), batch_size=2).reasons == ("steps",) * 9

    def never(images: Tensor, rows: Tensor) -> Tensor:
        return torch.empty(1 << 60)

    with pytest.raises(MemoryError, match="2 images of 6x6 pixels at once do not fit on cpu; a smaller size may"):
        run(never, noise(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "steps should be at least 0"),
        ({"seeds": [1]}, "seeds should have one number per image, 2, got 1"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
        ({"preview_every": 0}, "preview_every should be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every should be at least 1"),
    ],
)
def test_arguments_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        run(Bowl(2), noise(2), **options)


def test_other_errors_pass():
    def broken(images: Tensor, rows: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run(broken, noise(1))


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(Adam(0.05), SHAKEN), (LBFGS(history=3), {}), (Ascent(0.05), {"goal": 0.4})],
    ids=["adam", "lbfgs", "ascent"],
)
def test_a_run_that_goes_on_gives_the_numbers_of_a_whole_one(optimizer, options, tmp_path):
    model = network()
    start = Fourier().parameters(noise(3), FRAME)
    settings = {"model": model, "canvas": Fourier(), "optimizer": optimizer, "seeds": [1, 2, 3], **options}
    whole = run(target_objective(model, torch.tensor([0, 1, 2])), start, steps=9, **settings)
    path = tmp_path / "run.pt"
    objective = target_objective(model, torch.tensor([0, 1, 2]))
    first = run(objective, start, steps=4, checkpoint=path, **settings)
    assert len(first.history) == 4
    # The first part's result is no part of it: the second goes on from its state.
    second = run(objective, start, steps=9, checkpoint=path, **settings)
    torch.testing.assert_close(second.parameters, whole.parameters, rtol=0, atol=0)
    torch.testing.assert_close(second.history, whole.history, rtol=0, atol=0, equal_nan=True)
    assert second.reasons == whole.reasons
    assert second.steps.tolist() == whole.steps.tolist()
    # A finished one is not run again.
    calls: list[int] = []
    run(lambda images, rows: objective(images, calls.append(1) or rows), start, steps=9, checkpoint=path, **settings)
    assert len(calls) <= 2


def test_checkpoints_are_written_on_the_way_and_after_ctrl_c(tmp_path):
    path = tmp_path / "run.pt"
    steps = []

    def preview(step: int, images: Tensor) -> None:
        steps.append(path.exists())
        if step == 5:
            raise KeyboardInterrupt

    bowl = Bowl(1)
    run(bowl, noise(1), steps=50, preview=preview, preview_every=1, checkpoint=path, checkpoint_every=3)
    assert steps == [False, False, False, True, True]
    made = run(bowl, noise(1), steps=50, checkpoint=path, checkpoint_every=3)
    torch.testing.assert_close(made.parameters, run(bowl, noise(1), steps=50).parameters, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(Bowl(1), noise(1), steps=5, checkpoint=path, about="first")
    with pytest.raises(ValueError, match=r"belongs to other settings.*there: first.*here: second"):
        run(Bowl(1), noise(1), steps=5, checkpoint=path, about="second")
    with pytest.raises(ValueError, match="belongs to other settings"):
        run(Bowl(1), noise(1), steps=5, checkpoint=path, about="first", optimizer=Adam())
    with pytest.raises(ValueError, match="steps should be at least the 5 that the checkpoint has, got 2"):
        run(Bowl(1), noise(1), steps=2, checkpoint=path, about="first")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        run(Bowl(1), noise(1), steps=5, checkpoint=path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of an optimisation"):
        run(Bowl(1), noise(1), steps=5, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="the folder of the checkpoint does not exist"):
        run(Bowl(1), noise(1), steps=5, checkpoint=tmp_path / "none" / "run.pt")


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def fails(step: int, images: Tensor) -> None:
        assert not model.training
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(
            target_objective(model, [targets.channel("0", 1)]),
            noise(1),
            model=model,
            preview=fails,
            preview_every=1,
            **SHAKEN,
        )
    run(target_objective(model, 1), noise(1), model=model, **SHAKEN)
    assert model.training
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_warned_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        run(target_objective(model, torch.arange(4)), noise(4), model=model, **SHAKEN)


# --------------------------------------------------------------------------------------------- waiting for the device


class Waits(TorchDispatchMode):
    """Counts what waits for a GPU: reading values, copies from the host, choosing rows by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, indices = func.__name__, args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masks = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        reads = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select")
        # The numbers of targets, of int64, are looked at on the host.
        host = name.startswith("_local_scalar_dense") and args[0].dtype == torch.int64
        self.count += not host and (name.startswith(reads) or (name.startswith("index") and masks))
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts what no dispatch mode sees on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in ("tolist", "new_tensor")
        return func(*args, **(kwargs or {}))


def waits(steps: int, target, start: Tensor, **options) -> int:
    model = network()
    objective = target_objective(model, target)
    with Waits() as seen, Lists() as listed:
        run(objective, start, model=model, steps=steps, **options)
    return seen.count + listed.count


@pytest.mark.parametrize(
    ("target", "goal", "optimizer", "canvas"),
    [
        (torch.tensor([1, 3]), None, Adam(), Fourier()),
        (torch.tensor([1, 3]), 1e9, Ascent(), Pixels()),
        ([2, targets.neuron("2", 1)], 1e9, Adam(), Pixels()),
    ],
)
def test_a_step_waits_for_the_device_twice(target, goal, optimizer, canvas):
    """For whether a gradient is zero everywhere, and whether an image stops. There were up to 20 waits."""
    start = canvas.parameters(noise(2), FRAME)
    few, many = (
        waits(steps, target, start, goal=goal, optimizer=optimizer, canvas=canvas, priors=[L2(0.1)])
        for steps in (3, 13)
    )
    assert (many - few) / 10 <= 2


def test_what_is_known_of_rows_is_found_once():
    from fastviz.engine.optimize.host_cache import HostCache

    asked = []
    known = HostCache(lambda rows: asked.append(rows) or rows.tolist())
    rows = torch.arange(3)
    assert known(rows) == known(rows) == [0, 1, 2]
    assert len(asked) == 1
    for number in range(200):  # others that come and go, some at the address of one before
        assert known(torch.tensor([number])) == [number]


def test_indices_of_an_objective_are_copied_to_a_device_once():
    objective = channel("0", torch.tensor([1, 2]))
    before = dict(vars(objective))
    like = torch.empty(1, device="meta")
    copy = objective._beside(objective.k, like)
    assert copy.device.type == "meta"
    assert objective._beside(objective.k, like) is copy
    assert objective._beside(objective.k, torch.empty(1)) is objective.k
    assert vars(objective) == before  # what checkpoints compare
