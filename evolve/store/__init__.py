"""A run's folder and its Optuna storage."""
