"""What users see of a sweep: the live screen, the summary, the figures and the HTML report."""
