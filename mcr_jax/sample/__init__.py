"""The sampling stage: draws completions of every case into the ledger."""
