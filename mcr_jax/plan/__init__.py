"""Plans of a training run: memory and time before a device is rented."""
