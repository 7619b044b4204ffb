"""Packages cases as the TFDS dataset `medcasereasoning`."""
