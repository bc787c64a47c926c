"""The search: one Optuna study, what a worker takes from it, and the trials that follow from results."""
