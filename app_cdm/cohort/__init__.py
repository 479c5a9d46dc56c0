"""Many images, several processes: each case is worked on by one process at a time and written once."""
