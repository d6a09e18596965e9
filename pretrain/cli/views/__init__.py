"""Tables and progress bars for terminals."""
