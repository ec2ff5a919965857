"""Tasks, engines, objectives and statistics."""
