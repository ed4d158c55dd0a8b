"""Plain implementations to measure against: clear, dense, and without any of the package's shortcuts."""
