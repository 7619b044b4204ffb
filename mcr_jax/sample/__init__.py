"""The stage that draws completions of every case into the ledger."""
