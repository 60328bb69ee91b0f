"""What is measured on a GPU: `benchmarks/gpu.sh` runs its parts, each in a process of its own."""
