//! The kernel layer's shared types: maps and counters as both sides of the eBPF boundary lay them out.
