"""What a run leaves: metrics, pictures, reports, and the run itself from configuration to report."""
