"""The TFDS builder of MedCaseReasoning. Research use, not for patient care."""

from .medcasereasoning_dataset_builder import STITCHED, Builder

__all__ = ["STITCHED", "Builder"]
