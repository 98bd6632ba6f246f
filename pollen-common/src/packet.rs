//! Where the fields of a received frame lie. No allocation: the eBPF programs use it.
