"""Drop-in classes and functions for the users of other tools: the same arguments and results, computed sooner.

One module a tool: ``captum``, ``grad_cam``, ``torchcam``, ``lucent``, ``kornia``, ``torchmetrics``, ``monai``,
``quantus``, ``pystiche``. :func:`fastviz.accelerate` puts them in the place of the tool's own. None of the tools is
needed, but what a module does not compute itself it leaves to its tool.
"""
