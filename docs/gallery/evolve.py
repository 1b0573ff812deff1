"""Patterns that the network is sure of, evolved without gradients."""

import torch

import fastviz as fv

model = fv.load_model("demo")
made = [fv.evolve(model, population=16, generations=60, goal=0.9, seed=seed) for seed in (0, 1, 2)]
shown = torch.cat([each.pictures for each in made]).repeat_interleave(4, 2).repeat_interleave(4, 3)
fv.images.save_image(fv.images.grid(shown, columns=3), "evolve.png")
