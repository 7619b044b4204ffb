"""The stage between cases and training: a clinician's statements to one fluent trace, audited."""
