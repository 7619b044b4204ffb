"""The stage that packages cases as the TFDS dataset `medcasereasoning`."""
