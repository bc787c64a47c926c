"""What a person sees of a sweep: the live screen, the summary, the figures, the page."""
