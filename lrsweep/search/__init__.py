"""The search: one Optuna study for each sweep, the controller's and the workers' views of it, and followup trials."""
