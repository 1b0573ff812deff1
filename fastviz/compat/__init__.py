"""Drop-in replacements for other tools' classes and functions: the same arguments and results, computed faster.

There is one module per tool: ``captum``, ``grad_cam``, ``torchcam``, ``lucent``, ``kornia``, ``torchmetrics``,
``monai``, ``quantus``, ``pystiche``. :func:`fastviz.accelerate` substitutes them for the originals. The tools need not
be installed, except for calls that a module delegates to its tool.
"""
