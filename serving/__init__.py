"""What answers: the Ray Serve app. Never imports jobs, never torch."""
