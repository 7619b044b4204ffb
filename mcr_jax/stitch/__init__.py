"""Rewrites the clinician's statements of each case as one fluent trace, audited, to train on."""
