"""``fastviz serve``: the report of a job while it goes on, and a panel to look inside of a network."""
