"""What the numbers say: ranking, noise, loss over learning rate, priors, diagnosis."""
