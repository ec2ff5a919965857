"""From a run's records to tables and one self-contained HTML file."""
