"""What learns: training, search, comparison and export. Never imports serving."""
