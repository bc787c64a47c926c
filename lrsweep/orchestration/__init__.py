"""Running a sweep: the controller, its workers, and who is alive."""
