"""Running a sweep: the controller, its workers and executors, and which of them are alive."""
