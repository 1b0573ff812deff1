"""Targets written as words, on the command line and in files of jobs: ``2 * pixel(1, 4, 4) - class_score(5)``.

The words are Python's own for the functions of :mod:`fastviz`, read without running any code: names of those functions,
numbers, names in quotes, lists of numbers, sums and factors.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastviz import images
from fastviz._util import checks
from fastviz.models import callables
from fastviz.targets.boxes import box_score
from fastviz.targets.functions import output
from fastviz.targets.objectives import Objective, channel, class_probability, class_score, layer, neuron
from fastviz.targets.regions import pixel, region_score
from fastviz.targets.similarity import similarity

__all__ = ["FORMS", "is_expression", "parse_target", "target_index"]

FORMS = (
    *("class_score(k)", "class_probability(k)", "neuron('LAYER', channel, (row, column))", "channel('LAYER', k)"),
    *(
        "layer('LAYER')",
        "region_score(k, 'MASK.png')",
        "pixel(k, row, column)",
        "box_score([left, top, right, bottom])",
    ),
    *("similarity('VECTOR.npy', 'LAYER')", "output('package.module:function')"),
)
"""What targets in words look like, one of each kind; they add, subtract and multiply by numbers."""

_FUNCTIONS: dict[str, Callable[..., Objective]] = {
    each.__name__: each
    for each in (
        *(class_score, class_probability, neuron, channel, layer),
        *(region_score, pixel, box_score, similarity, output),
    )
}
_OF_CLASSES = ("class_score", "class_probability", "region_score", "pixel", "box_score")
"""Those whose k is a class, which may be given by its name."""


def parse_target(words: str, names: Sequence[str] = ()) -> int | Objective | None:
    """The target that ``words`` mean.

    Args:
        words: ``"predicted"``; a class, by its index or name; or what one would write in Python with the functions of
            :mod:`fastviz`, without the ``fv.``: ``neuron("features.3", 5, (2, 4))``, ``region_score(1, "mask.png")``,
            ``class_score(3) - 0.5 * class_score("tabby cat")``. Masks are files: a picture (what is brighter than one
            half) or a .npy array, of the size of the model's maps; vectors .npy files; the function of ``output`` is
            named as ``"package.module:function"``. No code of the words themselves is run.
        names: of the classes, index = class; none where they are not known.

    Returns:
        None for ``"predicted"``, the index of a class, or an objective.

    Raises:
        ValueError: words that mean nothing (it says what is possible), a class that does not exist, a file that does
            not hold what is needed.
        ImportError: there is no such function.

    >>> parse_target("espresso", ["tabby cat", "espresso"]), parse_target("predicted")
    (1, None)
    >>> parse_target("2 * neuron('conv', 3) - class_score('espresso')", ["tabby cat", "espresso"]).layers
    ('conv',)
    """
    if is_expression(words) and words.strip().casefold() not in (name.casefold() for name in names):
        return _Reader(words, names).target()
    if names or words == "predicted":
        return target_index(words, names)
    if words.strip().isdecimal():
        return int(words)
    raise ValueError(f"target {words!r} is not known: {_possible(classes=False)}")


def is_expression(words: str) -> bool:
    """Whether ``words`` are written with functions, and are no name of a class.

    >>> is_expression("pixel(1, 2, 3)"), is_expression("-pixel(1, 2, 3)"), is_expression("king penguin")
    (True, True, False)
    """
    if any(f"{name}(" in words.replace(" ", "") for name in _FUNCTIONS):
        return True
    tree = _tree(words)
    return tree is not None and any(isinstance(node, ast.Call) for node in ast.walk(tree))


def target_index(target: str, names: Sequence[str]) -> int | None:
    """Index of the class that ``target`` means, where class i is called ``names[i]``; None for ``"predicted"``.

    A target of digits is an index, anything else a class name, in upper or lower case. Some names of ImageNet stand for
    two classes: those must be given by index.

    Args:
        target: words, as on the command line.
        names: one per class.

    Returns:
        The index, or None.

    >>> target_index("Tabby Cat", ["espresso", "tabby cat"])
    1

    Raises:
        ValueError: an index out of range, an unknown name (the nearest are listed) or a name of several classes.
    """
    if target == "predicted":
        return None
    if target.removeprefix("-").isdigit():
        if not 0 <= int(target) < len(names):
            raise ValueError(f"target should be a class from 0 to {len(names) - 1} for this model, got {target}")
        return int(target)
    wanted = target.strip().casefold()
    found = [index for index, name in enumerate(names) if name.casefold() == wanted]
    if not found:
        checks.nearest(wanted, "target", ["predicted", *(name.casefold() for name in names)])
    if len(found) > 1:
        indices = " or ".join(map(str, found))
        raise ValueError(f"target {target!r} is the name of {len(found)} classes, give its index: {indices}")
    return found[0]


def _possible(*, classes: bool = True) -> str:
    first = "'predicted', a class index" + (" or name" if classes else "")
    return f"there are {first}, {', '.join(FORMS)}, and sums such as class_score(3) - 0.5 * class_score(5)"


def _tree(words: str) -> ast.expr | None:
    try:
        return ast.parse(words.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Reader:
    """Reads words that are an expression."""

    def __init__(self, words: str, names: Sequence[str]) -> None:
        self.words, self.names = words, names

    def target(self) -> Objective:
        tree = _tree(self.words)
        if tree is None:
            raise self._wrong("is no expression: names of layers and files stand in quotes")
        return self._objective(tree)

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"target {self.words!r} {what}; {_possible()}")

    def _objective(self, node: ast.expr) -> Objective:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._objective(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            left, right = self._objective(node.left), self._objective(node.right)
            return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for number, other in ((node.left, node.right), (node.right, node.left)):
                factor = self._number(number)
                if factor is not None:
                    return factor * self._objective(other)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._called(node.func.id, node)
        raise self._wrong(f"cannot be read at {ast.unparse(node)!r}")

    def _number(self, node: ast.expr) -> float | None:
        """What ``node`` says, if it is a number."""
        value = self._value(node) if isinstance(node, (ast.Constant, ast.UnaryOp)) and not _calls(node) else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def _called(self, name: str, node: ast.Call) -> Objective:
        if name not in _FUNCTIONS:
            raise self._wrong(f"has no meaning: {name}() is not known")
        signature = inspect.signature(_FUNCTIONS[name])
        if any(word.arg is None for word in node.keywords) or any(isinstance(each, ast.Starred) for each in node.args):
            raise self._wrong("should have its arguments one by one")
        try:
            given = signature.bind(
                *(self._value(each) for each in node.args),
                **{str(word.arg): self._value(word.value) for word in node.keywords},
            ).arguments
        except TypeError as error:
            takes = ", ".join(signature.parameters)
            raise self._wrong(f"is not right: {name}({takes}) is what it takes ({error})") from None
        try:
            return _FUNCTIONS[name](**{each: self._argument(name, each, value) for each, value in given.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"target {self.words!r}: {error}") from error

    def _value(self, node: ast.expr) -> Any:
        """A number, name or list of them, as it is written."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand)
            if isinstance(value, (int, float)):
                return -value
        if isinstance(node, (ast.Tuple, ast.List)):
            return [self._value(each) for each in node.elts]
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._value(node.value)}.{node.attr}"
        raise self._wrong(f"cannot be read at {ast.unparse(node)!r}")

    def _argument(self, function: str, argument: str, value: Any) -> Any:
        """An argument as ``function`` takes it."""
        if argument == "k" and function in _OF_CLASSES and isinstance(value, str):
            if not self.names:
                raise ValueError(
                    f"k should be the index of a class, as the names of this model are not known: {value!r}"
                )
            return target_index(value, self.names)
        if argument == "mask":
            return images.read_mask(_file(value, argument))
        if argument == "vector":
            return images.read_array(_file(value, argument)).float()
        if argument == "box":
            if not isinstance(value, list) or not all(isinstance(each, (int, float)) for each in value):
                raise ValueError(f"box should be [left, top, right, bottom], got {value!r}")
            return torch.tensor(value, dtype=torch.float32)
        if argument == "function":
            if not isinstance(value, str) or not callables.is_callable_name(value):
                raise ValueError(f"function should be named as 'package.module:function', got {value!r}")
            return callables.named(value, "function")
        return value


def _calls(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) for each in ast.walk(node))


def _file(value: Any, argument: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{argument} should be the name of a file in quotes, got {value!r}")
    return value
