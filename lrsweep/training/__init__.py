"""Model, data, optimizer, schedule, evaluation: what every engine shares."""
