"""What each task shows in a viewer's option table, and how its answers are read."""
