"""The ground: every noun, and every rule that training and serving must apply identically. No Ray, no torch."""
