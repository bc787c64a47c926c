"""Evaluation of results: ranking, noise, loss over learning rate, priors, range test and diagnosis of loss curves."""
