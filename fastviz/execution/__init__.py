"""A user's model run as it is: inputs, evaluation mode, hooks, rectifier rules, forward passes, CUDA graphs."""
