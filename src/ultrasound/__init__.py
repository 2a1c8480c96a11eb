"""Breast ultrasound classification: versioned data, tracked training, honest evaluation, safe serving."""

__version__ = "0.1.0"
NOTICE = "Research software, not a medical device; not for diagnosis."
