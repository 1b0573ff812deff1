"""The architecture of the small network inside the package; ``fastviz.models`` loads its weights."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

__all__ = ["CLASS_NAMES", "INPUT_SIZE", "DemoNetwork"]

INPUT_SIZE = 64
"""Height and width of the input, in pixels."""

CLASS_NAMES = (
    "African elephant",
    "computer keyboard",
    "dumbbell",
    "espresso",
    "golden retriever",
    "goldfish",
    "goose",
    "jellyfish",
    "king penguin",
    "koala",
    "ladybug",
    "limousine",
    "lion",
    "missile",
    "monarch",
    "orange",
    "school bus",
    "spider web",
    "steel arch bridge",
    "tabby cat",
)
"""Class names, index = class: alphabetical, as the folders of the training set are."""


class DemoNetwork(nn.Sequential):
    """Scores of 20 classes from RGB pictures of 64x64 pixels, in the style of VGG.

    ``[N, 3, 64, 64]`` (normalized as torchvision's ImageNet networks are) → ``[N, 20]``. It has a first convolution of
    7x7, large enough for its filters to be looked at, seven of 3x3, and two fully connected layers before the scores
    (``fc6``, ``fc7``). The convolutions run on pictures of other sizes too, where a pass ends at one of them. With
    ``batch_norm=True``, used for training, a batch norm follows each convolution; the shipped weights have them folded
    in.
    """

    def __init__(self, *, batch_norm: bool = False) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()

        def convolution(name: str, channels_in: int, channels_out: int, kernel: int = 3) -> None:
            layers[f"conv{name}"] = nn.Conv2d(
                channels_in, channels_out, kernel, padding=kernel // 2, bias=not batch_norm
            )
            if batch_norm:
                layers[f"norm{name}"] = nn.BatchNorm2d(channels_out)
            layers[f"relu{name}"] = nn.ReLU()

        convolution("1", 3, 32, kernel=7)
        layers["pool1"] = nn.MaxPool2d(2)
        convolution("2_1", 32, 64)
        convolution("2_2", 64, 64)
        layers["pool2"] = nn.MaxPool2d(2)
        convolution("3_1", 64, 128)
        convolution("3_2", 128, 128)
        layers["pool3"] = nn.MaxPool2d(2)
        convolution("4_1", 128, 144)
        convolution("4_2", 144, 144)
        layers["pool4"] = nn.MaxPool2d(2)
        convolution("5_1", 144, 160)
        layers["pool5"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc6"] = nn.Linear(160 * 2 * 2, 144)
        layers["relu6"] = nn.ReLU()
        layers["drop6"] = nn.Dropout(0.25)
        layers["fc7"] = nn.Linear(144, 144)
        layers["relu7"] = nn.ReLU()
        layers["fc8"] = nn.Linear(144, len(CLASS_NAMES))
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, 20] of pictures [N, 3, 64, 64]."""
        given = list(x.shape)
        if len(given) != 4 or given[1] != 3:
            raise _wrong(given)
        for layer in self:
            # Checked only here: passes that end earlier, at a layer with maps, may have any size.
            small = isinstance(layer, nn.MaxPool2d) and min(x.shape[2:]) < 2
            if given[2:] != [INPUT_SIZE, INPUT_SIZE] and (small or isinstance(layer, nn.Flatten)):
                raise _wrong(given)
            x = layer(x)
        return x


def _wrong(shape: list[int]) -> ValueError:
    return ValueError(f"x should have shape [N, 3, {INPUT_SIZE}, {INPUT_SIZE}] for the built-in network, got {shape}")
