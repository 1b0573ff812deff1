"""``fastviz serve``: the live report of a job, and an interactive panel to look inside a network."""
