"""Launch scripts for TPU VMs, pods, GKE, Slurm and local processes; `mcr launch NAME` runs them."""
