"""Live progress, drawn from the run's folder."""
