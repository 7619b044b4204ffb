"""A training run on paper: memory and time before a device is rented."""
